"""The stage `generate`: an Indexed Job, in which pod i makes shard i."""

from __future__ import annotations

from draftyard_operator.config import OperatorConfig
from draftyard_operator.manifests import pod
from draftyard_operator.manifests.work import Manifest, Work, child_metadata
from draftyard_operator.run import Run


def job(work: Work) -> Manifest:
    """A new attempt keeps all indexes: those whose shard is there cost seconds."""
    spec = work.run.wanted
    assert spec.hidden_states is not None
    assert work.status.plan is not None
    assert work.status.plan.shards is not None
    retries = spec.generate.retries_per_shard if spec.generate else 3
    gpus = (spec.generate.gpus_per_pod if spec.generate else None) or spec.target.tensor_parallel
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(work),
        "spec": {
            "completionMode": "Indexed",
            "completions": work.status.plan.shards,
            "parallelism": parallelism(work.run, work.config, work.status.plan.shards),
            "backoffLimitPerIndex": retries,
            "maxFailedIndexes": spec.hidden_states.max_failed_shards,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod.failure_policy(work.stage, by_index=True),
            "template": pod.template(work, gpus, env=pod.shutdown_environment(work)),
        },
    }


def parallelism(run: Run, config: OperatorConfig, shards: int) -> int:
    """Shards at the same time."""
    states = run.wanted.hidden_states
    assert states is not None
    return min(states.parallelism, config.max_parallelism, shards)
