"""In place of nodes: a thread that gives every pod a status, as the kubelet of a node would. No container runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from api_server import ApiServer
from world import well

from draftyard_api.names import LABEL_MANAGED, LABEL_STAGE, Stage
from draftyard_operator.testing.pods import Ends, Runs, ended, running

Json = Any
LOOK_SECONDS = 0.05
ADDRESS = "127.94.0.1"
"""Of every pod: all of them would be one process on this machine."""


def stage_of(pod: Json) -> Stage:
    """Which stage a pod of ours is of."""
    return Stage(pod["metadata"]["labels"][LABEL_STAGE])


def ends_well(pod: Json) -> Ends | Runs:
    """Every pod does its work at once."""
    return well(stage_of(pod), pod)


def holding(*stages: Stage) -> Callable[[Json], Ends | Runs]:
    """All goes well, and pods of these stages go on."""
    return lambda pod: Runs() if stage_of(pod) in stages else ends_well(pod)


class Nodes(threading.Thread):
    """Looks at the pods of one namespace until `stop`."""

    def __init__(self, server: ApiServer, namespace: str, script: Callable[[Json], Ends | Runs] = ends_well) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.script = script
        self.pods = f"api/v1/namespaces/{namespace}/pods"
        self._stopped = threading.Event()

    def run(self) -> None:
        """One look after the other."""
        waiting = {"labelSelector": f"{LABEL_MANAGED}=true", "fieldSelector": "status.phase=Pending"}
        while not self._stopped.wait(LOOK_SECONDS):
            for pod in self.server.request("GET", self.pods, **waiting).body.get("items", ()):
                self.tell(pod, self.script(pod))

    def tell(self, pod: Json, behaviour: Ends | Runs) -> None:
        """Say what a pod does from now on; one that is gone meanwhile does nothing."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = running(pod, ADDRESS, now) if isinstance(behaviour, Runs) else ended(pod, behaviour, now)
        self.server.patch(f"{self.pods}/{pod['metadata']['name']}/status", {"status": status})

    def end(self, stage: Stage) -> None:
        """End the pods of a stage that run, well."""
        for pod in self.server.get(self.pods).made()["items"]:
            if stage_of(pod) is stage and pod["status"].get("phase") == "Running":
                self.tell(pod, ends_well(pod))

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self.join(10)
