"""Kueue's part, played on a real API server by its documented contract: Workloads, admission, preemption.

Kueue itself is not to be had here. What is played, and what is not, is in the README of this folder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import job_kinds
import quota
from api_server import ApiServer
from job_kinds import KINDS, JobKind
from quota import Flavor
from workloads import FINALIZER, LATER, Later, claim_of, condition, conditions, done, holds, made_for, owner_uid, path

Json = Any

POD_SET = "kueue.x-k8s.io/podset"
CLUSTER_QUEUE = "cluster-queue"
SCHEDULING = ("nodeSelector", "tolerations")
"""Fields of a pod that an admission changes, and an eviction restores."""


@dataclass
class Kueue:
    """All queues of a cluster, behind one flavor. `sync` is one look; whatever was missed is found by the next."""

    server: ApiServer
    quotas: dict[str, int] = field(default_factory=dict)
    """Pods at the same time, for each local queue that exists."""
    priorities: dict[str, int] = field(default_factory=dict)
    """WorkloadPriorityClasses."""
    flavor: Flavor = field(default_factory=Flavor)
    disagreements: list[str] = field(default_factory=list)
    """Admitted jobs that somebody changed, which real Kueue would stop and queue anew."""

    def sync(self) -> None:
        """One look at all jobs and all Workloads."""
        left = {owner_uid(one): one for one in self.server.get(path()).made()["items"]}
        for kind in KINDS:
            for job in self.jobs(kind):
                self.follow_safely(kind, job, left.pop(job["metadata"]["uid"], None))
        for orphan in left.values():
            self.release(orphan)
        self.schedule()

    def jobs(self, kind: JobKind) -> Iterable[Json]:
        """Jobs that have a queue."""
        found = self.server.get(kind.path())
        return [one for one in found.made()["items"] if job_kinds.queue_of(one)] if found.is_ok else []

    def follow_safely(self, kind: JobKind, job: Json, workload: Json | None) -> None:
        """Follow a job, and leave what has changed meanwhile to the next look."""
        try:
            self.follow(kind, job, workload)
        except Later:
            return

    def follow(self, kind: JobKind, job: Json, workload: Json | None) -> None:
        """What the state of one job asks for."""
        end = job_kinds.end_of(job)
        if "deletionTimestamp" in job["metadata"]:
            self.release(workload)
        elif workload is None:
            if end is None:
                self.start_to_wait(kind, job)
        elif "deletionTimestamp" in workload["metadata"]:
            self.stop(kind, job, workload)
            self.release(workload)
        elif end is not None:
            self.finish(workload, *end)
        elif holds(workload, "Evicted"):
            self.evict(kind, job, workload)
        elif self.is_stopped(kind, job):
            self.follow_stopped(kind, job, workload)
        elif not holds(workload, "Admitted"):
            self.stop(kind, job, workload)
        elif (differs := self.difference(job, workload)) and differs not in self.disagreements:
            self.disagreements.append(differs)

    def follow_stopped(self, kind: JobKind, job: Json, workload: Json) -> None:
        """One that waits: it may start by now, or was sent to another queue."""
        if holds(workload, "Admitted"):
            self.start(kind, job, workload)
        elif workload["spec"]["queueName"] != job_kinds.queue_of(job):
            moved = {"spec": {"queueName": job_kinds.queue_of(job)}}
            done(self.server.patch(self.at(workload), moved))

    # -- Jobs -------------------------------------------------------------------------------------------------------

    def start_to_wait(self, kind: JobKind, job: Json) -> None:
        """A job without a Workload waits from now on; one that runs already is stopped first."""
        if not self.is_stopped(kind, job):
            self.stop(kind, job, None)
        done(self.server.post(path(job["metadata"]["namespace"]), made_for(kind, job, self.priorities)))

    def start(self, kind: JobKind, job: Json, workload: Json) -> None:
        """Write what the flavor asks for into the templates, and let the job run."""
        changed = copy.deepcopy(job)
        for name, template in job_kinds.templates(changed).items():
            inner = template["spec"]
            inner["nodeSelector"] = {**self.flavor.node_labels, **(inner.get("nodeSelector") or {})}
            inner["tolerations"] = [*(inner.get("tolerations") or ()), *map(dict, self.flavor.tolerations)]
            labels = template.setdefault("metadata", {}).get("labels") or {}
            template["metadata"]["labels"] = labels | {POD_SET: name}
        if job_kinds.min_count(job) is not None:
            changed["spec"]["parallelism"] = claim_of(workload).pods
        kind.suspend(changed, value=False)
        self.replace(kind, changed)

    def stop(self, kind: JobKind, job: Json, workload: Json | None) -> None:
        """Suspend a job, and give it back the templates that it came with."""
        changed = copy.deepcopy(job)
        notes = changed["metadata"].setdefault("annotations", {})
        if not kind.is_suspended(changed):
            kind.suspend(changed, value=True)
            if kind is job_kinds.JOB:
                notes[job_kinds.STOPPING] = "true"
            else:
                self.restore(changed, workload)
            changed = self.replace(kind, changed)
        if kind is not job_kinds.JOB or self.is_stopped(kind, changed):
            return
        if (changed.get("status") or {}).get("startTime"):
            # a Job takes other scheduling directives only as if it had never started
            at = kind.path(job["metadata"]["namespace"], job["metadata"]["name"], "status")
            version = {"resourceVersion": changed["metadata"]["resourceVersion"]}
            changed = done(self.server.patch(at, {"metadata": version, "status": {"startTime": None}}))
        if job_kinds.is_active(changed):
            # nor does it while pods of the old template are counted
            return
        self.restore(changed, workload)
        del changed["metadata"]["annotations"][job_kinds.STOPPING]
        self.replace(kind, changed)

    def is_stopped(self, kind: JobKind, job: Json) -> bool:
        """Whether a job is held back, and its templates are its own again."""
        return kind.is_suspended(job) and job_kinds.STOPPING not in (job["metadata"].get("annotations") or {})

    def restore(self, job: Json, workload: Json | None) -> None:
        """Take out what an admission has written."""
        if workload is None:
            return
        for pod_set in workload["spec"]["podSets"]:
            template = job_kinds.templates(job)[pod_set["name"]]
            for name in SCHEDULING:
                template["spec"].pop(name, None)
                if name in pod_set["template"]["spec"]:
                    template["spec"][name] = pod_set["template"]["spec"][name]
            template["metadata"]["labels"].pop(POD_SET, None)
            if "minCount" in pod_set:
                job["spec"]["parallelism"] = pod_set["count"]

    def difference(self, job: Json, workload: Json) -> str:
        """What of an admitted job is not as it was admitted; empty for nothing."""
        if sum(job_kinds.counts(job).values()) != claim_of(workload).pods:
            return f"{job['metadata']['name']}: {job_kinds.counts(job)} pods, admitted with {claim_of(workload).pods}"
        for template in job_kinds.templates(job).values():
            selector = template["spec"].get("nodeSelector") or {}
            if not self.flavor.node_labels.items() <= selector.items():
                return f"{job['metadata']['name']}: node selector {selector}"
        return ""

    def replace(self, kind: JobKind, job: Json) -> Json:
        """Store a job, if it is still the one that was read."""
        return done(self.server.put(kind.path(job["metadata"]["namespace"], job["metadata"]["name"]), job))

    # -- Workloads --------------------------------------------------------------------------------------------------

    def at(self, workload: Json, part: str = "") -> str:
        """Where one Workload is."""
        return path(workload["metadata"]["namespace"], workload["metadata"]["name"], part)

    def tell(self, workload: Json, told: Iterable[tuple[str, bool, str, str]], **fields: Json) -> None:
        """Store conditions (type, truth, reason, message) and other fields of the status, if they say anything new."""
        held = {one["type"]: one for one in conditions(workload)}
        made = dict(held)
        for kind, truth, reason, message in told:
            before, status = held.get(kind, {}), "True" if truth else "False"
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            since = before["lastTransitionTime"] if before.get("status") == status else now
            made[kind] = {
                "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
            }  # fmt: skip
        if made == held and not fields:
            return
        version = {"resourceVersion": workload["metadata"]["resourceVersion"]}
        status = {"conditions": list(made.values()), **fields}
        done(self.server.patch(self.at(workload, "status"), {"metadata": version, "status": status}))

    def finish(self, workload: Json, succeeded: bool, message: str) -> None:
        """Its job has ended."""
        self.tell(workload, [("Finished", True, "Succeeded" if succeeded else "Failed", message or "Job finished")])
        self.release(workload)

    def evict(self, kind: JobKind, job: Json, workload: Json) -> None:
        """Stop a job that must give its quota back; it waits again once its controller counts no pod."""
        self.stop(kind, job, workload)
        if not holds(workload, "QuotaReserved") or job_kinds.is_active(job):
            return
        why = condition(workload, "Evicted")["message"]
        self.tell(
            workload,
            [
                ("QuotaReserved", False, "Pending", why),
                ("Admitted", False, "NoReservation", "The workload has no reservation"),
                ("Requeued", True, "Preempted", why),
            ],
            admission=None,
        )

    def release(self, workload: Json | None) -> None:
        """Hold up its deletion no longer."""
        if workload is None or FINALIZER not in (workload["metadata"].get("finalizers") or ()):
            return
        answer = self.server.patch(self.at(workload), {"metadata": {"finalizers": None}})
        assert answer.is_ok or answer.status in LATER, answer.message

    # -- Quota ------------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Give and take quota."""
        found = self.server.get(path()).made()["items"]
        alive = [one for one in found if "deletionTimestamp" not in one["metadata"] and not holds(one, "Finished")]
        decided = quota.schedule(self.quotas, self.flavor, map(claim_of, alive))
        for workload in alive:
            uid = workload["metadata"]["uid"]
            try:
                if uid in decided.admitted:
                    self.admit(workload, decided.admitted[uid])
                elif uid in decided.evicted and not holds(workload, "Evicted"):
                    why = decided.evicted[uid]
                    preempted = ("Preempted", True, "InClusterQueue", why)
                    self.tell(workload, [("Evicted", True, "Preempted", why), preempted])
                elif uid in decided.waiting:
                    reason, message = decided.waiting[uid]
                    self.tell(workload, [("QuotaReserved", False, reason, message)])
            except Later:
                continue

    def admit(self, workload: Json, pods: int) -> None:
        """Quota is reserved, and no admission check is asked for."""
        flavors = {"pods": self.flavor.name}
        one_set = len(workload["spec"]["podSets"]) == 1
        assignments = [
            {"name": one["name"], "count": pods if one_set else one["count"], "flavors": flavors}
            for one in workload["spec"]["podSets"]
        ]
        told = [
            ("QuotaReserved", True, "QuotaReserved", f"Quota reserved in ClusterQueue {CLUSTER_QUEUE}"),
            ("Admitted", True, "Admitted", "The workload is admitted"),
        ]
        for kind in ("Evicted", "Preempted", "Requeued"):
            if before := condition(workload, kind):
                message = f"Previously: {before['message'].removeprefix('Previously: ')}"
                told.append((kind, False, "QuotaReserved", message))
        self.tell(workload, told, admission={"clusterQueue": CLUSTER_QUEUE, "podSetAssignments": assignments})
