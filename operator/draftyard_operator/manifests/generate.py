"""The stage `generate`: an Indexed Job, in which pod i makes shard i."""

from __future__ import annotations

from draftyard_operator.config import OperatorConfig
from draftyard_operator.manifests import pod
from draftyard_operator.manifests.work import MIN_PARALLELISM, Manifest, Work, child_metadata
from draftyard_operator.run import Run


def job(work: Work) -> Manifest:
    """A new attempt keeps all indexes: those whose shard is there cost seconds."""
    spec = work.run.wanted
    assert spec.hidden_states is not None
    assert work.status.plan is not None
    assert work.status.plan.shards is not None
    retries = spec.generate.retries_per_shard if spec.generate else 3
    parallel = parallelism(work.run, work.config, work.status.plan.shards)
    gpus = (spec.generate.gpus_per_pod if spec.generate else None) or spec.target.tensor_parallel
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(work, parallel),
        "spec": {
            "completionMode": "Indexed",
            "completions": work.status.plan.shards,
            "parallelism": parallel,
            "backoffLimitPerIndex": retries,
            "maxFailedIndexes": spec.hidden_states.max_failed_shards,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod.failure_policy(work.stage, by_index=True),
            "template": pod.template(work, gpus, env=pod.shutdown_environment(work)),
        },
    }


def metadata(work: Work, parallel: int) -> Manifest:
    """Shards do not need each other: where quota is short, a queue may begin with fewer pods."""
    made = child_metadata(work)
    if work.run.wanted.scheduling.queue_name is not None and parallel > 1:
        made["annotations"] = made["annotations"] | {MIN_PARALLELISM: "1"}
    return made


def parallelism(run: Run, config: OperatorConfig, shards: int) -> int:
    """Shards at the same time."""
    states = run.wanted.hidden_states
    assert states is not None
    return min(states.parallelism, config.max_parallelism, shards)
