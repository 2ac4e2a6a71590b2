"""Pods as a scheduler and a kubelet leave them: what a test says a pod does, and the status that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = Any


@dataclass(frozen=True)
class Runs:
    """The pod becomes ready and runs until a test ends it."""


@dataclass(frozen=True)
class Ends:
    """The pod runs and ends, `after` seconds later on the cluster's clock."""

    exit_code: int = 0
    message: str = ""
    """The termination message: the file, or the end of the log."""
    reason: str = ""
    """Of the container: Completed, Error or OOMKilled; chosen by the code when empty."""
    disrupted: bool = False
    """The pod was evicted, preempted or drained: it gets the condition DisruptionTarget."""
    after: float = 0.0


@dataclass(frozen=True)
class Waits:
    """The container does not start: ImagePullBackOff, CreateContainerConfigError and the like."""

    reason: str
    message: str = ""


@dataclass(frozen=True)
class Unschedulable:
    """No node takes the pod."""

    message: str


Behaviour = Runs | Ends | Waits | Unschedulable


def condition(kind: str, *, holds: bool, time: str, reason: str = "", message: str = "") -> Json:
    """A condition of a pod, a Job or a PyTorchJob."""
    found = {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": time}
    return found | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


def with_condition(conditions: list[Json], added: Json) -> list[Json]:
    """Conditions with one put in, or changed."""
    return [found for found in conditions if found["type"] != added["type"]] + [added]


def container_statuses(pod: Json, state: Json, *, ready: bool = False) -> list[Json]:
    """All containers in one state."""
    return [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": container.get("image", ""),
            "ready": ready,
            "restartCount": 0,
            "started": ready,
            "state": state,
        }
        for container in pod["spec"]["containers"]
    ]


def running(pod: Json, address: str, time: str) -> Json:
    """The status of a ready pod."""
    status = pod.get("status", {})
    conditions = status.get("conditions", [])
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready"):
        conditions = with_condition(conditions, condition(kind, holds=True, time=time))
    return status | {
        "phase": "Running",
        "conditions": conditions,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": time,
        "containerStatuses": container_statuses(pod, {"running": {"startedAt": time}}, ready=True),
    }


def ended(pod: Json, end: Ends, time: str) -> Json:
    """The status of a pod that is over."""
    status = pod.get("status", {})
    conditions = with_condition(
        status.get("conditions", []), condition("Ready", holds=False, time=time, reason="PodCompleted")
    )
    if end.disrupted:
        told = condition(
            "DisruptionTarget", holds=True, time=time, reason="EvictionByEvictionAPI", message="Eviction API: evicting"
        )
        conditions = with_condition(conditions, told)
    reason = end.reason or ("Completed" if end.exit_code == 0 else "Error")
    terminated = {
        "exitCode": end.exit_code,
        "reason": reason,
        "startedAt": status.get("startTime", time),
        "finishedAt": time,
    }
    terminated |= {"message": end.message} if end.message else {}
    return status | {
        "phase": "Succeeded" if end.exit_code == 0 else "Failed",
        "conditions": conditions,
        "containerStatuses": container_statuses(pod, {"terminated": terminated}),
    }


def waiting(pod: Json, wait: Waits, time: str) -> Json:
    """The status of a pod whose container does not start."""
    conditions = with_condition(
        pod.get("status", {}).get("conditions", []), condition("PodScheduled", holds=True, time=time)
    )
    state = {"waiting": {"reason": wait.reason, "message": wait.message}}
    return {"phase": "Pending", "conditions": conditions, "containerStatuses": container_statuses(pod, state)}


def unschedulable(why: str, time: str) -> Json:
    """The status of a pod without a node."""
    told = condition("PodScheduled", holds=False, time=time, reason="Unschedulable", message=why)
    return {"phase": "Pending", "conditions": [told]}


def exit_code(pod: Json) -> int:
    """The first code that is not 0, else 0; 137 for a pod that was taken away without an end."""
    codes = [
        status["state"]["terminated"]["exitCode"]
        for status in pod.get("status", {}).get("containerStatuses", ())
        if "terminated" in status.get("state", {})
    ]
    return next((code for code in codes if code), 0 if codes else 137)
