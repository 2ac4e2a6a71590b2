"""The nodes: pods start, run, and end as a test says; claims are bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from draftyard_operator.testing import pods
from draftyard_operator.testing.deletion import is_ended, is_leaving
from draftyard_operator.testing.kinds import CLAIM, POD
from draftyard_operator.testing.pods import Behaviour, Ends, Runs, Unschedulable, Waits
from draftyard_operator.testing.store import Change, Store

Json = Any
Script = Callable[[Json], Behaviour]


class Kubelet:
    """All nodes at once. `script` says what a new pod does, `on_term` how a pod ends that is told to stop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.script: Script = lambda _: Runs()
        self.on_term: Callable[[Json], Ends | None] = lambda _: Ends(143)
        """None: the pod goes on, as one that waits for its grace period; a test ends it with `end`."""
        self.binds_claims = True
        self.lost: set[str] = set()
        """Names of nodes of which nothing is heard."""
        self._due: dict[str, tuple[float, str, str, Ends]] = {}
        self._addresses = 0

    # -- By itself --------------------------------------------------------------------------------------------------

    def see(self, change: Change) -> None:
        """Follow a change of a pod or a claim."""
        if change.type == "DELETED":
            return
        if change.kind == CLAIM:
            self._bind(change.object)
        if change.kind != POD:
            return
        if change.type == "ADDED":
            self.behave(change.object, self.script(change.object))
        elif is_leaving(change.object) and not is_leaving(change.previous):
            self._stop(change.object)

    def tick(self) -> None:
        """End the pods whose time has come."""
        for uid, (due, namespace, name, end) in list(self._due.items()):
            if due <= self.store.clock():
                del self._due[uid]
                pod = self.store.find(POD, namespace, name)
                if pod is not None and pod["metadata"]["uid"] == uid:
                    self._finish(pod, end)

    # -- By a test --------------------------------------------------------------------------------------------------

    def behave(self, pod: Json, behaviour: Behaviour) -> None:
        """Let a pod do something from now on."""
        now = self.store.now()
        match behaviour:
            case Unschedulable(message):
                self._set(pod, pods.unschedulable(message, now))
            case Waits():
                self._set(self._placed(pod), pods.waiting(pod, behaviour, now))
            case Runs():
                self._run(pod)
            case Ends(after=after):
                running = self._run(pod)
                self._due[pod["metadata"]["uid"]] = (self.store.clock() + after, *where(running), behaviour)
                if after <= 0:
                    self.tick()

    def end(self, namespace: str, name: str, end: Ends) -> None:
        """End a pod now."""
        self._finish(self.store.get(POD, namespace, name), end)

    def set_status(self, namespace: str, name: str, status: Json) -> Json:
        """Give a pod any status, for what no behaviour says."""
        return self._set(self.store.get(POD, namespace, name), status)

    def lose_node(self, node: str) -> None:
        """Nothing is heard of a node any more: its pods are deleted, and stay Terminating."""
        self.lost.add(node)
        for pod in self.store.every(POD):
            if pod["spec"].get("nodeName") == node and not is_ended(pod):
                now = self.store.now()
                conditions = pods.with_condition(
                    pod["status"].get("conditions", []),
                    pods.condition("DisruptionTarget", holds=True, time=now, reason="DeletionByTaintManager"),
                )
                told = self._set(pod, pod["status"] | {"conditions": conditions})
                self.store.start_deletion(POD, told, [], grace=30)

    def release_node(self, node: str) -> None:
        """The node is said to be out of service: its pods are removed by force."""
        self.lost.discard(node)
        for pod in self.store.every(POD):
            if pod["spec"].get("nodeName") == node and is_leaving(pod):
                self._finish(pod, Ends(137, disrupted=True))

    # -- Within -----------------------------------------------------------------------------------------------------

    def _run(self, pod: Json) -> Json:
        return self._set(self._placed(pod), pods.running(pod, self._address(), self.store.now()))

    def _stop(self, pod: Json) -> None:
        if pod["spec"].get("nodeName") in self.lost:
            return
        end = self.on_term(pod)
        if end is None:
            return
        self._due[pod["metadata"]["uid"]] = (self.store.clock() + end.after, *where(pod), end)
        if end.after <= 0:
            self.tick()

    def _finish(self, pod: Json, end: Ends) -> None:
        """The end of a pod; one that is being deleted goes then."""
        self._due.pop(pod["metadata"]["uid"], None)
        if not is_ended(pod):
            pod = self._set(pod, pods.ended(pod, end, self.store.now()))
        if is_leaving(pod) and not pod["metadata"].get("finalizers"):
            self.store.remove(POD, pod)

    def _placed(self, pod: Json) -> Json:
        node = pod["spec"].get("nodeName") or f"node-{pod['metadata']['name']}"
        return pod | {"spec": pod["spec"] | {"nodeName": node}}

    def _set(self, pod: Json, status: Json) -> Json:
        return self.store.replace(POD, pod | {"status": status})

    def _address(self) -> str:
        """An address of this machine that no other pod has, so that a test may serve progress on it."""
        self._addresses += 1
        block = os.getpid() % 200
        return f"127.{block + 20}.{self._addresses // 250 % 250}.{self._addresses % 250 + 1}"

    def _bind(self, claim: Json) -> None:
        size = claim["spec"].get("resources", {}).get("requests", {}).get("storage")
        wanted = {"phase": "Bound", "capacity": {"storage": size}} if self.binds_claims else {"phase": "Pending"}
        self.store.replace(CLAIM, claim | {"status": claim.get("status", {}) | wanted})


def where(pod: Json) -> tuple[str, str]:
    """Namespace and name of a pod."""
    return pod["metadata"]["namespace"], pod["metadata"]["name"]
