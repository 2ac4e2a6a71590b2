"""From a location to a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.schema import S3Access
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.store import Store

if TYPE_CHECKING:
    from draftyard_trainer.storage.bucket import Holder
    from draftyard_trainer.storage.s3 import Downloaded


def fetch_objects(
    uri: str, access: S3Access | None, holder: Holder, wants: Callable[[str], bool] = lambda _name: True
) -> Downloaded:
    """Copies of the wanted objects below an `s3://` location. Raises Failure; FileNotFoundError without any object."""
    from draftyard_trainer.storage.bucket import Bucket  # noqa: PLC0415  as below
    from draftyard_trainer.storage.s3 import download_folder  # noqa: PLC0415

    location = storage_uri.parse(uri)
    return download_folder(Bucket.of(location.authority, access, holder), location.path, wants)


def open_store(uri: str, access: S3Access | None = None) -> Store:
    """The workspace at `uri`. Raises Failure(UNSUPPORTED) for a kind that nothing can be written to."""
    location = storage_uri.parse(uri)
    if location.scheme == "file":
        return LocalStore(Path(location.path))
    if location.scheme == "s3":
        # boto3 takes half a second to load, which a workspace in a folder should not cost
        from draftyard_trainer.storage.s3 import S3Store  # noqa: PLC0415

        return S3Store.open(location.authority, location.path, access)
    message = f"workspace: given {uri}; accepted: a folder (workspace.pvc, or draftyard run), or s3://bucket/prefix"
    raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
