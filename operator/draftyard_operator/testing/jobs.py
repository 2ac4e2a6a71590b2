"""The Job controller, as far as this project relies on it: indexes, parallelism, failure policy, suspend.

Pods count once, when they end or are taken away. Retries come at once: Kubernetes' own backoff is not what is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from draftyard_operator.testing import pods
from draftyard_operator.testing.children import PodMaker, PodRule, controller_of, live, owned
from draftyard_operator.testing.deletion import Collector, is_ended, is_leaving
from draftyard_operator.testing.kinds import JOB, POD
from draftyard_operator.testing.store import Change, Store

Json = Any
INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass
class Ledger:
    """What a Job's pods have come to."""

    counted: set[str] = field(default_factory=set)
    """Uids of pods that are in here."""
    succeeded: int = 0
    failed: int = 0
    completed: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)
    """Failures that count, by index (0 without indexes)."""
    policy: str = ""
    """Why the failure policy ends the Job."""


def is_finished(job: Json) -> bool:
    """Whether a Job is Complete or Failed."""
    conditions = job.get("status", {}).get("conditions", ())
    return any(found["type"] in ("Complete", "Failed") and found["status"] == "True" for found in conditions)


def intervals(indexes: set[int]) -> str:
    """Indexes as the status writes them: `0-2,5`."""
    spans: list[list[int]] = []
    for index in sorted(indexes):
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def action(job: Json, pod: Json) -> tuple[str, str]:
    """What the failure policy says about a failed pod: Ignore, FailIndex, FailJob or Count; and why."""
    conditions = {found["type"] for found in pod["status"].get("conditions", ()) if found["status"] == "True"}
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules", ())):
        if any(wanted["type"] in conditions for wanted in rule.get("onPodConditions", ())):
            return rule["action"], f"Pod condition matching {rule['action']} rule at index {number}"
        codes = rule.get("onExitCodes")
        if codes and (pods.exit_code(pod) in codes["values"]) is (codes["operator"] == "In"):
            where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            return rule["action"], (
                f"Container {codes.get('containerName', '')} for pod {where} failed with exit code "
                f"{pods.exit_code(pod)} matching {rule['action']} rule at index {number}"
            )
    return "Count", ""


