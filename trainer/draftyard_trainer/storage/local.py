"""A workspace in a directory: a local disk or a mounted claim.

Publishing is: write aside, fsync, rename, fsync of the parent. What is written aside is called `<name>.tmp-<8 hex>`;
its writer holds a lock on it, so that a later writer can tell what was left behind from what is being written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.storage import access
from draftyard_trainer.storage.store import parts_of

ASIDE = re.compile(r"\.(tmp|old)-[0-9a-f]{8}$")
"""`tmp`: not finished, or on its way out. `old`: a whole folder that a new one is about to replace."""
GRACE_SECONDS = 2
"""Younger things are left alone: a writer makes a file first, and locks it then."""
AT_WORKING_FOLDER, RENAME_EXCHANGE = -100, 2
"""Of `renameat2`, which Python does not have."""
ABANDONED_SECONDS = 3600
"""Age at which a leftover counts as abandoned where the file system has no locks."""


class LocalStore:
    """Objects are files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = f"file://{self.root}"

    def exists(self, name: str) -> bool:
        """Whether a file of this name is published."""
        with self._explaining("reading", name):
            return self._path(name).is_file()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when it is absent."""
        path = self._path(name)
        with self._explaining("reading", name):
            return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._explaining("reading", name):
            return self._path(name).read_bytes()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Part of a file."""
        with self._explaining("reading", name), self._path(name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def list(self, prefix: str) -> list[str]:
        """Published files below a folder."""
        found = []
        with self._explaining("reading", prefix):
            for folder, subfolders, files in os.walk(self._path(prefix), onerror=unless_absent):
                subfolders[:] = [name for name in subfolders if not ASIDE.search(name)]
                parent = Path(folder).relative_to(self.root)
                found += [(parent / name).as_posix() for name in files if not ASIDE.search(name)]
        return sorted(found)

    def publish(self, name: str, data: bytes) -> None:
        """Write a file whole."""
        with self.create(name) as file:
            file.write(data)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Write a file aside and rename it at the end."""
        path = self._path(name)
        with self._explaining("writing", name):
            clear_leftovers(path)
            staged = beside(path, "tmp")
            try:
                with staged.open("xb") as file:
                    lock(file.fileno())
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                    # renamed before the lock goes: nobody can take it for a leftover
                    staged.replace(path)
                sync(path.parent)
            finally:
                staged.unlink(missing_ok=True)

    @contextmanager
    def create_folder(self, name: str) -> Iterator[Path]:
        """Stage a folder aside and rename it at the end.

        A folder that is already there changes places with it. Where the file system cannot do that, the old one is
        moved aside first: readers may find none for a moment, never a mixture, and after a crash between the two
        renames the next writer of the name puts the old one back.
        """
        path = self._path(name)
        with self._explaining("writing", name):
            clear_leftovers(path)
            staged = beside(path, "tmp")
            staged.mkdir()
            try:
                with locked(staged):
                    yield staged
                    for entry in (*staged.rglob("*"), staged):
                        sync(entry)
                    replaced = None
                    if not exchange(staged, path):
                        replaced = move_aside(path, "old")
                        staged.rename(path)
                sync(path.parent)
                if replaced is not None:
                    discard(replaced)
            finally:
                shutil.rmtree(staged, ignore_errors=True)

    def fetch(self, name: str) -> Path:
        """The file itself."""
        path = self._path(name)
        with self._explaining("reading", name):
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
        return path

    def fetch_folder(self, name: str, files: Sequence[str]) -> Path:
        """The folder itself."""
        for file in files:
            self.fetch(f"{name}/{file}")
        return self._path(name)

    def delete(self, name: str) -> None:
        """Remove a file."""
        path = self._path(name)
        with self._explaining("deleting", name), suppress(FileNotFoundError):
            path.unlink()
            sync(path.parent)

    def delete_folder(self, name: str) -> None:
        """Rename a folder out of sight, then remove it: a reader never sees half of it."""
        path = self._path(name)
        with self._explaining("deleting", name):
            # an older version first, or the next writer would take it for one to put back
            for leftover in leftovers(path, "old"):
                discard(leftover)
            if path.is_dir():
                discard(path)

    def sweep(self, prefix: str) -> None:
        """Remove what killed writers left behind below a folder; what is being written stays."""
        with self._explaining("deleting", prefix):
            for folder, subfolders, files in os.walk(self._path(prefix)):
                aside = [Path(folder, name) for name in (*subfolders, *files) if ASIDE.search(name)]
                subfolders[:] = [name for name in subfolders if not ASIDE.search(name)]
                for path in filter(is_abandoned, aside):
                    remove(path)

    def free_bytes(self) -> int | None:
        """What `statvfs` says of the directory."""
        existing = self.root
        while not existing.exists():
            existing = existing.parent
        return shutil.disk_usage(existing).free

    def _path(self, name: str) -> Path:
        return self.root.joinpath(*parts_of(name))

    @contextmanager
    def _explaining(self, doing: str, name: str) -> Iterator[None]:
        """Turn a full or closed disk into an end that says so. Errors of files elsewhere are none of its business."""
        try:
            yield
        except OSError as error:
            if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(self.root):
                raise
            where = f"workspace: {self.root}, {doing} {name}"
            if access.is_full(error):
                message = f"{where}: no space left ({self.free_bytes()} bytes free); free some, or use a larger one"
                raise Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, message) from error
            if error.errno in access.REFUSED:
                raise access.denied(where, error) from error
            raise


def unless_absent(error: OSError) -> None:
    """A folder that is not there has no files; one that may not be read must not look so. Raises the error."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


# -- Names beside a name ----------------------------------------------------------------------


def beside(path: Path, kind: str) -> Path:
    """A fresh name for something that is not, or no longer, published as `path`; its folder is made."""
    make_folder(path.parent)
    return path.with_name(f"{path.name}.{kind}-{secrets.token_hex(4)}")


def leftovers(path: Path, kind: str) -> list[Path]:
    """What lies beside `path` under such names."""
    return [found for found in path.parent.glob(f"{glob.escape(path.name)}.{kind}-*") if ASIDE.search(found.name)]


def clear_leftovers(path: Path) -> None:
    """Repair and remove what a killed writer of the same name left behind."""
    for old in leftovers(path, "old"):
        if path.exists():
            discard(old)
        else:
            old.rename(path)
    for staged in filter(is_abandoned, leftovers(path, "tmp")):
        remove(staged)


def move_aside(path: Path, kind: str) -> Path | None:
    """Give a folder a name beside its own; None when there is none."""
    aside = beside(path, kind)
    try:
        return path.rename(aside)
    except FileNotFoundError:
        return None


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places at one stroke; False where one is absent, or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    given = (AT_WORKING_FOLDER, os.fsencode(one), AT_WORKING_FOLDER, os.fsencode(other), RENAME_EXCHANGE)
    return rename is not None and bool(rename(*given) == 0)


def discard(folder: Path) -> None:
    """Remove a folder under a name that nobody reads or puts back, so that a crash half-way is never seen."""
    aside = move_aside(folder, "tmp")
    if aside is not None:
        sync(aside.parent)
        remove(aside)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; a part of it that is already gone is fine."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# -- Who is writing -----------------------------------------------------------------------------


def lock(descriptor: int) -> None:
    """Say that this process is writing; the system takes it back when the process ends, however it ends."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    with opened(folder) as descriptor:
        lock(descriptor)
        yield


def is_abandoned(path: Path) -> bool:
    """Whether no living process is writing `path`: its lock is free, or, where there are no locks, it is old."""
    try:
        age = time.time() - path.stat().st_mtime
        with opened(path) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return age > GRACE_SECONDS
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return age > ABANDONED_SECONDS


# -- The disk -----------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Put a file's bytes, or the names in a folder, on the disk: a rename is durable only after the latter."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and the missing ones above it, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)
