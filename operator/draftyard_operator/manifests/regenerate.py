"""The stage `regenerate`: an Indexed Job, in which pod i lets the target answer shard i of the conversations."""

from __future__ import annotations

from draftyard_operator.manifests import indexed
from draftyard_operator.manifests.indexed import Shards
from draftyard_operator.manifests.work import Manifest, Work
from draftyard_operator.run import answering_gpus


def job(work: Work) -> Manifest:
    """Each pod holds the target, or asks an engine that does. All shards are needed."""
    spec = work.run.wanted
    retries = spec.regenerate.retries_per_shard if spec.regenerate else 3
    return indexed.job(work, Shards(answering_gpus(spec), retries))
