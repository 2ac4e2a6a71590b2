"""A real S3 server for tests: MinIO, made from its Go module. `python tests/s3/minio.py` makes it, and starts nothing.

The module in `module/` pins it and everything that it is made of.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from draftyard_operator.testing.ports import free_port

FOLDER = Path(__file__).resolve().parent
MODULE = FOLDER / "module"
CACHE = FOLDER.parents[1] / "build" / "bin"
PACKAGE = "github.com/minio/minio"
COMMAND = ("go", "build", "-mod=mod", "-p", "2", "-trimpath", "-ldflags", "-s -w")
START_SECONDS = 30
ACCESS_KEY, SECRET_KEY = "access-of-the-tests", "secret-of-the-tests"
"""Words that stand nowhere else, so that they can be searched for where they must not be."""


def program() -> Path:
    """Where the server is, or will be: its sources decide the name."""
    sources = b"\0".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))
    return CACHE / f"minio-{hashlib.sha256(sources + repr(COMMAND).encode()).hexdigest()[:12]}"


def make() -> None:
    """Make the server unless it is there: two to five minutes. Raises subprocess.CalledProcessError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "minio.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program().exists():
            return
        staged = CACHE / "minio.new"
        environment = {**os.environ, "CGO_ENABLED": "0"}
        subprocess.run([*COMMAND, "-o", str(staged), PACKAGE], cwd=MODULE, env=environment, check=True)
        staged.rename(program())


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    endpoint: str


@contextmanager
def started(folder: Path) -> Iterator[Server]:
    """Start a server with its data in `folder`; it is gone when the block ends."""
    port = free_port()
    environment = {
        **os.environ, "MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off", "HOME": str(folder), "GOMAXPROCS": "2",
    }  # fmt: skip
    command = [str(program()), "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder / "data")]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_until_up(f"http://127.0.0.1:{port}", process, folder / "log.txt")
            yield Server(f"http://127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait()


def wait_until_up(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers. Raises RuntimeError with its log when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{endpoint}/minio/health/live", timeout=1)  # noqa: S310  loopback
            return
        time.sleep(0.05)
    raise RuntimeError(f"minio did not start: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    if not program().exists() and shutil.which("go") is None:
        sys.exit("go is not there; install Go 1.24 or later, which makes the S3 server of the tests from its module")
    make()
