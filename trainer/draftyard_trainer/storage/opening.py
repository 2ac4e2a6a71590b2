"""From a location to a store."""

from __future__ import annotations

from pathlib import Path

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.store import Store


def open_store(uri: str) -> Store:
    """The workspace at `uri`. Raises Failure(UNSUPPORTED) for a kind that this version cannot write to."""
    location = storage_uri.parse(uri)
    if location.scheme == "file":
        return LocalStore(Path(location.path))
    message = f"workspace: given {uri}; accepted: a folder (workspace.pvc, or draftyard run) in this version"
    raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