class JobController:
    """Turns Jobs into pods, and pods into a Job's status."""

    def __init__(self, store: Store, collector: Collector, rules: Sequence[PodRule] = ()) -> None:
        self.store = store
        self.collector = collector
        self.maker = PodMaker(store, rules)
        self.ledgers: dict[str, Ledger] = {}

    def see(self, change: Change) -> None:
        """Follow a change of a Job or of one of its pods."""
        if change.kind == JOB and change.type != "DELETED":
            self.sync(change.object)
        elif change.kind == JOB:
            self.ledgers.pop(change.object["metadata"]["uid"], None)
        elif change.kind == POD:
            job = controller_of(self.store, JOB, change.object)
            if job is not None:
                self._count(job, change)
                self.sync(job)

    # -- Counting ---------------------------------------------------------------------------------------------------

    def _count(self, job: Json, change: Change) -> None:
        pod, ledger = change.object, self._ledger(job)
        uid = pod["metadata"]["uid"]
        if uid in ledger.counted or not (is_ended(pod) or change.type == "DELETED"):
            return
        if change.type == "DELETED" and not pod["spec"].get("nodeName"):
            return
        ledger.counted.add(uid)
        index = index_of(pod)
        if pod["status"]["phase"] == "Succeeded":
            ledger.succeeded += 1
            ledger.completed.add(index)
            return
        if not job["spec"].get("suspend"):
            ledger.failed += 1
            self._judge(job, ledger, pod, index)

    def _judge(self, job: Json, ledger: Ledger, pod: Json, index: int) -> None:
        what, why = action(job, pod)
        spec = job["spec"]
        if what == "FailJob":
            ledger.policy = ledger.policy or why
        elif what == "FailIndex":
            ledger.given_up.add(index)
        elif what == "Count":
            ledger.failures[index] += 1
            if "backoffLimitPerIndex" in spec and ledger.failures[index] > spec["backoffLimitPerIndex"]:
                ledger.given_up.add(index)

    # -- Acting -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Try again what was refused."""
        for owner in self.maker.due():
            self.sync(owner)

    def sync(self, job: Json) -> None:
        """One look at a Job."""
        current = self.store.find(JOB, job["metadata"]["namespace"], job["metadata"]["name"])
        if current is None or current["metadata"]["uid"] != job["metadata"]["uid"]:
            return
        if is_leaving(current) or is_finished(current):
            return
        ledger, alive = self._ledger(current), live(owned(self.store, current, POD))
        end = verdict(current, ledger)
        if current["spec"].get("suspend") or end:
            self._stop_all(alive)
        else:
            self._start_missing(current, ledger, alive)
        self._report(current, ledger, end)

    def _stop_all(self, alive: list[Json]) -> None:
        for pod in alive:
            if not is_leaving(pod):
                self.collector.delete(POD, pod["metadata"]["namespace"], pod["metadata"]["name"], {})

    def _start_missing(self, job: Json, ledger: Ledger, alive: list[Json]) -> None:
        spec = job["spec"]
        busy = {index_of(pod) for pod in alive}
        free = spec.get("parallelism", 1) - len(alive)
        if spec.get("completionMode") == "Indexed":
            done = busy | ledger.completed | ledger.given_up
            wanted = [index for index in range(spec["completions"]) if index not in done]
        else:
            wanted = [0] * (spec.get("completions", 1) - ledger.succeeded - len(alive))
        for index in wanted[: max(free, 0)]:
            self._start(job, index)

    def _start(self, job: Json, index: int) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        labels = {"batch.kubernetes.io/job-name": name, "batch.kubernetes.io/controller-uid": uid, "job-name": name}
        indexed = job["spec"].get("completionMode") == "Indexed"
        marks = {INDEX: str(index)} if indexed else {}
        prefix = f"{name}-{index}" if indexed else name
        self.maker.make(job, f"{prefix}-{self.store.suffix()}", job["spec"]["template"], labels | marks, marks)

    def _report(self, job: Json, ledger: Ledger, end: tuple[str, str, str] | None) -> None:
        current = self.store.find(JOB, job["metadata"]["namespace"], job["metadata"]["name"])
        if current is None:
            return
        alive, now = live(owned(self.store, current, POD)), self.store.now()
        status = dict(current.get("status", {}))
        leaving = [pod for pod in alive if is_leaving(pod)]
        status |= {
            "active": len(alive) - len(leaving),
            "terminating": len(leaving),
            "ready": sum(pod["status"].get("phase") == "Running" for pod in alive),
            "succeeded": ledger.succeeded,
            "failed": ledger.failed,
        }
        if current["spec"].get("completionMode") == "Indexed":
            status["completedIndexes"] = intervals(ledger.completed)
            if "backoffLimitPerIndex" in current["spec"]:
                status["failedIndexes"] = intervals(ledger.given_up - ledger.completed)
        status["conditions"] = self._conditions(current, end, alive, now)
        if current["spec"].get("suspend"):
            status.pop("startTime", None)
        else:
            status.setdefault("startTime", now)
        if any(found["type"] == "Complete" for found in status["conditions"]):
            status["completionTime"] = now
        self.store.replace(JOB, current | {"status": status})

    def _conditions(self, job: Json, end: tuple[str, str, str] | None, alive: list[Json], now: str) -> list[Json]:
        conditions: list[Json] = list(job.get("status", {}).get("conditions", ()))
        held = {found["type"]: found["status"] for found in conditions}
        suspended = bool(job["spec"].get("suspend"))
        if suspended != (held.get("Suspended") == "True") and (suspended or "Suspended" in held):
            told = pods.condition(
                "Suspended", holds=suspended, time=now, reason="JobSuspended" if suspended else "JobResumed"
            )
            conditions = pods.with_condition(conditions, told)
        if end is None:
            return conditions
        kind, reason, message = end
        early = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
        for name in (early, kind) if not alive else (early,):
            if name not in held:
                conditions = pods.with_condition(
                    conditions, pods.condition(name, holds=True, time=now, reason=reason, message=message)
                )
        return conditions

    def _ledger(self, job: Json) -> Ledger:
        return self.ledgers.setdefault(job["metadata"]["uid"], Ledger())


def index_of(pod: Json) -> int:
    """Completion index of a pod; 0 without one."""
    return int(pod["metadata"].get("annotations", {}).get(INDEX, 0))


def verdict(job: Json, ledger: Ledger) -> tuple[str, str, str] | None:
    """Condition, reason and message of a Job that is over, or None."""
    spec = job["spec"]
    completions = spec.get("completions", 1)
    if ledger.policy:
        return "Failed", "PodFailurePolicy", ledger.policy
    if "backoffLimitPerIndex" in spec:
        failed = ledger.given_up - ledger.completed
        most = spec.get("maxFailedIndexes")
        if most is not None and len(failed) > most:
            return (
                "Failed",
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            )
        if failed and len(failed | ledger.completed) >= completions:
            return "Failed", "FailedIndexes", "Job has failed indexes"
    elif ledger.failures.total() > spec.get("backoffLimit", 6):
        return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    done = len(ledger.completed) if spec.get("completionMode") == "Indexed" else ledger.succeeded
    return (
        ("Complete", "CompletionsReached", "Reached expected number of succeeded pods") if done >= completions else None
    )
