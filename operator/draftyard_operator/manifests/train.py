"""The stage `train`: a Job of one pod, or a PyTorchJob: its Master alone, or workers that find each other by c10d."""

from __future__ import annotations

from draftyard_operator.manifests import pod
from draftyard_operator.manifests.work import Manifest, Work, child_metadata

CONTAINER = "pytorch"
"""What the training-operator's webhook demands."""


def environment(work: Work) -> dict[str, str]:
    """A rank that hangs in NCCL must fail, or its survivors wait for ever; one node needs no name service."""
    one_node = {"PET_STANDALONE": "1"} if work.run.wanted.train.nodes == 1 else {}
    return {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", **one_node, **pod.shutdown_environment(work)}


def job(work: Work) -> Manifest:
    """One node without the training-operator."""
    made = pod.template(work, work.run.wanted.train.gpus_per_node, env=environment(work))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": child_metadata(work),
        "spec": pod.one_pod_job(made),
    }


def pytorch_job(work: Work) -> Manifest:
    """Master and Worker together would bring an init container that `restricted` refuses: it is one or the other."""
    train = work.run.wanted.train
    made = pod.template(work, train.gpus_per_node, CONTAINER, environment(work))
    replica = {"restartPolicy": "Never", "template": made}
    if train.nodes == 1:
        topology: Manifest = {"pytorchReplicaSpecs": {"Master": {"replicas": 1, **replica}}}
    else:
        topology = {
            "elasticPolicy": {
                "rdzvBackend": "c10d",
                "minReplicas": train.nodes,
                "maxReplicas": train.nodes,
                "maxRestarts": 0,
            },
            "pytorchReplicaSpecs": {"Worker": {"replicas": train.nodes, **replica}},
        }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": child_metadata(work),
        "spec": {
            # a text; the number, since "auto" means CPU cores where CUDA is not up
            "nprocPerNode": str(train.gpus_per_node),
            # no time to live: a child that is gone after its end must not come back
            "runPolicy": {"cleanPodPolicy": "None", "backoffLimit": 0, "suspend": False},
            **topology,
        },
    }
