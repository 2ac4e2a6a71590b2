"""The real training-operator on a control plane, outside of any pod: PyTorchJobs become pods, pods a status.

Its admission webhook is not asked: it would have to be reached by the name of a Service.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import control_plane
import requests
import trainings
import yaml
from api_server import ApiServer
from control_plane import ControlPlane
from programs import TRAINING, TRAINING_MODULE

from draftyard_operator.testing.ports import free_port

NAMESPACE = "kubeflow"
SECRET = "training-operator-webhook-cert"  # noqa: S105  a name
WEBHOOKS = "validator.training-operator.kubeflow.org"
MOUNT = Path("/tmp/k8s-webhook-server/serving-certs")  # noqa: S108  built into the program
"""Where the program waits for its certificate to appear; it reads the one under TMPDIR."""


def install(server: ApiServer) -> None:
    """Define PyTorchJobs, and make what the program looks for before it begins."""
    file = TRAINING.source_of(TRAINING_MODULE) / "manifests" / "base" / "crds" / "kubeflow.org_pytorchjobs.yaml"
    server.post(trainings.DEFINITIONS, yaml.safe_load(file.read_text())).made()
    trainings.eventually(lambda: server.get("apis/kubeflow.org/v1/pytorchjobs").is_ok)
    server.post("api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).made()
    server.post(f"api/v1/namespaces/{NAMESPACE}/secrets", {"metadata": {"name": SECRET}}).made()
    nobody = {"apiGroups": ["none.test"], "apiVersions": ["v1"], "resources": ["nothings"], "operations": ["CREATE"]}
    webhook = {
        "name": "nothing.training-operator.kubeflow.org", "rules": [nobody], "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1/nothing"},
    }  # fmt: skip
    made = {"metadata": {"name": WEBHOOKS}, "webhooks": [webhook]}
    server.post("apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", made).made()


@contextmanager
def started(plane: ControlPlane, server: ApiServer) -> Iterator[None]:
    """The program, until the block is left. Raises NotStartedError."""
    install(server)
    certificates = plane.folder / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    pair = plane.authority.issue("training-operator", hosts=(control_plane.LOOPBACK,))
    shutil.copy(pair.certificate, certificates / "tls.crt")
    shutil.copy(pair.key, certificates / "tls.key")
    MOUNT.mkdir(parents=True, exist_ok=True)
    (MOUNT / "tls.crt").touch()
    probes = free_port()
    program = control_plane.started(
        plane.folder, TRAINING["training-operator.v1"], "--kubeconfig", str(plane.kubeconfig),
        "--enable-scheme", "pytorchjob", "--webhook-server-port", str(free_port()),
        "--metrics-bind-address", "0", "--health-probe-bind-address", f"{control_plane.LOOPBACK}:{probes}",
        env={"TMPDIR": str(plane.folder)},
    )  # fmt: skip
    with program as running:
        control_plane.wait([running], lambda: is_ready(probes))
        yield


def is_ready(port: int) -> bool:
    """Whether its controllers work."""
    try:
        return requests.get(f"http://{control_plane.LOOPBACK}:{port}/readyz", timeout=2).ok
    except requests.RequestException:
        return False
