"""Where conversations come from: one interface for files, buckets and presets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import DataSource, S3Source
from draftyard_trainer.data.files import BadRow, content_sha256, files_of, read_rows
from draftyard_trainer.storage import opening


class RowSource(Protocol):
    """Rows, always in the same order."""

    def sha256(self) -> str:
        """Hash of everything that decides them."""
        ...

    def rows(self) -> Iterator[Any | BadRow]:
        """One at a time."""
        ...


@dataclass(frozen=True)
class FileRows:
    """A file, or all files below a folder."""

    path: Path

    def sha256(self) -> str:
        """Of the bytes."""
        return content_sha256(self.path)

    def rows(self) -> Iterator[Any | BadRow]:
        """File after file."""
        return read_rows(self.path)


def open_rows(source: DataSource) -> RowSource:
    """The rows of a source. Raises Failure: NOT_FOUND without it, UNSUPPORTED for a location that no pod can open."""
    if source.preset is not None:
        # presets bring the hub's library along, which files do not need
        from draftyard_trainer.data.presets import loading  # noqa: PLC0415

        return loading.find(source.preset.name)
    if source.s3 is not None:
        return FileRows(fetched(source.s3))
    assert source.file is not None
    # a claim is a folder by now: whoever wrote the task knows where it is mounted
    path = storage_uri.local_path(source.file.uri)
    if path is None:
        message = f"data.source.file.uri: given {source.file.uri}; accepted: a file or a folder that the pod can open"
        raise Failure(ExitCode.UNSUPPORTED, Reason.TASK_REJECTED, message)
    files_of(path)
    return FileRows(path)


def fetched(source: S3Source) -> Path:
    """Local copies of all objects below a prefix. Raises Failure."""
    try:
        return opening.fetch_objects(source.uri, source, "data").folder
    except FileNotFoundError as error:
        message = f"data.source.s3.uri: given {source.uri}; there is no object below it; check bucket and prefix"
        raise Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message) from error
