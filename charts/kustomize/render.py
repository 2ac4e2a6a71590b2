"""The chart as plain files for kustomize: `python charts/kustomize/render.py HELM` writes them beside this file.

What only Helm needs is left out, and the configuration becomes a file that kustomize makes a ConfigMap of: with another
content that gets another name, so that the operator starts anew.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Json = Any

FOLDER = Path(__file__).resolve().parent
CHART = FOLDER.parent / "draftyard"
NAME = "draftyard"
NAMESPACE = "draftyard-system"
HEADER = "# Rendered from charts/draftyard (make kustomize); do not edit.\n"
HELM_ONLY = ("helm.sh/chart", "app.kubernetes.io/managed-by")
CONFIG_HASH = "draftyard.dev/config-hash"


def rendered(helm: str) -> list[Json]:
    """Every object of the chart but the kind, which has a kustomization of its own in crds/."""
    command = [helm, "template", NAME, str(CHART), "--namespace", NAMESPACE, "--set", "crds.enabled=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  a list, no shell
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def without_helm(metadata: Json) -> None:
    """Take away what only Helm reads, from an object's metadata or a pod template's."""
    for name in HELM_ONLY:
        metadata["labels"].pop(name, None)
    if metadata.get("annotations", {}).pop(CONFIG_HASH, None) and not metadata["annotations"]:
        del metadata["annotations"]


def main() -> None:
    """Write operator.yaml and config.yaml. Raises subprocess.CalledProcessError when Helm refuses the chart."""
    (helm,) = sys.argv[1:]
    objects = []
    for found in rendered(helm):
        without_helm(found["metadata"])
        if found["kind"] == "Deployment":
            without_helm(found["spec"]["template"]["metadata"])
        if (found["kind"], found["metadata"]["name"]) == ("ConfigMap", NAME):
            (FOLDER / "config.yaml").write_text(HEADER + found["data"]["config.yaml"] + "\n")
        else:
            objects.append(found)
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120, explicit_start=True)
    (FOLDER / "operator.yaml").write_text(HEADER + text)


if __name__ == "__main__":
    main()
