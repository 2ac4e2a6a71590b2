"""The part of a pod that a person may set: an allow-list, not a PodTemplateSpec.

A whole PodTemplateSpec makes CRDs of 0.6 to 1.4 MB, and opens host namespaces, privilege and commands.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from draftyard_api.schema import ENV_NAME_PATTERN, MAX_ITEMS, Model, Name, Quantity, Text, TextMap

Resources = Annotated[dict[str, Quantity], Field(max_length=MAX_ITEMS)]
OpenObject = dict[str, Any]
"""A Kubernetes object that is passed on as it is (`x-kubernetes-preserve-unknown-fields`)."""


class ResourceRequirements(Model):
    """CPU, memory and other plain resources; GPUs are counted by `gpusPerNode` and `gpusPerPod`."""

    requests: Resources | None = None
    """What is reserved."""
    limits: Resources | None = None
    """What may not be exceeded."""


class Toleration(Model):
    """A taint that the pod puts up with."""

    key: Text | None = None
    """Taint key; empty matches all."""
    operator: Literal["Exists", "Equal"] | None = None
    """How key and value are compared."""
    value: Annotated[str, Field(max_length=253)] | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches all."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is put up with."""


class KeySelector(Model):
    """A key of a Secret or a ConfigMap."""

    name: Name
    """Name of the object."""
    key: Text
    """Key inside it."""
    optional: bool | None = None
    """True: an absent key is no error."""


class EnvSource(Model):
    """Where the value of an environment variable comes from."""

    secret_key_ref: KeySelector | None = None
    """Key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """Key of a ConfigMap."""


class EnvVar(Model):
    """One environment variable of the stage's container."""

    name: Annotated[str, Field(max_length=253, pattern=ENV_NAME_PATTERN)]
    """Name; `PET_*`, most of `DRAFTYARD_*`, RANK, WORLD_SIZE, LOCAL_RANK, `MASTER_*` are the operator's."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """The value itself."""
    value_from: EnvSource | None = None
    """Or where it comes from."""


class KeyPath(Model):
    """Which key of a ConfigMap or Secret appears under which file name."""

    key: Text
    """Key."""
    path: Text
    """File name."""


class ClaimVolume(Model):
    """A PersistentVolumeClaim as a volume."""

    claim_name: Name
    """Name of the claim."""
    read_only: bool | None = None
    """Mount it read-only."""


class ConfigMapVolume(Model):
    """A ConfigMap as a volume."""

    name: Name
    """Name of the ConfigMap."""
    items: Annotated[tuple[KeyPath, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Keys to show; by default all."""


class SecretVolume(Model):
    """A Secret as a volume."""

    secret_name: Name
    """Name of the Secret."""
    items: Annotated[tuple[KeyPath, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Keys to show; by default all."""


class EmptyDirVolume(Model):
    """Scratch space that lives as long as the pod."""

    medium: Literal["", "Memory"] | None = None
    """`Memory` for tmpfs."""
    size_limit: Quantity | None = None
    """Upper bound."""


class Volume(Model):
    """A volume of the pod: exactly one source."""

    name: Name
    """Name that volumeMounts refer to."""
    persistent_volume_claim: ClaimVolume | None = None
    """A claim."""
    config_map: ConfigMapVolume | None = None
    """A ConfigMap."""
    secret: SecretVolume | None = None
    """A Secret."""
    empty_dir: EmptyDirVolume | None = None
    """Scratch space."""


class VolumeMount(Model):
    """Where a volume appears in the container."""

    name: Name
    """Name of the volume."""
    mount_path: Text
    """Path; not below /data or /run/draftyard."""
    sub_path: Text | None = None
    """Folder inside the volume."""
    read_only: bool | None = None
    """Mount it read-only."""


class LocalRef(Model):
    """A reference to an object of the same namespace."""

    name: Name
    """Its name."""


class PodSecurity(Model):
    """Identity of the pod; everything else of its security context is fixed and passes `restricted`."""

    run_as_user: Annotated[int, Field(ge=1)] | None = None
    """User id."""
    run_as_group: Annotated[int, Field(ge=1)] | None = None
    """Group id."""
    fs_group: Annotated[int, Field(ge=1)] | None = None
    """Group that owns the volumes."""
    supplemental_groups: Annotated[tuple[int, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Further groups."""


class Pod(Model):
    """How a pod runs. A field of `<stage>.pod` replaces the same field of `spec.pod` as a whole."""

    image: Text | None = None
    """Image of the trainer; by default the operator's `config.trainerImage`."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled."""
    image_pull_secrets: Annotated[tuple[LocalRef, ...], Field(max_length=16)] | None = None
    """Secrets for the registry."""
    resources: ResourceRequirements | None = None
    """CPU and memory."""
    node_selector: TextMap | None = None
    """Labels that the node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Taints that the pod puts up with."""
    affinity: OpenObject | None = None
    """Kubernetes affinity, passed on as it is."""
    topology_spread_constraints: Annotated[tuple[OpenObject, ...], Field(max_length=16)] | None = None
    """Kubernetes topology spread constraints, passed on as they are."""
    runtime_class_name: Name | None = None
    """RuntimeClass."""
    service_account_name: Name | None = None
    """ServiceAccount; its token is never mounted."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Environment of the stage's container."""
    volumes: Annotated[tuple[Volume, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Further volumes."""
    volume_mounts: Annotated[tuple[VolumeMount, ...], Field(max_length=MAX_ITEMS)] | None = None
    """Where they appear."""
    labels: TextMap | None = None
    """Further labels of the pod."""
    annotations: TextMap | None = None
    """Further annotations of the pod."""
    security_context: PodSecurity | None = None
    """User and groups."""
    termination_grace_period_seconds: Annotated[int, Field(ge=30, le=3600)] | None = None
    """Time between SIGTERM and SIGKILL: one optimizer step and one checkpoint must fit."""
    shm_size: Quantity | None = None
    """Size of /dev/shm."""
