"""An Indexed Job, in which pod i makes shard i: what `regenerate` and `generate` run as."""

from __future__ import annotations

from dataclasses import dataclass

from draftyard_api.names import Stage
from draftyard_operator.config import OperatorConfig
from draftyard_operator.manifests import pod
from draftyard_operator.manifests.work import MIN_PARALLELISM, Manifest, Work, child_metadata
from draftyard_operator.run import Run, parallelism_of, shards_of


@dataclass(frozen=True)
class Shards:
    """How a stage's shards are made."""

    gpus: int
    """Of each pod."""
    retries: int
    """Failures of one shard before it is given up."""
    max_failed: int = 0
    """Shards that may be missing."""


def job(work: Work, asked: Shards) -> Manifest:
    """A new attempt keeps all indexes: those whose shard is there cost seconds."""
    shards = shards_of(work.status, work.stage)
    assert shards is not None
    parallel = parallelism(work.run, work.config, work.stage, shards)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(work, parallel),
        "spec": {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": parallel,
            "backoffLimitPerIndex": asked.retries,
            "maxFailedIndexes": asked.max_failed,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod.failure_policy(work.stage, by_index=True),
            "template": pod.template(work, asked.gpus, env=pod.shutdown_environment(work)),
        },
    }


def metadata(work: Work, parallel: int) -> Manifest:
    """Shards do not need each other: where quota is short, a queue may begin with fewer pods."""
    made = child_metadata(work)
    if work.run.wanted.scheduling.queue_name is not None and parallel > 1:
        made["annotations"] = made["annotations"] | {MIN_PARALLELISM: "1"}
    return made


def parallelism(run: Run, config: OperatorConfig, stage: Stage, shards: int) -> int:
    """Shards at the same time."""
    return min(parallelism_of(run.wanted, stage), config.max_parallelism, shards)
