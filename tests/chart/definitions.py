"""Kinds of others that the chart and the examples make objects of: `python tests/chart/definitions.py` fetches them.

Each is a file in a Go module, known by its hash; nothing of the module is built.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "definitions"


@dataclass(frozen=True)
class Definition:
    """A CustomResourceDefinition in a Go module."""

    module: str
    version: str
    path: str
    sha256: str

    @property
    def file(self) -> Path:
        """Where it is kept."""
        return FOLDER / Path(self.path).name

    @property
    def is_there(self) -> bool:
        """Whether it was fetched, and is what it should be."""
        return self.file.exists() and hashlib.sha256(self.file.read_bytes()).hexdigest() == self.sha256

    def fetch(self) -> None:
        """Copy it out of its module. Raises subprocess.CalledProcessError, or ValueError for another file."""
        command = ["go", "mod", "download", "-json", f"{self.module}@{self.version}"]
        said = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=True).stdout
        shutil.copyfile(Path(json.loads(said)["Dir"]) / self.path, self.file)
        if not self.is_there:
            raise ValueError(f"{self.module}@{self.version}: given another {self.path}; accepted: sha256 {self.sha256}")


MONITORING = ("github.com/prometheus-operator/prometheus-operator", "v0.85.0")
MONITORING_PATH = "example/prometheus-operator-crd/monitoring.coreos.com_"
DEFINITIONS = (
    Definition(
        *MONITORING, f"{MONITORING_PATH}servicemonitors.yaml",
        "1dae27b7189b5ce7b9ab764656c18b4c75a45cde1e6f3af6a5e84c4317628919",
    ),
    Definition(
        *MONITORING, f"{MONITORING_PATH}prometheusrules.yaml",
        "98fd16c9ab79fba8dcd6ef62c957c98cd6546ab74ce0a4ecf09ddf2fda03020e",
    ),
    Definition(
        "github.com/argoproj/argo-cd/v3", "v3.5.0", "manifests/crds/application-crd.yaml",
        "5dde0e229249b6b707beb98674c1deae3949d5c319a6c45b9f5a80c99618e40c",
    ),
    Definition(
        "github.com/fluxcd/source-controller", "v1.7.0",
        "config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml",
        "2a30ef3e41278a09aecdb038b7bc6b12916d22698542356a53a4f019ad66f02b",
    ),
    Definition(
        "github.com/fluxcd/helm-controller", "v1.4.0", "config/crd/bases/helm.toolkit.fluxcd.io_helmreleases.yaml",
        "96d8f931a7a0732f3b169f540af2b2af5ec3b37d3478c8beee70be21416a7259",
    ),
    Definition(
        "github.com/fluxcd/kustomize-controller", "v1.9.1",
        "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml",
        "a23fa3f499ec6b4b6f3c8e37763e4ad0e5f2b72c770de8dae3685092f00b2ad4",
    ),
)  # fmt: skip


def main() -> None:
    """Fetch what is missing."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for definition in DEFINITIONS:
        if not definition.is_there:
            definition.fetch()


if __name__ == "__main__":
    main()
