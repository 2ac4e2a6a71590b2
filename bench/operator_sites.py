"""Clusters on which the operator is put under load: a real API server with its controllers, and the fake one.

Neither has a node: pods of `prepare` end well at once, pods of `train` go on, and say that they live when asked.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import control_plane
import trainings
from control_plane import ControlPlane
from nodes import Nodes, holding
from programs import NEWEST, Programs
from world import NAMESPACE, reading, spec

from draftyard_api.names import API_VERSION, KIND, LABEL_RUN, PROGRESS_PORT, Stage
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.kinds import JOB

Json = Any
USER = "operator"
"""Who the operator is on the real server: what this user asks is written down, and nothing else."""
EVERYWHERE = "0.0.0.0"  # noqa: S104  pods have many addresses, all of them of this machine
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
}


class Site(Protocol):
    """A cluster, as this bench sees it."""

    kubeconfig: Path
    """Of the operator."""

    def add(self, name: str, status: Json | None = None) -> None:
        """A new run; with a status, one that is there since long."""
        ...

    def suspend(self, name: str, *, wanted: bool) -> None:
        """Edit its spec."""
        ...

    def status(self, name: str) -> Json:
        """What is told of a run."""
        ...

    def trains(self, name: str) -> bool:
        """Whether a Job trains it that is not being deleted."""
        ...

    def requests(self) -> Counter[str]:
        """Everything that operators have asked so far, such as `list jobs`."""
        ...


# -- Pods -------------------------------------------------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    """Every pod at once: it trains, and lives."""

    def do_GET(self) -> None:
        """How far training is."""
        told = reading(Stage.TRAIN, time.time(), done=10, total=100, step=10, total_steps=100)
        body = told.model_dump_json(by_alias=True, exclude_none=True).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def answering() -> Iterator[None]:
    """Pods that answer, while the block runs. Raises OSError when somebody else has their port."""
    with ThreadingHTTPServer((EVERYWHERE, PROGRESS_PORT), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


# -- The fake server --------------------------------------------------------------------------------------------------


class FakeSite:
    """The server of the operator's own tests, in this process."""

    def __init__(self, fake: FakeCluster, folder: Path) -> None:
        self.fake = fake
        self.kubeconfig = fake.kubeconfig(folder)
        fake.add_namespace(NAMESPACE)
        fake.kubelet.script = holding(Stage.TRAIN)

    def add(self, name: str, status: Json | None = None) -> None:
        """A new run; with a status, one that is there since long."""
        self.fake.add_run(NAMESPACE, name, spec())
        if status is not None:
            self.fake.api.patch(self.fake.kind, NAMESPACE, name, {"status": status}, "status")

    def suspend(self, name: str, *, wanted: bool) -> None:
        """Edit its spec."""
        self.fake.edit_run(NAMESPACE, name, {"suspend": wanted})

    def status(self, name: str) -> Json:
        """What is told of a run."""
        return self.fake.run(NAMESPACE, name).get("status", {})

    def trains(self, name: str) -> bool:
        """Whether a Job trains it that is not being deleted."""
        return is_training((one["metadata"] for one in self.fake.store.every(JOB, NAMESPACE)), name)

    def requests(self) -> Counter[str]:
        """Everything that operators have asked so far."""
        return self.fake.server.record.counts()


def is_training(metadata: Iterator[Json], name: str) -> bool:
    """Whether one of these Jobs trains a run, and is not being deleted."""
    return any(one["name"].startswith(f"{name}-train-") and "deletionTimestamp" not in one for one in metadata)


@asynccontextmanager
async def fake_site(folder: Path) -> AsyncIterator[FakeSite]:
    """The fake server, while the block runs."""
    async with FakeCluster() as fake:
        yield FakeSite(fake, folder)


# -- A real server ----------------------------------------------------------------------------------------------------


class RealSite:
    """etcd, kube-apiserver and kube-controller-manager; a thread plays the kubelet."""

    def __init__(self, plane: ControlPlane, audit: Path) -> None:
        self.server = plane.client()
        self.kubeconfig = plane.folder / "operator.kubeconfig"
        user = plane.authority.issue(USER, control_plane.ADMINS)
        self.kubeconfig.write_text(control_plane.kubeconfig(plane, user))
        self._audit = audit
        self._jobs = f"apis/batch/v1/namespaces/{NAMESPACE}/jobs"
        self.server.post("api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).made()

    def add(self, name: str, status: Json | None = None) -> None:
        """A new run; with a status, one that is there since long."""
        made = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec()}
        self.server.post(trainings.path(NAMESPACE), made).made()
        if status is not None:
            self.server.patch(trainings.path(NAMESPACE, name, "status"), {"status": status}).made()

    def suspend(self, name: str, *, wanted: bool) -> None:
        """Edit its spec."""
        self.server.patch(trainings.path(NAMESPACE, name), {"spec": {"suspend": wanted}}).made()

    def status(self, name: str) -> Json:
        """What is told of a run."""
        return self.server.get(trainings.path(NAMESPACE, name)).made().get("status", {})

    def trains(self, name: str) -> bool:
        """Whether a Job trains it that is not being deleted."""
        selector = f"{LABEL_RUN}={name}"
        found = self.server.request("GET", self._jobs, labelSelector=selector).made()["items"]
        return is_training((one["metadata"] for one in found), name)

    def requests(self) -> Counter[str]:
        """Everything that operators have asked so far, by the server's own audit log. A watch counts when it begins."""
        counted: Counter[str] = Counter()
        for line in self._audit.read_text().splitlines():
            told = json.loads(line)
            if (told["verb"] == "watch") == (told["stage"] == "ResponseStarted"):
                place = told.get("objectRef", {})
                part = "/".join(filter(None, (place.get("resource"), place.get("subresource"))))
                counted[f"{told['verb']} {part or told['requestURI']}"] += 1
        return counted


@asynccontextmanager
async def real_site(folder: Path) -> AsyncIterator[RealSite]:
    """A real server, while the block runs. Raises SystemExit when its programs are not made."""
    programs = Programs(NEWEST)
    if not programs.are_made:
        raise SystemExit(f"make cluster-programs: {programs.folder} is missing, or was made from other sources")
    policy, audit = folder / "audit.json", folder / "audit.log"
    policy.write_text(json.dumps(AUDIT))
    audit.touch()
    flags = ("--audit-policy-file", str(policy), "--audit-log-path", str(audit))
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="draftyard-bench-")))
        plane = stack.enter_context(control_plane.serving(programs, home, flags=flags))
        trainings.install(plane.client())
        stack.enter_context(control_plane.controllers(plane))
        site = RealSite(plane, audit)
        kubelet = Nodes(plane.client(), NAMESPACE, holding(Stage.TRAIN))
        kubelet.start()
        try:
            yield site
        finally:
            kubelet.stop()
