"""What every storage kind can do. A name is a relative path such as `prepare/3f2a/MANIFEST.json`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of an object's name. Raises ValueError for one that leads out of the workspace."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts:
        raise ValueError(f'given object name "{name}"; accepted: a relative path without ".."')
    return parts


class Store(Protocol):
    """A workspace. What is published is whole, durable and visible at once; what failed half-way is never seen."""

    uri: str

    def exists(self, name: str) -> bool:
        """Whether an object of this name is published."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when it is absent."""
        ...

    def read(self, name: str) -> bytes:
        """A whole object. Raises FileNotFoundError."""
        ...

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end. Raises FileNotFoundError."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Names of all objects below a folder, sorted."""
        ...

    def publish(self, name: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        ...

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a large object; it becomes visible when the block ends without an error."""
        ...

    def create_folder(self, name: str) -> AbstractContextManager[Path]:
        """Stage files in a local folder; they become visible together when the block ends without an error."""
        ...

    def fetch(self, name: str) -> Path:
        """A local file with the object's bytes, to map or to load from; not to be written. Raises FileNotFoundError."""
        ...

    def fetch_folder(self, name: str, files: Sequence[str]) -> Path:
        """A local folder with some files of a folder; not to be written. Raises FileNotFoundError."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; absent is fine."""
        ...

    def delete_folder(self, name: str) -> None:
        """Remove everything below a folder; absent is fine."""
        ...

    def sweep(self, prefix: str) -> None:
        """Remove the invisible remains of killed writers below a folder; what is being written stays."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes that still fit; None where there is no limit."""
        ...
