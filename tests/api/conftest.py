"""The API server's own code, as a program that says what it would answer."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from draftyard_api import crd

SOURCES = Path(__file__).parent / "crd_check"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "draftyard"

Ask = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]


def build(go: str) -> Path:
    """The program, made from Go modules (about two minutes) or found: its folder is named by a hash of its sources."""
    sources = sorted(path for path in SOURCES.iterdir() if path.name.startswith("go.") or path.suffix == ".go")
    name = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    program = CACHE / f"crd-check-{name}" / "crd-check"
    program.parent.mkdir(parents=True, exist_ok=True)
    # Two workers of one test run would both build, and each would take twice as long.
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            fresh = program.with_suffix(".new")
            command = [go, "build", "-p", "2", "-trimpath", "-ldflags", "-s -w", "-o", str(fresh), "."]
            done = subprocess.run(
                command,
                cwd=SOURCES,
                env={**os.environ, "CGO_ENABLED": "0"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            fresh.rename(program)
    return program


@pytest.fixture(scope="session")
def ask_server(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Ask what an API server says about the definition (first answer) and to each request (name, object, old)."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed: the definition cannot be checked with the API server's own code")
    program = build(go)
    definition = tmp_path_factory.mktemp("crd") / "definition.yaml"
    definition.write_text(crd.to_yaml(crd.definition()))

    def ask(requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        lines = "".join(f"{json.dumps(request)}\n" for request in requests)
        done = subprocess.run([program, definition], input=lines, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask
