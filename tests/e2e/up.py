"""A cluster of one node, from nothing: `make cluster-up`. It stays until `make cluster-down`."""

from __future__ import annotations

import time

import cluster
import layout
import machine
import minio
import programs

PARTS = (
    programs.KNOWN[programs.NEWEST], programs.NODE, programs.CONTAINERD, programs.RUNC, programs.NETWORK,
    programs.COREDNS, programs.TRAINING, programs.HELM,
)  # fmt: skip


def main() -> None:
    """Make the programs, start the node, and wait until everything in it is ready."""
    machine.check()
    for part in PARTS:
        part.make()
    minio.make()
    begun = time.monotonic()
    start()
    print(f"ready after {time.monotonic() - begun:.0f} s")
    print(f"export KUBECONFIG={cluster.KUBECONFIG} PATH={PARTS[0].folder}:{programs.HELM.folder}:$PATH")


def start() -> None:
    """From built programs to a cluster in which PyTorchJobs run. What was started is ended when it fails."""
    layout.VOLUMES.mkdir(parents=True)
    try:
        machine.enter()
        machine.until(layout.ready_file().exists, cluster.READY_SECONDS, "programs of the node")
        machine.until(cluster.is_listening, cluster.READY_SECONDS, "containerd")
        cluster.load_pause()
        machine.until(cluster.is_serving, cluster.READY_SECONDS, "API server")
        cluster.add_names()
        cluster.add_training_operator()
        cluster.wait_for_node()
        cluster.wait_for_deployment("kube-system", "coredns")
        cluster.wait_for_deployment("kubeflow", "training-operator")
    except BaseException as error:
        print(f"not up: {error}")
        raise


if __name__ == "__main__":
    main()
