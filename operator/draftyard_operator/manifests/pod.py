"""The pod that all stages share: passes Pod Security `restricted`, has no token, and runs `draftyard <stage>`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from draftyard_api import names
from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.plan import dump
from draftyard_api.pod import Pod
from draftyard_operator.failure import PERMANENT
from draftyard_operator.manifests import storage
from draftyard_operator.manifests.work import Manifest, Work

GRACE_SECONDS = {
    Stage.REGENERATE: 60,
    Stage.PREPARE: 60,
    Stage.GENERATE: 120,
    Stage.TRAIN: 300,
    Stage.EVALUATE: 60,
}
"""Between SIGTERM and SIGKILL: a part of a shard of states, or a step and a checkpoint, must fit."""
SPARE_SECONDS = 20
"""What PID 1 has after torchrun has given its workers up."""
PASSED_ON = (
    "imagePullSecrets", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "runtimeClassName",
    "serviceAccountName",
)  # fmt: skip
"""Fields of a pod block that are Kubernetes' own, under the same names."""
NOT_COUNTED = (ExitCode.UNAVAILABLE, ExitCode.INTERRUPTED, ExitCode.FENCED)
ENDS_THE_JOB = tuple(sorted({*PERMANENT, ExitCode.NO_SPACE, ExitCode.STALE_INPUT}))


def template(work: Work, gpus: int, container: str | None = None, env: Mapping[str, str] | None = None) -> Manifest:
    """The pod template of a stage. `container` is its container's name, by default the stage."""
    pod = work.pod
    told = dump(pod)
    return {
        "metadata": {
            "labels": {**told.get("labels", {}), **work.labels},
            **({"annotations": told["annotations"]} if "annotations" in told else {}),
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_seconds(work),
            "securityContext": pod_security(pod, work.config.fs_group),
            **scheduling(work),
            **{field: told[field] for field in PASSED_ON if field in told},
            "containers": [stage_container(work, gpus, container or work.stage, env or {})],
            "volumes": [*storage.volumes(work), *told.get("volumes", ())],
        },
    }


def stage_container(work: Work, gpus: int, name: str, env: Mapping[str, str]) -> Manifest:
    """The one container: arguments are a list, and no text of the spec reaches a shell."""
    told = dump(work.pod)
    return {
        "name": name,
        "image": work.pod.image or work.config.trainer_image,
        **({"imagePullPolicy": told["imagePullPolicy"]} if "imagePullPolicy" in told else {}),
        "command": ["draftyard"],
        "args": [str(work.stage), "--task", f"{names.TASK_DIR}/{names.TASK_FILE}"],
        "env": [*environment(env), *storage.environment(work), *told.get("env", ())],
        "ports": [{"name": "progress", "containerPort": names.PROGRESS_PORT, "protocol": "TCP"}],
        "resources": resources(told.get("resources", {}), work.config.gpu_resource, gpus),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*storage.mounts(work), *told.get("volumeMounts", ())],
    }


def environment(extra: Mapping[str, str]) -> list[Manifest]:
    """What is the same in every stage: caches go to scratch space, since the root is read-only."""
    fixed = {
        "HOME": f"{storage.SCRATCH}/home",
        "HF_HOME": f"{storage.SCRATCH}/huggingface",
        "TRITON_CACHE_DIR": f"{storage.SCRATCH}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{storage.SCRATCH}/inductor",
        names.ENV_STATE_DIR: names.DEFAULT_STATE_DIR,
        names.ENV_PROGRESS_PORT: str(names.PROGRESS_PORT),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }
    return [{"name": name, "value": value} for name, value in fixed.items()]


def grace_seconds(work: Work) -> int:
    """Between SIGTERM and SIGKILL."""
    return work.pod.termination_grace_period_seconds or GRACE_SECONDS[work.stage]


def shutdown_environment(work: Work) -> dict[str, str]:
    """How long torchrun waits: it kills its workers 30 s after SIGTERM unless told otherwise."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(grace_seconds(work) - SPARE_SECONDS, 10))}


def resources(asked: Mapping[str, Any], gpu_resource: str, gpus: int) -> Manifest:
    """CPU and memory as asked for; GPUs as a limit, where the cluster counts them."""
    made: Manifest = {name: dict(value) for name, value in asked.items()}
    if gpus and gpu_resource:
        made["limits"] = {**made.get("limits", {}), gpu_resource: gpus}
    return made


def pod_security(pod: Pod, fs_group: int | None) -> Manifest:
    """User and groups may be chosen; everything else is what `restricted` asks for."""
    told = dump(pod).get("securityContext", {})
    group = {"fsGroup": fs_group} if fs_group is not None else {}
    return {
        **group,
        **told,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroupChangePolicy": "OnRootMismatch",
    }


def scheduling(work: Work) -> Manifest:
    """Priority and scheduler of the pod."""
    block = work.run.wanted.scheduling
    made = {"priorityClassName": block.priority_class_name, "schedulerName": block.scheduler_name}
    return {name: value for name, value in made.items() if value is not None}


# -- Jobs -------------------------------------------------------------------------------------------------------------


def failure_policy(container: str, *, by_index: bool = False) -> Manifest:
    """What the Job controller does with a pod that failed; the first rule that matches wins."""

    def on_codes(action: str, codes: tuple[ExitCode, ...]) -> Manifest:
        values = sorted(int(code) for code in codes)
        return {"action": action, "onExitCodes": {"containerName": container, "operator": "In", "values": values}}

    given_up = [on_codes("FailIndex", (ExitCode.BAD_SHARD,))] if by_index else []
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            on_codes("Ignore", NOT_COUNTED),
            *given_up,
            on_codes("FailJob", ENDS_THE_JOB),
        ]
    }


def one_pod_job(made: Manifest) -> Manifest:
    """A Job of one pod. A disrupted pod is replaced within the attempt; any other failure ends it."""
    container = made["spec"]["containers"][0]["name"]
    return {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": failure_policy(container),
        "template": made,
    }
