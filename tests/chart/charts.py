"""The chart, as Helm renders and installs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainings
import yaml
from control_plane import ControlPlane
from programs import HELM

Json = Any

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "draftyard"
KUSTOMIZE = ROOT / "charts" / "kustomize"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE = "draftyard"
NAMESPACE = "draftyard-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"


@dataclass(frozen=True)
class Helm:
    """The program, with a home of its own, and a cluster where one is needed."""

    home: Path
    kubeconfig: Path | None = None

    @property
    def program(self) -> Path:
        """Where it is."""
        return HELM["helm"]

    def __call__(self, *args: str, values: Mapping[str, Json] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it as a person does, in the operator's namespace."""
        command = [self.program, *args, "--namespace", NAMESPACE]
        if values is not None:
            command += ["--values", "-"]
        environment = {"HOME": str(self.home), "KUBECONFIG": str(self.kubeconfig or "/dev/null")}
        text = json.dumps(values) if values is not None else ""
        return subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)

    def render(self, *args: str, values: Mapping[str, Json] | None = None) -> list[Json]:
        """Every object of the chart. Raises AssertionError with Helm's words when it makes none."""
        done = self("template", RELEASE, str(CHART), *args, values=values)
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]


def one(objects: list[Json], kind: str, name: str = "") -> Json:
    """The only object of a kind, or the one of a name."""
    (found,) = (each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"]))
    return found


def address(found: Json) -> tuple[str, str, str, str]:
    """What tells an object from all others."""
    metadata = found["metadata"]
    return found["apiVersion"], found["kind"], metadata.get("namespace", ""), metadata["name"]


def child(owner: Json, name: str) -> Json:
    """A Job as the operator makes one."""
    container = {"name": "train", "image": "example.com/none:1"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    return {
        "metadata": {"name": name, "ownerReferences": [trainings.owned_by(owner)]},
        "spec": {"template": template},
    }


def claim(name: str) -> Json:
    """A claim as the operator makes one."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"metadata": {"name": name}, "spec": spec}


@contextmanager
def installed(plane: ControlPlane, values: Mapping[str, Json]) -> Iterator[Helm]:
    """A release, until the block is left. The kind stays, as it does for users."""
    helm = Helm(plane.folder, plane.kubeconfig)
    done = helm("install", RELEASE, str(CHART), "--create-namespace", values=values)
    assert done.returncode == 0, done.stderr
    yield helm
    assert helm("uninstall", RELEASE, "--ignore-not-found").returncode == 0
