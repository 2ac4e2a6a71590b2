"""One node without a kubelet: pods are placed on it, become ready, and end as a test says. No container runs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from api_server import ApiServer

from draftyard_operator.testing import pods
from draftyard_operator.testing.pods import Behaviour, Ends, Runs, Unschedulable

Json = Any

NAME = "node-1"
PODS = "api/v1/pods"
LEASES = "apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
SAVED = Ends(75, reason="Error")
"""How a stage ends that is told to: its work is saved."""


def now() -> str:
    """The time, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Node:
    """The node. `script` says what a pod does, again and again while it lives; `on_term` how it ends when told to."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.script: Callable[[Json], Behaviour] = lambda _: Runs()
        self.on_term: Callable[[Json], Ends | None] = lambda _: SAVED
        """None: it goes on until a test says otherwise."""
        self.selectors: list[Json] = []
        """Node selectors and tolerations of the pods that were placed."""
        self._numbers = itertools.count(1)
        self._register()

    def _register(self) -> None:
        conditions = [pods.condition("Ready", holds=True, time=now(), reason="KubeletReady")]
        node = self.server.post("api/v1/nodes", {"metadata": {"name": NAME}}).made()
        self.server.patch(f"api/v1/nodes/{NAME}/status", {"status": {"conditions": conditions}}).made()
        owner = {"apiVersion": "v1", "kind": "Node", "name": NAME, "uid": node["metadata"]["uid"]}
        lease = {"holderIdentity": NAME, "leaseDurationSeconds": 40}
        self.server.post(LEASES, {"metadata": {"name": NAME, "ownerReferences": [owner]}, "spec": lease}).made()

    def sync(self) -> None:
        """One look at all pods; the node says that it is alive."""
        alive = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.server.patch(f"{LEASES}/{NAME}", {"spec": {"renewTime": alive}}).made()
        for pod in self.server.get(PODS).made()["items"]:
            self.follow(pod)

    def follow(self, pod: Json) -> None:
        """What is next for one pod."""
        has_ended = pod["status"].get("phase") in ("Succeeded", "Failed")
        is_placed = bool(pod["spec"].get("nodeName"))
        if "deletionTimestamp" in pod["metadata"]:
            if is_placed:
                self.stop(pod, has_ended=has_ended)
        elif not has_ended:
            self.go_on(pod, self.script(pod), is_placed=is_placed)

    def go_on(self, pod: Json, behaviour: Behaviour, *, is_placed: bool) -> None:
        """Let a pod do what the script says."""
        if isinstance(behaviour, Unschedulable):
            if not is_placed and not pod["status"].get("conditions"):
                self.report(pod, pods.unschedulable(behaviour.message, now()))
            return
        if not is_placed:
            self.place(pod)
        elif pod["status"].get("phase") == "Pending":
            number = next(self._numbers)
            self.report(pod, pods.running(pod, f"127.{os.getpid() % 200 + 20}.1.{number % 250 + 1}", now()))
        elif isinstance(behaviour, Ends):
            self.report(pod, pods.ended(pod, behaviour, now()))

    def place(self, pod: Json) -> None:
        """Bind a pod to the node."""
        spec, at = pod["spec"], self.at(pod)
        self.selectors.append({"nodeSelector": spec.get("nodeSelector"), "tolerations": spec.get("tolerations")})
        target = {"apiVersion": "v1", "kind": "Node", "name": NAME}
        answer = self.server.post(f"{at}/binding", {"metadata": {"name": pod["metadata"]["name"]}, "target": target})
        assert answer.is_ok or answer.status in (404, 409), answer.message

    def stop(self, pod: Json, *, has_ended: bool) -> None:
        """SIGTERM, the end, and the node lets go."""
        end = self.on_term(pod)
        if not has_ended:
            if end is None:
                return
            # it lets go a moment later, as a kubelet does: controllers see how it ended
            self.report(pod, pods.ended(pod, end, now()))
            return
        at_once = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        answer = self.server.request("DELETE", self.at(pod), at_once)
        assert answer.is_ok or answer.status in (404, 409), answer.message

    def report(self, pod: Json, status: Json) -> None:
        """Tell a pod's status; one that has changed meanwhile is looked at again."""
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        answer = self.server.patch(f"{self.at(pod)}/status", body)
        assert answer.is_ok or answer.status in (404, 409), answer.message

    def at(self, pod: Json) -> str:
        """Where a pod is."""
        return f"api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
