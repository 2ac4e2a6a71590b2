"""The stage `prepare`: one pod on a CPU."""

from __future__ import annotations

from draftyard_operator.manifests import pod
from draftyard_operator.manifests.work import Manifest, Work, child_metadata


def job(work: Work) -> Manifest:
    """It needs no GPU: what is wrong with the data, the model or the storage is said before one is taken."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(work),
        "spec": pod.one_pod_job(pod.template(work, gpus=0)),
    }
