"""Everything together: a control plane, the real training-operator, Kueue's part, a node, the operator's process."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import control_plane
import requests
import training_operator
import trainings
import webhook
import workloads
from api_server import ApiServer
from control_plane import LOOPBACK, ControlPlane
from job_kinds import JOB, PYTORCH_JOB, JobKind
from kueue import Kueue
from played_node import Node

from draftyard_api.status import DraftTrainingStatus
from draftyard_operator.run import read_status
from draftyard_operator.testing.ports import free_port

Json = Any

PROGRAM = "import sys; from draftyard_operator.command import operator; sys.exit(operator(sys.argv[1:]))"
CONFIG = """\
trainerImage: registry.example/trainer@sha256:00
readWorkloads: true
resyncSeconds: 5
"""
PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 60
REQUESTS = re.compile(r"^draftyard_api_requests_total\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


# -- Players ----------------------------------------------------------------------------------------------------------


@dataclass
class Player:
    """Somebody who looks again and again, in a thread of its own."""

    name: str
    look: Callable[[], None]
    failures: list[Exception] = field(default_factory=list)
    ends: threading.Event = field(default_factory=threading.Event)

    def play(self) -> None:
        """Look until told to end; the first failure ends it too."""
        while not self.ends.wait(PAUSE_SECONDS):
            try:
                self.look()
            except Exception as error:
                self.failures.append(error)
                return

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Play while the block runs. Raises what has failed."""
        thread = threading.Thread(target=self.play, name=self.name)
        thread.start()
        try:
            yield
        finally:
            self.ends.set()
            thread.join()
        if self.failures:
            raise self.failures[0]


# -- The operator -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """The operator's process, from outside."""

    port: int

    def ask(self, path: str) -> str:
        """What it serves; empty while it does not answer well."""
        try:
            answer = requests.get(f"http://{LOOPBACK}:{self.port}/{path}", timeout=10)
        except requests.RequestException:
            return ""
        return answer.text if answer.ok else ""

    def requests(self) -> Counter[tuple[str, str]]:
        """Its requests so far, by verb and resource."""
        counted: Counter[tuple[str, str]] = Counter()
        for labels, value in REQUESTS.findall(self.ask("metrics")):
            told = dict(LABEL.findall(labels))
            counted[told["verb"], told["resource"]] += int(float(value))
        return counted


@contextmanager
def operator(plane: ControlPlane) -> Iterator[Operator]:
    """The operator, as `draftyard operator --kubeconfig` starts it, until the block is left."""
    config, port = plane.folder / "operator.yaml", free_port()
    config.write_text(CONFIG)
    program = control_plane.started(
        plane.folder, Path(sys.executable), "-c", PROGRAM, "--config", str(config),
        "--kubeconfig", str(plane.kubeconfig), "--metrics-port", str(port),
        "--health-port", str(free_port()),
    )  # fmt: skip
    with program as running:
        found = Operator(port)
        control_plane.wait([running], lambda: bool(found.ask("readyz")))
        yield found


# -- The rig ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rig:
    """What stories are played with."""

    plane: ControlPlane
    server: ApiServer
    kueue: Kueue
    node: Node
    operator: Operator
    players: tuple[Player, ...]

    def until(self, holds: Callable[[], Any], told: Callable[[], object] = lambda: "") -> Any:
        """What a call returns once it returns something. Raises what has failed meanwhile."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := holds()):
            for player in self.players:
                if player.failures:
                    raise player.failures[0]
            assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {told()}"
            time.sleep(PAUSE_SECONDS)
        return found

    def status(self, namespace: str, name: str) -> DraftTrainingStatus:
        """What the operator tells of a run."""
        return read_status(self.server.get(trainings.path(namespace, name)).made().get("status") or {})

    def children(self, namespace: str) -> dict[str, Json]:
        """Jobs and PyTorchJobs of a namespace, by name."""
        return {one["metadata"]["name"]: one for kind in (JOB, PYTORCH_JOB) for one in self.jobs(kind, namespace)}

    def jobs(self, kind: JobKind, namespace: str) -> list[Json]:
        """Jobs of one kind."""
        return self.server.get(kind.path(namespace)).made()["items"]

    def workloads(self, namespace: str) -> dict[str, Json]:
        """Workloads of a namespace, by the name of their job."""
        found = self.server.get(workloads.path(namespace)).made()["items"]
        return {one["metadata"]["ownerReferences"][0]["name"]: one for one in found}

    def pods(self, namespace: str, stage: str = "") -> list[Json]:
        """Pods of a namespace, or of one stage, that have not ended."""
        found = self.server.get(f"api/v1/namespaces/{namespace}/pods").made()["items"]
        return [
            one for one in found
            if one["metadata"]["labels"].get("draftyard.dev/stage") == stage or not stage
            if one["status"].get("phase") not in ("Succeeded", "Failed")
        ]  # fmt: skip


@contextmanager
def played(plane: ControlPlane) -> Iterator[Rig]:
    """The whole rig on a fresh control plane, until the block is left."""
    server = plane.client()
    trainings.install(server)
    workloads.install(server)
    with ExitStack() as stack:
        stack.enter_context(training_operator.started(plane, server))
        # it must find all definitions when it starts, to collect what is of these kinds
        stack.enter_context(control_plane.controllers(plane))
        stack.enter_context(webhook.serving(plane, server))
        queues, node = Kueue(plane.client()), Node(plane.client())
        players = (Player("kueue", queues.sync), Player("node", node.sync))
        for player in players:
            stack.enter_context(player.playing())
        yield Rig(plane, server, queues, node, stack.enter_context(operator(plane)), players)
