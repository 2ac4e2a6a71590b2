"""What stages run as: one row per kind. Deleting, fencing, progress and results are the same for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from draftyard_api.names import Stage
from draftyard_api.status import Backend
from draftyard_operator.config import OperatorConfig
from draftyard_operator.kinds import JOB, PYTORCH_JOB, Kind
from draftyard_operator.manifests import evaluate, generate, prepare, regenerate, train
from draftyard_operator.manifests.work import Manifest, Work
from draftyard_operator.observe import Child, read_job, read_pytorch_job

Build = Callable[[Work], Manifest]


@dataclass(frozen=True)
class Row:
    """One kind of child."""

    kind: Kind
    builds: Mapping[Stage, Build]
    read: Callable[[Mapping[str, Any]], Child | None]


BACKENDS: Mapping[Backend, Row] = {
    "Job": Row(
        JOB,
        {
            Stage.REGENERATE: regenerate.job,
            Stage.PREPARE: prepare.job,
            Stage.GENERATE: generate.job,
            Stage.TRAIN: train.job,
            Stage.EVALUATE: evaluate.job,
        },
        read_job,
    ),
    "PyTorchJob": Row(PYTORCH_JOB, {Stage.TRAIN: train.pytorch_job}, read_pytorch_job),
}


def allowed(config: OperatorConfig) -> Mapping[Backend, Row]:
    """What this operator may watch, list and make."""
    return {kind: row for kind, row in BACKENDS.items() if kind != "PyTorchJob" or config.pytorch_jobs}


def backend_of(work: Work) -> Backend:
    """What this stage runs as: only training has a choice."""
    return (work.status.backend or "Job") if work.stage is Stage.TRAIN else "Job"


def child_manifest(work: Work) -> Manifest:
    """The Job or PyTorchJob of the attempt."""
    return BACKENDS[backend_of(work)].builds[work.stage](work)
