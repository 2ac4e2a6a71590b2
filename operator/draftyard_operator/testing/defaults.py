"""What the API server adds to built-in kinds, and what it does not let anybody change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from draftyard_operator.testing.kinds import CLAIM, CONFIG_MAP, JOB, POD, Kind

Json = Any
FIXED = {
    JOB: ("completions", "completionMode", "selector", "template", "backoffLimitPerIndex"),
    CLAIM: ("accessModes",),
}
"""Fields of the spec that stay as they were made."""


def filled(kind: Kind, given: Json) -> Json:
    """The object with the defaults of its kind."""
    if kind == JOB:
        return given | {"spec": filled_job(given["spec"], given["metadata"])}
    if kind == POD:
        return given | {"status": {"phase": "Pending"}}
    if kind == CLAIM:
        spec = {"volumeMode": "Filesystem"} | given["spec"]
        return given | {"spec": spec, "status": {"phase": "Pending"}}
    return given


def filled_job(spec: Json, metadata: Json) -> Json:
    """The spec of a Job, as one reads it back."""
    found = {"parallelism": 1, "completionMode": "NonIndexed", "suspend": False, "manualSelector": False} | spec
    if found["completionMode"] == "NonIndexed":
        found.setdefault("completions", 1)
    found.setdefault("backoffLimit", 2147483647 if "backoffLimitPerIndex" in found else 6)
    found.setdefault("podReplacementPolicy", "Failed" if "podFailurePolicy" in found else "TerminatingOrFailed")
    template = found["template"]
    labels = {"batch.kubernetes.io/job-name": metadata["name"], "job-name": metadata["name"]}
    inner = template.get("metadata") or {}
    found["template"] = template | {
        "metadata": inner | {"labels": {**(inner.get("labels") or {}), **labels}},
        "spec": filled_pod(template["spec"]),
    }
    return found


def filled_pod(spec: Json) -> Json:
    """The spec of a pod, as one reads it back."""
    added = {
        "dnsPolicy": "ClusterFirst",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
    }
    container = {
        "imagePullPolicy": "IfNotPresent",
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }
    return added | spec | {"containers": [container | given for given in spec["containers"]]}


def mistakes(kind: Kind, given: Json) -> Iterator[tuple[str, str]]:
    """Fields of a new object without which a built-in kind cannot be."""
    if kind != JOB:
        return
    template = given.get("spec", {}).get("template", {}).get("spec", {})
    if not template.get("containers"):
        yield "spec.template.spec.containers", "Required value"
    if template.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy", f"Unsupported value: {template.get('restartPolicy')!r}"
    if given.get("spec", {}).get("completionMode") == "Indexed" and "completions" not in given["spec"]:
        yield "spec.completions", "Required value: when completion mode is Indexed"


def frozen(kind: Kind, before: Json, after: Json) -> Iterator[tuple[str, str]]:
    """Fields that a change may not touch."""
    for name in FIXED.get(kind, ()):
        if before["spec"].get(name) != after.get("spec", {}).get(name):
            yield f"spec.{name}", "Invalid value: field is immutable"
    if kind == CONFIG_MAP and before.get("immutable") and before.get("data") != after.get("data"):
        yield "data", "Forbidden: field is immutable when `immutable` is set"
