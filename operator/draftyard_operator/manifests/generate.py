"""The stage `generate`: an Indexed Job, in which pod i stores shard i of the target's states."""

from __future__ import annotations

from draftyard_operator.manifests import indexed
from draftyard_operator.manifests.indexed import Shards
from draftyard_operator.manifests.work import Manifest, Work


def job(work: Work) -> Manifest:
    """Each pod holds the target."""
    spec = work.run.wanted
    assert spec.hidden_states is not None
    retries = spec.generate.retries_per_shard if spec.generate else 3
    gpus = (spec.generate.gpus_per_pod if spec.generate else None) or spec.target.tensor_parallel
    return indexed.job(work, Shards(gpus, retries, spec.hidden_states.max_failed_shards))
