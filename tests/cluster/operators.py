"""The operator on a control plane: a process of its own, started as in a pod."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control_plane import ControlPlane, Running
from live import PROGRAM

from draftyard_operator.testing.ports import free_port

Json = Any

RESYNC_SECONDS = 5
"""The shortest that there is; a resync takes up to twice as long."""
CONFIG = {"trainerImage": "example.com/trainer:1", "resyncSeconds": RESYNC_SECONDS, "gpuResource": ""}


@contextmanager
def running(plane: ControlPlane, folder: Path, config: Mapping[str, Json] | None = None) -> Iterator[Running]:
    """An operator of all namespaces, until the block is left; its log is in the folder."""
    file, log = folder / "config.yaml", folder / "operator.log"
    file.write_text(json.dumps({**CONFIG, **(config or {})}))
    ports = [str(free_port()) for _ in range(2)]
    given = ["--config", str(file), "--kubeconfig", str(plane.kubeconfig)]
    given += ["--metrics-port", ports[0], "--health-port", ports[1]]
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *given], stdout=out, stderr=out)
    try:
        yield Running("operator", process, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
