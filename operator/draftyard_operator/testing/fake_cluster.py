"""A whole cluster in the test's process: API server, garbage collector, Job controllers, kubelet.

    async with FakeCluster() as cluster:
        cluster.add_run("team", "demo", spec)
        ...  # run the operator against cluster.kubeconfig(folder)
        cluster.end("team", "demo-train-a1", Ends(75))

Controllers follow every write before it is answered, so a test sees no state in between, unless it sets `is_paused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from draftyard_api import crd
from draftyard_api.names import API_VERSION, KIND
from draftyard_operator.testing.api import Api
from draftyard_operator.testing.children import PodRule
from draftyard_operator.testing.deletion import Collector
from draftyard_operator.testing.jobs import JobController
from draftyard_operator.testing.kinds import (
    DEFINITION,
    NAMESPACE,
    POD,
    PYTORCH_JOB,
    Kind,
    defined_kind,
    open_definition,
)
from draftyard_operator.testing.kubelet import Kubelet
from draftyard_operator.testing.pods import Ends
from draftyard_operator.testing.pytorchjobs import PyTorchJobController
from draftyard_operator.testing.server import Server
from draftyard_operator.testing.store import Change, Store

Json = Any
TICK_SECONDS = 0.01


class Follower(Protocol):
    """A controller."""

    def see(self, change: Change) -> None:
        """Follow one change."""
        ...


class FakeCluster:
    """Everything together. DraftTrainings are defined, PyTorchJobs on demand."""

    def __init__(self, clock: Callable[[], float] = time.time, *, pytorch_jobs: bool = False) -> None:
        self.definition = crd.definition()
        self.kind = defined_kind(self.definition)
        self.store = Store(clock)
        self.collector = Collector(self.store)
        self.api = Api(self.store, self.collector)
        self.kubelet = Kubelet(self.store)
        self.server = Server(self.api)
        self.is_paused = False
        """Controllers and kubelet stand still, and catch up when it ends (`settle`)."""
        self.pod_rules: list[PodRule] = []
        """What refuses pods that controllers make: quotas and the like."""
        self.training_operator = PyTorchJobController(self.store, self.collector, self.pod_rules)
        self._controllers: list[JobController | PyTorchJobController] = [
            JobController(self.store, self.collector, self.pod_rules),
            self.training_operator,
        ]
        self.followers: list[Follower] = [self.collector, *self._controllers, self.kubelet]
        self._changes: deque[Change] = deque()
        self._is_settling = False
        self._ticker: asyncio.Task[None] | None = None
        self.store.follow = self._hear
        self.api.create(DEFINITION, "", self.definition)
        if pytorch_jobs:
            self.define(PYTORCH_JOB)
        self.add_namespace("default")

    # -- Up and down ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.server.start()
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        await self.server.stop()

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig for this server."""
        path = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.server.url}}],
            "users": [{"name": "fake", "user": {"token": "of-a-test"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "default"}}],
        }
        path.write_text(json.dumps(content))
        return path

    # -- Objects ----------------------------------------------------------------------------------------------------

    def define(self, kind: Kind) -> None:
        """Serve a custom kind from now on."""
        self.api.create(DEFINITION, "", open_definition(kind))

    def add_namespace(self, name: str) -> str:
        """A new namespace. Returns its name."""
        self.api.create(NAMESPACE, "", {"metadata": {"name": name}})
        return name

    def add_run(self, namespace: str, name: str, spec: Json) -> Json:
        """A new DraftTraining. Raises ApiError."""
        given = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
        return self.api.create(self.kind, namespace, given)

    def run(self, namespace: str, name: str) -> Json:
        """A DraftTraining as it is now. Raises ApiError 404."""
        return self.store.get(self.kind, namespace, name)

    def edit_run(self, namespace: str, name: str, spec: Json) -> Json:
        """Put a merge patch into the spec, as `kubectl patch` does. Raises ApiError."""
        return self.api.patch(self.kind, namespace, name, {"spec": spec})

    def pods(self, namespace: str, prefix: str = "") -> list[Json]:
        """Pods whose name begins so."""
        return [pod for pod in self.store.every(POD, namespace) if pod["metadata"]["name"].startswith(prefix)]

    def end(self, namespace: str, prefix: str, end: Ends) -> None:
        """End every pod whose name begins so and that has not ended."""
        for pod in self.pods(namespace, prefix):
            if pod["status"]["phase"] not in ("Succeeded", "Failed"):
                self.kubelet.end(namespace, pod["metadata"]["name"], end)

    # -- Controllers ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let the controllers follow all that has happened, until they are at rest."""
        if self._is_settling or self.is_paused:
            return
        self._is_settling = True
        try:
            while self._changes:
                change = self._changes.popleft()
                for follower in self.followers:
                    follower.see(change)
        finally:
            self._is_settling = False

    def tick(self) -> None:
        """Time has passed: pods end, and what was refused is tried again."""
        self.kubelet.tick()
        for controller in self._controllers:
            controller.tick()

    def _hear(self, change: Change) -> None:
        self._changes.append(change)
        self.settle()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if not self.is_paused:
                self.tick()
