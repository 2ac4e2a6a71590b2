"""A tiny target, conversations, and places to work in: what runs are made of, and how one ends that nobody disturbs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minio
import yaml
from comparison import Ending, keep_ending, read_ending
from faults import Proxy
from victims import running_stage

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.schema import S3Access
from draftyard_trainer import testing
from draftyard_trainer.storage.bucket import Bucket
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.s3 import S3Store

RUN = "tiny"
BUCKET, PREFIX = "chaos", "w"
CONVERSATIONS = 48
POLL_SECONDS = 0.05
UNDISTURBED_SECONDS = 600
DISK_BYTES = 96 * 2**20
ROOT = Path(__file__).resolve().parents[2]
SPEC: dict[str, Any] = {
    "target": {"model": "file://target", "dtype": "float32"},
    "draft": {"vocabSize": 256},
    "data": {"source": {"file": {"uri": "file://chat.json"}}, "maxLength": 96, "evalFraction": 0.2},
    "train": {
        "epochs": 4, "rowTokens": 128, "tokensPerBatch": 256, "tttSteps": 3, "learningRate": 0.003,
        "checkpoint": {"everySteps": 4},
    },
    "evaluate": {"maxPrompts": 4, "maxNewTokens": 12},
}  # fmt: skip
OWN_ANSWERS = {"maxNewTokens": 24, "shards": 2}
"""Two places at which an attempt can go on."""


@dataclass(frozen=True)
class Undisturbed:
    """How a run of one mode ends when nobody disturbs it, and how long its stages take."""

    ending: Ending
    seconds: dict[Stage, float]


@dataclass(frozen=True)
class World:
    """Where the inputs are."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> World:
        """Write target and conversations, the same every time."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "chat.json").exists():
            testing.write_target(folder / "target")
            testing.write_conversations(folder / "chat.json", count=CONVERSATIONS)
        return cls(folder)

    def write_run(
        self, name: str, mode: str, processes: int = 1, s3: dict[str, str] | None = None, regenerates: bool = False
    ) -> Path:
        """The file of a run."""
        spec = {**SPEC, "mode": mode, "train": {**SPEC["train"], "gpusPerNode": processes}}
        if regenerates:
            spec["data"] = {**SPEC["data"], "regenerate": OWN_ANSWERS}
        if mode == "Offline":
            spec["hiddenStates"] = {"codec": "lossless", "shards": 2}
        spec["workspace"] = {"s3": s3} if s3 else {"pvc": {"claimTemplate": {"size": "1Gi"}}}
        document = {"apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": {"name": RUN}}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**document, "spec": spec}))
        return path

    def undisturbed(self, mode: str, regenerates: bool = False, buckets: Buckets | None = None) -> Undisturbed:
        """Run it once, in a bucket if there are some; what is there from an earlier time is used again.

        Where a workspace is belongs to the fingerprint of what comes out: either place has an ending of its own.
        """
        name = f"undisturbed-{mode}" + "-own-answers" * regenerates + "-bucket" * (buckets is not None)
        workspace = self.folder / name
        times = workspace / "seconds.json"
        if not times.exists():
            place = buckets.make() if buckets else None
            s3 = {"uri": place, "endpoint": buckets.server.endpoint} if buckets and place else None
            file = self.write_run(name, mode, s3=s3, regenerates=regenerates)
            process = start(file, place or str(workspace), self.folder)
            seconds = watch(process)
            if process.returncode != ExitCode.OK:
                raise RuntimeError(f"the undisturbed run ended with {process.returncode}: see {self.folder}/log.txt")
            if buckets:
                keep_ending(buckets.store(self.folder / "downloads"), LocalStore(workspace), RUN)
            times.write_text(json.dumps(seconds))
        seconds = {Stage(stage): value for stage, value in json.loads(times.read_text()).items()}
        return Undisturbed(read_ending(LocalStore(workspace), RUN), seconds)


def start(file: Path, workspace: str, folder: Path) -> subprocess.Popen[bytes]:
    """`draftyard run` in a folder; its words go to a log there."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "draftyard_api.cli", "run", str(file), "--workspace", workspace]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def watch(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for a run that nobody disturbs. Returns the seconds of each of its stages."""
    seconds: dict[str, float] = {}
    deadline = before = time.monotonic()
    deadline += UNDISTURBED_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        stage, now = running_stage(process.pid), time.monotonic()
        if stage is not None:
            seconds[stage] = seconds.get(stage, 0.0) + now - before
        before = now
        time.sleep(POLL_SECONDS)
    if process.poll() is None:
        process.kill()
        raise RuntimeError(f"the undisturbed run has not ended after {UNDISTURBED_SECONDS} s")
    return seconds


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own in a folder, to fill up; says whether it could be had: mounting needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["/usr/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["/usr/bin/umount", "--lazy", str(folder)], check=True)


@dataclass(frozen=True)
class Buckets:
    """An S3 server, and the proxy through which runs see it."""

    server: minio.Server
    proxy: Proxy

    def make(self) -> str:
        """The bucket of a server that has none yet. Returns the workspace in it, which has the same name every time."""
        self.bucket.client.create_bucket(Bucket=BUCKET)
        return f"s3://{BUCKET}/{PREFIX}"

    @property
    def bucket(self) -> Bucket:
        """As a reader reaches it, without the proxy."""
        return Bucket.of(BUCKET, S3Access(endpoint=self.server.endpoint), "workspace")

    def store(self, downloads: Path) -> S3Store:
        """The workspace in it, without the proxy."""
        return S3Store(self.bucket, PREFIX, downloads)
