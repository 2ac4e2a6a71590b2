"""Where the parts of the one-node cluster are: addresses, names and folders, each with one home here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = (ROOT / "build").resolve() / "cluster"
"""All state of the cluster; it goes when the cluster does. Without links: a kubelet that was started again looks for
mounts under the names that the kernel gives them, and cannot end pods whose volumes it does not find there."""
VOLUMES = FOLDER / "volumes"
"""What the claims of pods are bound to, one folder each."""

NODE = "node1"
POD_RANGE, SERVICE_RANGE = "10.88.0.0/16", "10.96.0.0/16"
BRIDGE, BRIDGE_ADDRESS = "cni0", "10.88.0.1"
"""Pods reach the API server, the kubelet and the S3 server here."""
DNS_ADDRESS, API_SERVICE_ADDRESS = "10.96.0.10", "10.96.0.1"
HOST_LINK, NODE_LINK = "draftyard0", "draftyard1"
HOST_ADDRESS, NODE_ADDRESS = "10.89.0.1", "10.89.0.2"
"""Both ends of the one link between this machine and the node."""
API_PORT, S3_PORT = 6443, 9000

PAUSE_IMAGE, DNS_IMAGE = "localhost/pause:1", "localhost/coredns:1"
"""Images that are made of one program each."""
CGROUP = "kubepods"


def socket() -> Path:
    """Where containerd listens."""
    return FOLDER / "containerd.sock"


def pid_file() -> Path:
    """Who holds the node up."""
    return FOLDER / "pid"


def ready_file() -> Path:
    """There once all programs of the node were started."""
    return FOLDER / "started"
