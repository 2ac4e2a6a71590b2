"""One attempt of one stage: what every builder is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from draftyard_api import names
from draftyard_api.names import Stage
from draftyard_api.pod import Pod
from draftyard_api.status import DraftTrainingStatus
from draftyard_operator.config import OperatorConfig
from draftyard_operator.run import Run, stage_of

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """The attempt that the stored status asks for."""

    run: Run
    status: DraftTrainingStatus
    config: OperatorConfig
    stage: Stage

    @property
    def attempt(self) -> int:
        """Its number."""
        return stage_of(self.status, self.stage).attempt

    @property
    def name(self) -> str:
        """Of the child, and of its ConfigMap."""
        return names.child(self.run.name, self.stage, self.attempt)

    @property
    def pod(self) -> Pod:
        """How its pods run: a field of the stage's block replaces the same field of all stages'."""
        everywhere, block = self.run.wanted.pod, getattr(self.run.wanted, self.stage)
        own = {} if block is None else {name: getattr(block.pod, name) for name in block.pod.model_fields_set}
        return everywhere.model_copy(update={name: value for name, value in own.items() if value is not None})

    @property
    def labels(self) -> dict[str, str]:
        """What its objects are found by."""
        return {
            names.LABEL_MANAGED: "true",
            names.LABEL_RUN: self.run.name,
            names.LABEL_UID: self.run.uid,
            names.LABEL_STAGE: self.stage,
            names.LABEL_ATTEMPT: str(self.attempt),
        }


def owner(run: Run) -> Manifest:
    """What makes an object go with the DraftTraining."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": run.name,
        "uid": run.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(work: Work) -> Manifest:
    """Of a child or its ConfigMap. Labels of Argo, Flux or Helm on the object are theirs, and are not copied."""
    return {
        "name": work.name,
        "namespace": work.run.namespace,
        "labels": work.labels,
        "annotations": {"argocd.argoproj.io/ignore-resource-updates": "true"},
        "ownerReferences": [owner(work.run)],
    }


MIN_PARALLELISM = "kueue.x-k8s.io/job-min-parallelism"
"""On a Job: how many of its pods are enough for Kueue to start it."""


def child_metadata(work: Work) -> Manifest:
    """Of a child: with the queue that admits it."""
    made, scheduling = metadata(work), work.run.wanted.scheduling
    queue = {
        "kueue.x-k8s.io/queue-name": scheduling.queue_name,
        "kueue.x-k8s.io/priority-class": scheduling.workload_priority_class,
    }
    made["labels"] = made["labels"] | {name: value for name, value in queue.items() if value is not None}
    return made
