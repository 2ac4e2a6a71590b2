"""The stage `evaluate`: one pod with the target and the exported draft."""

from __future__ import annotations

from draftyard_operator.manifests import pod
from draftyard_operator.manifests.work import Manifest, Work, child_metadata


def job(work: Work) -> Manifest:
    """It measures, judges and publishes."""
    spec = work.run.wanted
    assert spec.evaluate is not None
    gpus = spec.evaluate.gpus_per_pod or spec.target.tensor_parallel
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(work),
        "spec": pod.one_pod_job(pod.template(work, gpus)),
    }
