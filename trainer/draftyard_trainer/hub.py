"""Writing to a repository of the hub, through its own client: one commit, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason

TOKEN = "HF_TOKEN"  # noqa: S105  a name


class HubRepository:
    """A model repository, as the owner of `HF_TOKEN` may use it. The token is never in a message."""

    def __init__(self, name: str, endpoint: str | None = None) -> None:
        token = os.environ.get(TOKEN)
        if not token:
            message = f"--push: given hf://{name}; {TOKEN} is not set; set it to a token that may write there"
            raise Failure(ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED, message)
        self.name = name
        self._token = token
        self._api = HfApi(endpoint=endpoint or constants.ENDPOINT, token=token)

    def files(self) -> set[str]:
        """Names of its files; none for a repository that does not exist. Raises Failure."""
        try:
            return set(self._api.list_repo_files(self.name))
        except errors.RepositoryNotFoundError:
            return set()
        except (errors.HfHubHTTPError, OSError) as error:
            raise self._failure(error) from error

    def read(self, file: str) -> bytes:
        """A small file. Raises Failure."""
        try:
            with TemporaryDirectory(prefix="draftyard-") as folder:
                return Path(self._api.hf_hub_download(self.name, file, local_dir=folder)).read_bytes()
        except (errors.HfHubHTTPError, OSError) as error:
            raise self._failure(error) from error

    def write(self, files: Mapping[str, Path], removed: set[str], private: bool, message: str) -> str:
        """Make the repository if need be, and commit everything at once. Returns the commit's address."""
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in sorted(files.items())
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in sorted(removed)]
        try:
            self._api.create_repo(self.name, private=private, exist_ok=True)
            return str(self._api.create_commit(self.name, operations, commit_message=message).commit_url)
        except (errors.HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
            # its client wraps whatever stops an upload
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Failure:
        """What the hub's answer means."""
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
            message = (
                f"--push: given hf://{self.name}; the hub refuses access ({status}); set {TOKEN} to a token that may "
                "write there, and check the name"
            )
            return Failure(ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED, message)
        if isinstance(error, ValueError) and status is None:
            message = f"--push: given hf://{self.name}; {self._said(error)}"
            return Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
        what = f"the hub answers {status}" if status else "the hub is out of reach"
        message = f"--push: given hf://{self.name}; {what}: {self._said(error)}"
        return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)

    def _said(self, error: Exception) -> str:
        """The first lines of what went wrong, without the token."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return " ".join(lines[:3]).replace(self._token, "***")
