"""Workloads, as Kueue makes them for jobs and tells what it has decided."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import job_kinds
import trainings
import yaml
from api_server import Answer, ApiServer
from job_kinds import JobKind
from quota import Claim

Json = Any

DEFINITION = Path(__file__).with_name("workloads.yaml")
VERSION = "kueue.x-k8s.io/v1beta2"
JOB_UID = "kueue.x-k8s.io/job-uid"
FINALIZER = "kueue.x-k8s.io/resource-in-use"
LATER = (404, 409)
"""Somebody was faster: what follows is found at the next look."""


class Later(Exception):
    """An object has changed since it was read."""


def done(answer: Answer) -> Json:
    """What was stored. Raises Later, and AssertionError with the server's words when it refuses."""
    if answer.status in LATER:
        raise Later(answer.message)
    return answer.made()


def path(namespace: str = "", name: str = "", part: str = "") -> str:
    """Where Workloads are."""
    place = ("namespaces", namespace) if namespace else ()
    return "/".join(filter(None, ("apis", VERSION, *place, "workloads", name, part)))


def install(server: ApiServer) -> None:
    """Define Workloads, and wait until they are served."""
    server.post(trainings.DEFINITIONS, yaml.safe_load(DEFINITION.read_text())).made()
    trainings.eventually(lambda: server.get(path()).is_ok)


def holds(workload: Json, kind: str) -> bool:
    """Whether one of its conditions is True."""
    return any(one["type"] == kind and one["status"] == "True" for one in conditions(workload))


def conditions(workload: Json) -> list[Json]:
    """All of its conditions."""
    return (workload.get("status") or {}).get("conditions") or []


def condition(workload: Json, kind: str) -> Json:
    """One of its conditions; an empty one when it is not there."""
    return next((one for one in conditions(workload) if one["type"] == kind), {})


def owner_uid(workload: Json) -> str:
    """The job that it stands for."""
    return next(one["uid"] for one in workload["metadata"]["ownerReferences"] if one.get("controller"))


def made_for(kind: JobKind, job: Json, priorities: Mapping[str, int]) -> Json:
    """The Workload of a new job."""
    metadata, least = job["metadata"], job_kinds.min_count(job)
    digest = hashlib.sha256(metadata["uid"].encode()).hexdigest()[:5]
    owner = {"apiVersion": kind.api_version, "kind": kind.name, "name": metadata["name"], "uid": metadata["uid"]}
    return {
        "apiVersion": VERSION,
        "kind": "Workload",
        "metadata": {
            "name": f"{kind.name.lower()}-{metadata['name']}-{digest}",
            "labels": {JOB_UID: metadata["uid"]},
            "finalizers": [FINALIZER],
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        },
        "spec": {
            "queueName": job_kinds.queue_of(job),
            "priority": priorities.get(metadata["labels"].get(job_kinds.PRIORITY, ""), 0),
            "podSets": [
                {"name": name, "template": template, "count": job_kinds.counts(job)[name]}
                | ({"minCount": least} if least is not None else {})
                for name, template in job_kinds.templates(job).items()
            ],
        },
    }


def claim_of(workload: Json) -> Claim:
    """The Workload as the quota sees it."""
    spec, admission = workload["spec"], (workload.get("status") or {}).get("admission") or {}
    given = {one["name"]: one["count"] for one in admission.get("podSetAssignments", ())}
    return Claim(
        uid=workload["metadata"]["uid"],
        queue=spec["queueName"],
        pods=sum(given.get(one["name"], one["count"]) for one in spec["podSets"]),
        least=next((one["minCount"] for one in spec["podSets"] if "minCount" in one), None),
        priority=spec.get("priority", 0),
        # names keep apart what was made within one second
        age=f"{workload['metadata']['creationTimestamp']} {workload['metadata']['name']}",
        has_quota=holds(workload, "QuotaReserved"),
    )
