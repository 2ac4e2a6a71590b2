"""Records of a bucket on the node's own disk: what was read once need not travel again.

`DRAFTYARD_CACHE=/nvme/draftyard:200GiB` switches it on. It is never trusted more than the bucket: readers check what
they get, and `evict` what is wrong. Processes of a node may share it: files appear whole, and losing a race costs
nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_CACHE
from draftyard_api.reasons import Reason

GIVEN = re.compile(r"^(?P<folder>/.+):(?P<count>[0-9]+)(?P<unit>[MGT]iB)$")
UNITS = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
KEPT_SHARE = 0.9
"""What stays when the cache is full: a tenth is freed at once, not a file for each file."""


@dataclass
class RecordCache:
    """Byte ranges of objects that never change, least recently used first out."""

    folder: Path
    max_bytes: int
    _size: int = field(init=False, repr=False)
    """What this process knows of: others may have added to it since."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._size = sum(size for _, size, _ in self._entries())

    @classmethod
    def from_environment(cls) -> RecordCache | None:
        """The cache that the environment asks for. Raises Failure(BAD_TASK) for anything that is no cache."""
        given = os.environ.get(ENV_CACHE)
        if not given:
            return None
        match = GIVEN.match(given)
        if match is None:
            message = f"{ENV_CACHE}: given {given}; accepted: a folder and a size, such as /nvme/draftyard:200GiB"
            raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
        return cls(Path(match["folder"]), int(match["count"]) * UNITS[match["unit"]])

    def read(self, name: str, offset: int, origin: Callable[[], bytes]) -> bytes:
        """The range of an object that begins at `offset`: from the disk, or from `origin`, and then kept."""
        path = self._path(name, offset)
        with suppress(OSError):
            content = path.read_bytes()
            # when it was last used is what decides which goes
            os.utime(path)
            return content
        content = origin()
        # a full or broken disk must not stop a training that has its record
        with suppress(OSError):
            self._keep(path, content)
        return content

    def evict(self, name: str, offset: int) -> None:
        """Forget a range that turned out to be wrong."""
        with suppress(OSError):
            self._path(name, offset).unlink()

    def _keep(self, path: Path, content: bytes) -> None:
        if len(content) > self.max_bytes:
            return
        with self._lock:
            self._size += len(content)
            if self._size > self.max_bytes:
                self._make_room(len(content))
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as staged:
            staged.write(content)
        Path(staged.name).replace(path)

    def _make_room(self, wanted: int) -> None:
        entries = sorted(self._entries())
        self._size = sum(size for _, size, _ in entries) + wanted
        for _, size, path in entries:
            if self._size <= KEPT_SHARE * self.max_bytes:
                return
            with suppress(OSError):
                path.unlink()
            self._size -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and place of all that is kept."""
        found = []
        for path in self.folder.iterdir():
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _path(self, name: str, offset: int) -> Path:
        return self.folder / hashlib.sha256(f"{name}\0{offset}".encode()).hexdigest()[:40]
