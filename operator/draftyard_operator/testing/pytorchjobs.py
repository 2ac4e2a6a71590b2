"""The training-operator's PyTorchJob controller (v1.9.4), as far as this project relies on it.

Without a Master, one worker that exits 0 is the success of all; with a Master, only it counts. A running pod that is
told to end has failed; one that is gone before it was seen to end is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftyard_operator.testing import pods
from draftyard_operator.testing.children import PodMaker, PodRule, controller_of, live, owned
from draftyard_operator.testing.deletion import Collector, is_leaving
from draftyard_operator.testing.kinds import POD, PYTORCH_JOB
from draftyard_operator.testing.store import Change, Store

Json = Any
NAME = "training.kubeflow.org/job-name"
REPLICA_TYPE = "training.kubeflow.org/replica-type"
REPLICA_INDEX = "training.kubeflow.org/replica-index"
ENDS = ("Succeeded", "Failed")


class PyTorchJobController:
    """Turns PyTorchJobs into pods, and pods into a status."""

    def __init__(self, store: Store, collector: Collector, rules: Sequence[PodRule] = ()) -> None:
        self.store = store
        self.collector = collector
        self.maker = PodMaker(store, rules, "FailedCreatePod")
        self.is_behind = False
        """It does not see yet that it has ended a job, as for a moment after it did: what is gone is made again."""

    def see(self, change: Change) -> None:
        """Follow a change of a PyTorchJob or of one of its pods."""
        if change.kind == PYTORCH_JOB and change.type != "DELETED":
            self.sync(change.object)
        elif change.kind == POD:
            job = controller_of(self.store, PYTORCH_JOB, change.object)
            if job is not None:
                self.sync(job)

    def tick(self) -> None:
        """Try again what was refused."""
        for owner in self.maker.due():
            self.sync(owner)

    def sync(self, job: Json) -> None:
        """One look at a PyTorchJob."""
        current = self.store.find(PYTORCH_JOB, job["metadata"]["namespace"], job["metadata"]["name"])
        if current is None or is_leaving(current):
            return
        if end_of(current):
            if self.is_behind:
                self._start_missing(current)
            return
        suspended = bool(current["spec"].get("runPolicy", {}).get("suspend"))
        found = owned(self.store, current, POD)
        if suspended:
            for pod in live(found):
                if not is_leaving(pod):
                    self.collector.delete(POD, pod["metadata"]["namespace"], pod["metadata"]["name"], {})
        elif not any(pod["status"]["phase"] == "Failed" for pod in found):
            self._start_missing(current)
        self._report(current, found, suspended=suspended)

    def _start_missing(self, job: Json) -> None:
        for kind, replica in job["spec"]["pytorchReplicaSpecs"].items():
            for index in range(replica.get("replicas", 1)):
                name = f"{job['metadata']['name']}-{kind.lower()}-{index}"
                labels = {
                    NAME: job["metadata"]["name"],
                    REPLICA_TYPE: kind.lower(),
                    REPLICA_INDEX: str(index),
                    "training.kubeflow.org/operator-name": "pytorchjob-controller",
                }
                template = replica["template"]
                spec = template["spec"] | {"restartPolicy": replica.get("restartPolicy", "Never")}
                self.maker.make(job, name, template | {"spec": spec}, labels)

    def _report(self, job: Json, found: list[Json], *, suspended: bool) -> None:
        """Tell how it stands: with the pods that were there at first, not with those that were made just now."""
        current = self.store.find(PYTORCH_JOB, job["metadata"]["namespace"], job["metadata"]["name"])
        if current is None or end_of(current):
            return
        now = self.store.now()
        status = dict(current.get("status", {}))
        conditions = list(status.get("conditions", ()))
        for told in self._told(current, found, suspended=suspended):
            held = next((one for one in conditions if one["type"] == told["type"]), None)
            if held is None or (held["status"], held.get("reason")) != (told["status"], told.get("reason")):
                conditions = pods.with_condition(conditions, told)
        status |= {"conditions": conditions, "replicaStatuses": replica_statuses(found)}
        if suspended:
            status.pop("startTime", None)
        else:
            status.setdefault("startTime", now)
        if any(one["type"] in ENDS and one["status"] == "True" for one in conditions):
            status["completionTime"] = now
        self.store.replace(PYTORCH_JOB, current | {"status": status})

    def _told(self, job: Json, found: list[Json], *, suspended: bool) -> list[Json]:
        now, name = self.store.now(), job["metadata"]["name"]
        told = [pods.condition("Created", holds=True, time=now, reason="PyTorchJobCreated")]
        held = {one["type"] for one in job.get("status", {}).get("conditions", ())}
        if suspended or "Suspended" in held:
            reason = "PyTorchJobSuspended" if suspended else "PyTorchJobResumed"
            told.append(pods.condition("Suspended", holds=suspended, time=now, reason=reason))
        if suspended:
            return told
        failed = [pod for pod in found if word_of(pod) == "failed"]
        deciding = [pod for pod in found if pod["metadata"]["labels"][REPLICA_TYPE] == "master"] or found
        if failed:
            why = f"PyTorchJob {name} is failed because {len(failed)} replica(s) failed."
            end = pods.condition("Failed", holds=True, time=now, reason="PyTorchJobFailed", message=why)
        elif any(pod["status"]["phase"] == "Succeeded" for pod in deciding):
            end = pods.condition("Succeeded", holds=True, time=now, reason="PyTorchJobSucceeded")
        elif any(word_of(pod) == "active" for pod in deciding):
            return [*told, pods.condition("Running", holds=True, time=now, reason="PyTorchJobRunning")]
        else:
            return told
        return [*told, pods.condition("Running", holds=False, time=now, reason=end["reason"]), end]


def end_of(job: Json) -> str | None:
    """Succeeded or Failed, once it is so."""
    conditions = job.get("status", {}).get("conditions", ())
    return next((one["type"] for one in conditions if one["type"] in ENDS and one["status"] == "True"), None)


def replica_statuses(found: list[Json]) -> Json:
    """How many pods of each type are in which state."""
    statuses: Json = {}
    for pod in found:
        kind = pod["metadata"]["labels"][REPLICA_TYPE].capitalize()
        counts = statuses.setdefault(kind, {})
        word = word_of(pod)
        if word is not None:
            counts[word] = counts.get(word, 0) + 1
    return statuses


def word_of(pod: Json) -> str | None:
    """How a pod counts: one that runs and is told to end has failed, and one that is still to start is nothing."""
    if pod["status"]["phase"] == "Running":
        return "failed" if is_leaving(pod) else "active"
    return {"Succeeded": "succeeded", "Failed": "failed"}.get(pod["status"]["phase"])
