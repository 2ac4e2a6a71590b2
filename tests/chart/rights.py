"""What the operator may do: the table of docs/install.md as data."""

from __future__ import annotations

from dataclasses import dataclass

CHILD = ("get", "list", "watch", "create", "delete")


@dataclass(frozen=True)
class Right:
    """Verbs on one resource, and the value that switches it on; empty: always on."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    value: str = ""


WATCHED = (
    Right("draftyard.dev", "drafttrainings", ("get", "list", "watch")),
    Right("draftyard.dev", "drafttrainings/status", ("patch",)),
    Right("draftyard.dev", "drafttrainings/finalizers", ("update",)),
    Right("batch", "jobs", (*CHILD, "patch")),
    Right("kubeflow.org", "pytorchjobs", CHILD, "pytorchJobs"),
    Right("", "configmaps", ("get", "create")),
    Right("", "persistentvolumeclaims", ("get", "list", "create", "patch")),
    Right("", "pods", ("list",)),
    Right("", "events", ("list", "create")),
    Right("kueue.x-k8s.io", "workloads", ("list",), "kueue"),
)
"""In every namespace that is watched."""
CLUSTER = (Right("apiextensions.k8s.io", "customresourcedefinitions", ("list", "watch")),)
"""In the cluster, when all namespaces are watched."""


def triples(rights: tuple[Right, ...], on: tuple[str, ...] = ("pytorchJobs",)) -> set[tuple[str, str, str]]:
    """Group, resource and verb of what is granted while some values are on."""
    return {
        (right.group, right.resource, verb) for right in rights if not right.value or right.value in on
        for verb in right.verbs
    }  # fmt: skip
