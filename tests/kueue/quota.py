"""Who may run: a quota of pods for each queue, in the order of priority and age. Values in, values out.

Of Kueue's scheduler only what an operator of jobs can see: one flavor, one queue behind each local queue, pods as the
only resource, priorities that preempt, and partial admission.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Flavor:
    """What is written into the pod templates of an admitted job."""

    name: str = "h100-spot"
    node_labels: Mapping[str, str] = field(default_factory=lambda: {"example.com/instance": "h100-spot"})
    tolerations: tuple[Mapping[str, str], ...] = (
        {"key": "example.com/spot", "operator": "Exists", "effect": "NoSchedule"},
    )


@dataclass(frozen=True)
class Claim:
    """A workload that runs, or wants to."""

    uid: str
    queue: str
    pods: int
    """Asked for; of one that has quota: what it has."""
    least: int | None = None
    priority: int = 0
    age: str = ""
    """When it was made; the smallest is the oldest."""
    has_quota: bool = False


@dataclass(frozen=True)
class Round:
    """What follows from one look at all workloads."""

    admitted: Mapping[str, int]
    """Pods of each workload that gets quota now."""
    evicted: Mapping[str, str]
    """Workloads that must give theirs back, and why."""
    waiting: Mapping[str, tuple[str, str]]
    """Reason and message of those that wait."""


def schedule(quotas: Mapping[str, int], flavor: Flavor, claims: Iterable[Claim]) -> Round:
    """One look at everybody."""
    admitted: dict[str, int] = {}
    evicted: dict[str, str] = {}
    waiting: dict[str, tuple[str, str]] = {}
    known = list(claims)
    free = {queue: quota - sum(one.pods for one in holders(known, queue)) for queue, quota in quotas.items()}
    for queue in [queue for queue, left in free.items() if left < 0]:
        for victim in victims(holders(known, queue), -free[queue]):
            evicted[victim.uid] = "Preempted to accommodate a workload of the cohort: the quota was reclaimed"
    for one in sorted((one for one in known if not one.has_quota), key=lambda one: (-one.priority, one.age)):
        if one.queue not in quotas:
            waiting[one.uid] = ("Inadmissible", f"LocalQueue {one.queue} doesn't exist")
            continue
        left = max(free[one.queue], 0)
        given = one.pods if left >= one.pods else left if one.least is not None and left >= one.least else 0
        if given:
            admitted[one.uid] = given
            free[one.queue] -= given
            continue
        lower = [other for other in holders(known, one.queue) if other.priority < one.priority]
        for victim in victims(lower, one.pods - left):
            evicted[victim.uid] = f"Preempted to accommodate a workload (UID: {one.uid}) due to prioritization"
        missing = f"insufficient unused quota for pods in flavor {flavor.name}, {one.pods - left} more needed"
        waiting[one.uid] = ("Pending", f"couldn't assign flavors to pod set main: {missing}")
        # nobody behind it takes what it waits for
        free[one.queue] = 0
    return Round(admitted, evicted, waiting)


def holders(claims: Iterable[Claim], queue: str) -> list[Claim]:
    """Workloads of a queue that have quota."""
    return [one for one in claims if one.queue == queue and one.has_quota]


def victims(candidates: Sequence[Claim], needed: int) -> list[Claim]:
    """Whom to evict for so many pods: the least important and youngest first; nobody when it would not be enough."""
    chosen: list[Claim] = []
    youngest = sorted(candidates, key=lambda one: one.age, reverse=True)
    for one in sorted(youngest, key=lambda one: one.priority):
        if needed > 0:
            chosen.append(one)
            needed -= one.pods
    return [] if needed > 0 else chosen
