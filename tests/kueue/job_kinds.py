"""What Kueue knows of the kinds of jobs that it manages: where they are suspended, their pods, how they end.

Facts are those of Kueue's pages "Run A Kubernetes Job", "Run a PyTorchJob" and "Labels and Annotations".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Any

QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"
MIN_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"
STOPPING = "kueue.x-k8s.io/stopping"
"""On a Job while it is stopped: suspended already, its template not yet what it was."""
ENDS = {"Complete": True, "Succeeded": True, "Failed": False}
"""Conditions that end a job, and whether they are good ends."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job."""

    group: str
    version: str
    name: str
    plural: str
    switch: tuple[str, ...]
    """Path of the field that suspends it."""

    @property
    def api_version(self) -> str:
        """As objects name it."""
        return f"{self.group}/{self.version}"

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """Where its objects are."""
        place = ("namespaces", namespace) if namespace else ()
        return "/".join(filter(None, ("apis", self.group, self.version, *place, self.plural, name, part)))

    def is_suspended(self, job: Json) -> bool:
        """Whether somebody holds it back."""
        found = job["spec"]
        for step in self.switch:
            found = (found or {}).get(step)
        return bool(found)

    def suspend(self, job: Json, value: bool) -> None:
        """Set the switch."""
        *above, last = self.switch
        holder = job["spec"]
        for step in above:
            holder = holder.setdefault(step, {})
        holder[last] = value


JOB = JobKind("batch", "v1", "Job", "jobs", ("suspend",))
PYTORCH_JOB = JobKind("kubeflow.org", "v1", "PyTorchJob", "pytorchjobs", ("runPolicy", "suspend"))
KINDS = (JOB, PYTORCH_JOB)


def queue_of(job: Json) -> str:
    """The local queue that a job is sent to; empty for none."""
    return (job["metadata"].get("labels") or {}).get(QUEUE, "")


def templates(job: Json) -> Mapping[str, Json]:
    """The pod templates of a job, by the names of their pod sets; not copies."""
    if "template" in job["spec"]:
        return {"main": job["spec"]["template"]}
    replicas = job["spec"]["pytorchReplicaSpecs"]
    return {kind.lower(): replicas[kind]["template"] for kind in ("Master", "Worker") if kind in replicas}


def counts(job: Json) -> Mapping[str, int]:
    """Pods of each pod set."""
    spec = job["spec"]
    if "template" in spec:
        parallelism = spec.get("parallelism", 1)
        return {"main": min(parallelism, spec.get("completions") or parallelism)}
    return {kind.lower(): one.get("replicas", 1) for kind, one in spec["pytorchReplicaSpecs"].items()}


def min_count(job: Json) -> int | None:
    """Pods that are enough to begin with; None where it is all or nothing."""
    text = (job["metadata"].get("annotations") or {}).get(MIN_PARALLELISM)
    return None if text is None else int(text)


def is_active(job: Json) -> bool:
    """Whether its controller still counts pods that are neither ended nor told to end."""
    status = job.get("status") or {}
    replicas = (status.get("replicaStatuses") or {}).values()
    return bool(status.get("active") or any(one.get("active") for one in replicas))


def end_of(job: Json) -> tuple[bool, str] | None:
    """Whether it ended well, and what its controller says; None while it has not ended."""
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ENDS and condition["status"] == "True":
            return ENDS[condition["type"]], condition.get("message", "")
    return None
