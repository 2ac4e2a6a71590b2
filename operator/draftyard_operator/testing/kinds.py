"""Kinds of objects that the fake server serves, and how discovery tells them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Json = Any
VERBS = ("create", "delete", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Kind:
    """One kind in one version."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True
    has_status: bool = True
    """The status is a subresource: writing the object leaves it alone, and the reverse."""
    short_names: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """As in objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As in messages of the API server: `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def path(self) -> str:
        """Where the API server serves the version."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"


NAMESPACE = Kind("", "v1", "Namespace", "namespaces", namespaced=False, short_names=("ns",))
POD = Kind("", "v1", "Pod", "pods", short_names=("po",))
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps", has_status=False, short_names=("cm",))
CLAIM = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", short_names=("pvc",))
EVENT = Kind("", "v1", "Event", "events", has_status=False, short_names=("ev",))
JOB = Kind("batch", "v1", "Job", "jobs")
DEFINITION = Kind(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    namespaced=False,
    short_names=("crd",),
)
BUILT_IN = (NAMESPACE, POD, CONFIG_MAP, CLAIM, EVENT, JOB, DEFINITION)

PYTORCH_JOB = Kind("kubeflow.org", "v1", "PyTorchJob", "pytorchjobs")
WORKLOAD = Kind("kueue.x-k8s.io", "v1beta2", "Workload", "workloads")


def open_definition(kind: Kind) -> Json:
    """A CustomResourceDefinition without a schema of its own: every field is kept."""
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
    }
    return {
        "apiVersion": DEFINITION.api_version,
        "kind": DEFINITION.name,
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {"group": kind.group, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def defined_kind(definition: Json) -> Kind:
    """The kind that a CustomResourceDefinition brings; the first version counts."""
    spec = definition["spec"]
    version = spec["versions"][0]
    return Kind(
        spec["group"],
        version["name"],
        spec["names"]["kind"],
        spec["names"]["plural"],
        namespaced=spec["scope"] == "Namespaced",
        has_status="status" in version.get("subresources", {}),
        short_names=tuple(spec["names"].get("shortNames", ())),
    )


def definition_schema(definition: Json) -> Json:
    """Its structural schema."""
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


# -- Discovery ------------------------------------------------------------------------------------------------------


def group_list(kinds: Iterable[Kind]) -> Json:
    """`/apis`."""
    versions: dict[str, dict[str, None]] = {}
    for kind in kinds:
        if kind.group:
            versions.setdefault(kind.group, {})[kind.version] = None
    groups = []
    for group, names in versions.items():
        listed = [{"groupVersion": f"{group}/{name}", "version": name} for name in names]
        groups.append({"name": group, "versions": listed, "preferredVersion": listed[0]})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def resource_list(api_version: str, kinds: Iterable[Kind]) -> Json:
    """`/api/v1` or `/apis/GROUP/VERSION`."""
    resources: list[Json] = []
    for kind in kinds:
        entry = {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.name,
            "verbs": list(VERBS),
        }
        resources.append(entry | ({"shortNames": list(kind.short_names)} if kind.short_names else {}))
        if kind.has_status:
            resources.append(
                entry | {"name": f"{kind.plural}/status", "singularName": "", "verbs": ["get", "patch", "update"]}
            )
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources}
