"""Why Kueue lets a child wait, from the Workload that it has made for it. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Json = Any
JOB_UID = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: the job that it stands for."""


def read_wait(found: Iterable[Mapping[str, Json]]) -> str:
    """Kueue's own words; empty while it has none."""
    return next(filter(None, map(words, found)), "")


def words(workload: Mapping[str, Json]) -> str:
    """What one Workload says of its wait."""
    status = workload.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    quota, evicted = conditions.get("QuotaReserved", {}), conditions.get("Evicted", {})
    if quota.get("status") == "False":
        return str(quota.get("message", ""))
    if evicted.get("status") == "True":
        # its quota is taken back once its pods are gone
        return str(evicted.get("message", ""))
    checks = [check for check in status.get("admissionChecks") or () if check.get("state") != "Ready"]
    told = (": ".join(filter(None, (check["name"], check.get("message", "")))) for check in checks)
    return f"admission checks: {'; '.join(told)}" if checks else ""
