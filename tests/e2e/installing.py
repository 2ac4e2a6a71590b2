"""What an administrator does before a team trains: images, namespaces, volumes, a bucket, the chart with helm."""

from __future__ import annotations

import base64

import boto3
import cluster
import layout
import machine
import minio
import programs
import team
import volumes
import yaml

IMAGES = layout.ROOT / "build" / "images"
SYSTEM = "draftyard-system"
RESYNC_SECONDS = 60
VALUES = {
    "image": {"repository": "localhost/draftyard-operator", "pullPolicy": "Never"},
    "config": {
        "trainerImage": "localhost/draftyard-trainer:0.1.0", "gpuResource": "", "resyncSeconds": RESYNC_SECONDS,
        "allowedImages": ["localhost/nowhere:*"],
    },
}  # fmt: skip
BUCKET, KEYS = "drafts", "bucket-keys"
"""The bucket of examples/e2e-offline-s3.yaml, and the Secret that opens it."""
OPERATOR = "app.kubernetes.io/name=draftyard"


def install() -> None:
    """Everything that the examples need. What is there is left as it is, but for the operator, which is renewed."""
    for image in ("operator", "trainer"):
        cluster.load(IMAGES / f"{image}.tar")
    volumes.write_inputs()
    add_namespace(team.NAMESPACE)
    volumes.add(team.NAMESPACE)
    add_bucket()
    values = layout.FOLDER / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    machine.run(
        programs.HELM["helm"], "upgrade", "--install", "draftyard", layout.ROOT / "charts" / "draftyard",
        "--namespace", SYSTEM, "--create-namespace", "--values", values, "--kubeconfig", cluster.KUBECONFIG,
    )  # fmt: skip
    cluster.wait_for_deployment(SYSTEM, "draftyard")


def add_namespace(name: str) -> None:
    """A namespace that enforces `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.apply(yaml.safe_dump(made))


def add_bucket() -> None:
    """The bucket, and a Secret with its keys in the team's namespace."""
    if BUCKET not in {found["Name"] for found in storage().list_buckets()["Buckets"]}:
        storage().create_bucket(Bucket=BUCKET)
    keys = {"AWS_ACCESS_KEY_ID": minio.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": minio.SECRET_KEY}
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, "namespace": team.NAMESPACE},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
    }  # fmt: skip
    cluster.apply(yaml.safe_dump(secret))


def storage():
    """A client of the S3 server of the node, as this machine reaches it."""
    return boto3.client(
        "s3", endpoint_url=f"http://{layout.NODE_ADDRESS}:{layout.S3_PORT}", region_name="us-east-1",
        aws_access_key_id=minio.ACCESS_KEY, aws_secret_access_key=minio.SECRET_KEY,
    )  # fmt: skip


def operator_pods() -> list[str]:
    """Names of the operator's pods that run."""
    told = ("get", "pods", "--selector", OPERATOR, "--field-selector", "status.phase=Running", "--output", "name")
    return cluster.kubectl("--namespace", SYSTEM, *told).split()
