"""Where things lie: the workspace's claim, volumes, and the environment that opens buckets. Secrets by name only."""

from __future__ import annotations

from draftyard_api import names
from draftyard_api.names import S3_CREDENTIALS, S3_HOLDERS, Stage
from draftyard_api.schema import S3Access, SecretRef
from draftyard_operator.manifests.work import Manifest, Work, metadata, owner
from draftyard_operator.run import Run, claim_name, named_claims
from draftyard_operator.tasks import claim_mount, render, task

WORKSPACE = "workspace"
SCRATCH = "/scratch"
TASK = "task"
READ_DATA = (Stage.REGENERATE, Stage.PREPARE)
"""Stages that read data.source."""
RETAINED_NOTES = {
    "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
    "argocd.argoproj.io/sync-options": "Prune=false",
}


def task_config_map(work: Work) -> Manifest:
    """The task of an attempt, which nobody can change."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(work),
        "immutable": True,
        "data": {names.TASK_FILE: render(task(work.run, work.status, work.stage))},
    }


def workspace_claim(run: Run) -> Manifest:
    """The claim of claimTemplate: with `reclaim: Delete` it goes with the object, else it outlives it."""
    pvc = run.wanted.workspace.pvc
    assert pvc is not None
    assert pvc.claim_template is not None
    template = pvc.claim_template
    is_retained = template.reclaim == "Retain"
    storage_class = {"storageClassName": template.storage_class_name} if template.storage_class_name else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": names.claim(run.name),
            "namespace": run.namespace,
            "labels": {names.LABEL_MANAGED: "true", names.LABEL_CLAIM_OF: run.name},
            **({"annotations": dict(RETAINED_NOTES)} if is_retained else {"ownerReferences": [owner(run)]}),
        },
        "spec": {
            "accessModes": list(template.access_modes),
            "resources": {"requests": {"storage": template.size}},
            **storage_class,
        },
    }


# -- In the pod -------------------------------------------------------------------------------------------------------


def volumes(work: Work) -> list[Manifest]:
    """The task, scratch space, shared memory, and every claim."""
    shm = work.pod.shm_size
    memory = {"medium": "Memory", **({"sizeLimit": str(shm)} if shm is not None else {})}
    made: list[Manifest] = [
        {"name": "state", "emptyDir": {}},
        {"name": TASK, "configMap": {"name": work.name}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": memory},
    ]
    claim = claim_name(work.run)
    if claim is not None:
        made.append({"name": WORKSPACE, "persistentVolumeClaim": {"claimName": claim}})
    made += [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}
        for number, name in enumerate(other_claims(work.run))
    ]
    return made


def mounts(work: Work) -> list[Manifest]:
    """Where they appear."""
    made: list[Manifest] = [
        {"name": "state", "mountPath": names.DEFAULT_STATE_DIR},
        {"name": TASK, "mountPath": names.TASK_DIR, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  a volume of the pod's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    if claim_name(work.run) is not None:
        made.append({"name": WORKSPACE, "mountPath": names.WORKSPACE_MOUNT})
    made += [
        {"name": f"claim-{number}", "mountPath": claim_mount(work.run, name), "readOnly": True}
        for number, name in enumerate(other_claims(work.run))
    ]
    return made


def other_claims(run: Run) -> list[str]:
    """Claims besides the workspace's."""
    return [name for name in named_claims(run.wanted) if name != claim_name(run)]


# -- The environment --------------------------------------------------------------------------------------------------


def environment(work: Work) -> list[Manifest]:
    """Keys of Secrets under the names that the trainer reads."""
    spec = work.run.wanted
    made: list[Manifest] = []
    made += secret("HF_TOKEN", spec.target.token_secret_ref)
    made += credentials("workspace", spec.workspace.s3)
    made += credentials("target", spec.target.s3)
    if work.stage in READ_DATA:
        made += credentials("data", spec.data.source.s3)
    if work.stage is Stage.PREPARE:
        made += credentials("draft", spec.draft.s3)
    if work.stage is Stage.REGENERATE:
        own = spec.data.regenerate
        made += secret(names.ENV_ENGINE_KEY, own.engine.secret_ref if own and own.engine else None)
    if work.stage is Stage.EVALUATE and spec.evaluate is not None and spec.evaluate.engine is not None:
        made += secret(names.ENV_ENGINE_KEY, spec.evaluate.engine.secret_ref)
    if work.stage in (Stage.TRAIN, Stage.EVALUATE):
        tracking = spec.tracking
        made += secret("WANDB_API_KEY", tracking.wandb.secret_ref if tracking.wandb else None)
        made += secret("SWANLAB_API_KEY", tracking.swanlab.secret_ref if tracking.swanlab else None)
        made += secret("MLFLOW_TRACKING_TOKEN", tracking.mlflow.secret_ref if tracking.mlflow else None)
    return made


def secret(name: str, ref: SecretRef | None) -> list[Manifest]:
    """A key of a Secret as an environment variable; nothing without one."""
    return [] if ref is None else [from_secret(name, ref.name, ref.key or name)]


def credentials(holder: str, access: S3Access | None) -> list[Manifest]:
    """Credentials of one location; without a Secret the pod's ServiceAccount is the identity."""
    ref = access.credentials_secret_ref if access is not None else None
    if ref is None:
        return []
    *required, session = S3_CREDENTIALS
    prefix = S3_HOLDERS[holder]
    made = [from_secret(f"{prefix}{key}", ref.name, key) for key in required]
    return [*made, from_secret(f"{prefix}{session}", ref.name, session, is_optional=True)]


def from_secret(name: str, holder: str, key: str, *, is_optional: bool = False) -> Manifest:
    """One environment variable. The value is read by the kubelet, never by us."""
    ref: Manifest = {"name": holder, "key": key}
    return {"name": name, "valueFrom": {"secretKeyRef": ref | ({"optional": True} if is_optional else {})}}
