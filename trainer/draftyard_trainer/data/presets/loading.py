"""From a preset to rows: downloaded once, mapped into memory, one at a time.

`DRAFTYARD_DATASETS` names a folder with a mirror of the hub, `<folder>/<organisation>/<name>/`; `HF_HUB_OFFLINE=1`
takes what an earlier download left.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_DATASETS
from draftyard_api.reasons import Reason
from draftyard_trainer.data.conversation import SkipReason
from draftyard_trainer.data.files import BadRow, content_sha256
from draftyard_trainer.data.presets.known import PRESETS
from draftyard_trainer.data.presets.preset import Preset, Published

MAPPING_VERSION = 1
"""Of how rows become conversations: another one makes other documents of the same data."""


@dataclass(frozen=True)
class PresetRows:
    """The rows of a preset."""

    preset: Preset

    @functools.cached_property
    def _tables(self) -> list[Any]:
        return [load(table) for table in self.preset.tables]

    def sha256(self) -> str:
        """Hash of what decides the rows: tables, their commits or contents, and how rows become conversations."""
        said = [f"{self.preset.name} {MAPPING_VERSION}"]
        said += [f"{table} {identity}" for table, identity in zip(self.preset.tables, self._identities(), strict=True)]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    def rows(self) -> Iterator[Any | BadRow]:
        """Conversations, as `conversation.read_row` takes them. Raises Failure."""
        for table in self._tables:
            for row in table:
                try:
                    yield self.preset.to_conversation(row)
                except (KeyError, TypeError):
                    # a column that the published table has not: told as skipped rows, and nothing is guessed
                    yield BadRow(SkipReason.MALFORMED)

    def _identities(self) -> list[str]:
        """The commit behind each table, or the hash of its files in a mirror. Raises Failure."""
        folders = [mirrored(table) for table in self.preset.tables]
        if any(folders):
            return [content_sha256(folder) for folder in folders if folder is not None]
        # made of the commit and of the files that were read
        return [str(table._fingerprint) for table in self._tables]  # noqa: SLF001  the library has no other word for it


def find(name: str) -> PresetRows:
    """A preset by its name. Raises Failure(NOT_FOUND) listing all of them."""
    if name not in PRESETS:
        message = f'data.source.preset.name: given "{name}"; accepted: {", ".join(PRESETS)}'
        raise Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message)
    return PresetRows(PRESETS[name])


def mirrored(table: Published) -> Path | None:
    """The table's folder in a mirror, where there is a mirror. Raises Failure(NOT_FOUND) when it lacks the table."""
    mirror = os.environ.get(ENV_DATASETS)
    if not mirror:
        return None
    folder = Path(mirror) / table.hub_id
    if not folder.is_dir():
        message = f"{ENV_DATASETS}: {folder} does not exist; copy the files of {table.hub_id} there"
        raise Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message)
    return folder


def load(table: Published, field: str = "data.source.preset") -> Any:
    """The rows of a table, mapped into memory. Raises Failure, which names the `field` that asked for it."""
    # it takes two seconds to load, which other sources should not cost
    import datasets  # noqa: PLC0415

    folder = mirrored(table)
    where = {"path": str(folder or table.hub_id), "name": table.config, "data_files": table.files}
    try:
        return datasets.load_dataset(**where, split=table.split)
    except (FileNotFoundError, ValueError, ConnectionError, OSError, datasets.exceptions.DatasetsError) as error:
        raise failure(table, error, field) from error


def failure(table: Published, error: Exception, field: str = "data.source.preset") -> Failure:
    """What a hub, or a mirror, that does not give a table means to the user."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"{field}: {table.hub_id}"
    if status in (401, 403):
        message = f"{what}: the hub refuses access ({status}); set target.tokenSecretRef to a Secret with an HF_TOKEN"
        return Failure(ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, message)
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, ConnectionError):
        message = f"{what}: the hub is out of reach ({said}); try again, or name a mirror in {ENV_DATASETS}"
        return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)
    instead = "data.source.file" if field.startswith("data.") else "evaluate.promptFile"
    message = f"{what}: it cannot be loaded ({said}); copy it to a file, and use {instead}"
    return Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message)
