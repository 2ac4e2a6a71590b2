"""Kinds of objects that the operator reads or writes, and where the API server has them."""

from __future__ import annotations

from dataclasses import dataclass

from draftyard_api.names import GROUP, PLURAL, VERSION


@dataclass(frozen=True)
class Kind:
    """A resource of one group and version; all are namespaced."""

    group: str
    version: str
    plural: str

    @property
    def prefix(self) -> str:
        """Of its paths."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str = "", name: str = "", part: str = "") -> str:
        """Of the collection, of one object, or of a part of it; without a namespace, of all of them."""
        place = f"{self.prefix}/namespaces/{namespace}" if namespace else self.prefix
        return "/".join(filter(None, (place, self.plural, name, part)))


RUN = Kind(GROUP, VERSION, PLURAL)
JOB = Kind("batch", "v1", "jobs")
PYTORCH_JOB = Kind("kubeflow.org", "v1", "pytorchjobs")
POD = Kind("", "v1", "pods")
CONFIG_MAP = Kind("", "v1", "configmaps")
CLAIM = Kind("", "v1", "persistentvolumeclaims")
EVENT = Kind("", "v1", "events")
WORKLOADS = tuple(Kind("kueue.x-k8s.io", version, "workloads") for version in ("v1beta2", "v1beta1"))
"""Kueue serves the first since 0.15, and the second until 0.19."""
