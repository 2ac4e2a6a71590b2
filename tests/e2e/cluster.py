"""The cluster as a person or a test uses it: kubectl, images, and what stands in it from the start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import layout
import machine
import program_image
import programs
import yaml

FOLDER = Path(__file__).parent
KUBECONFIG = layout.FOLDER / "kubeconfig"
TRAINING_IMAGE = f"localhost/training-operator:{programs.TRAINING.version.rpartition('-')[2]}"
READY_SECONDS = 180


def kubectl(*arguments: str, given: str = "") -> str:
    """Run kubectl with full rights. Raises RuntimeError with what it said when it failed."""
    command = [str(programs.KNOWN[programs.NEWEST]["kubectl"]), *arguments]
    environment = {"HOME": str(layout.FOLDER), "KUBECONFIG": str(KUBECONFIG)}
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def apply(text: str) -> None:
    """Apply objects as a person does. Definitions of kinds are too large for anything but server-side."""
    kubectl("apply", "--server-side", "--filename", "-", given=text)


def load(archive: Path) -> None:
    """Make an image known to the node."""
    ctr = programs.CONTAINERD["ctr"]
    machine.run(ctr, "--address", layout.socket(), "--namespace", "k8s.io", "images", "import", "--local", archive)


def load_program(program: Path, image: str) -> None:
    """Make an image of one program, and make it known to the node."""
    archive = layout.FOLDER / "image.tar"
    program_image.write(program, image, archive)
    load(archive)
    archive.unlink()


def load_pause() -> None:
    """The image under every pod; without it no sandbox starts."""
    pause = layout.FOLDER / "pause"
    machine.run("gcc", "-static", "-Os", "-Wall", "-o", pause, FOLDER / "pause.c")
    load_program(pause, layout.PAUSE_IMAGE)


def is_serving() -> bool:
    """Whether the API server is ready."""
    try:
        return kubectl("get", "--raw", "/readyz") == "ok"
    except RuntimeError:
        return False


def is_listening() -> bool:
    """Whether containerd is there."""
    return layout.socket().exists()


def add_names() -> None:
    """CoreDNS."""
    load_program(programs.COREDNS["coredns"], layout.DNS_IMAGE)
    apply((FOLDER / "coredns.yaml").read_text())


def add_training_operator() -> None:
    """The training-operator with the objects that its own sources have for it."""
    load_program(programs.TRAINING["training-operator.v1"], TRAINING_IMAGE)
    sources = programs.TRAINING.source_of(programs.TRAINING_MODULE)
    objects = list(yaml.safe_load_all(kubectl("kustomize", f"{sources}/manifests/overlays/standalone")))
    for made in objects:
        if made["kind"] == "Deployment":
            for container in made["spec"]["template"]["spec"]["containers"]:
                container |= {"image": TRAINING_IMAGE, "command": ["/training-operator.v1"]}
                container["imagePullPolicy"] = "Never"
    apply(yaml.safe_dump_all(objects))


def wait_for_node() -> None:
    """Until pods can be placed."""
    machine.until(lambda: layout.NODE in kubectl("get", "nodes", "--output", "name"), READY_SECONDS, "node")
    kubectl("wait", "--for=condition=Ready", f"node/{layout.NODE}", f"--timeout={READY_SECONDS}s")


def wait_for_deployment(namespace: str, name: str) -> None:
    """Until its pods are ready."""
    kubectl("--namespace", namespace, "rollout", "status", f"deployment/{name}", f"--timeout={READY_SECONDS}s")
