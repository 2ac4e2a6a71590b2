"""A disk that may not be read or written: an end that no further attempt changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import CLAIMS_MOUNT, WORKSPACE_MOUNT
from draftyard_api.reasons import Reason

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (*FULL, errno.EIO)
"""Of a disk that is full or failing: any write can meet them, a line for the log too."""


def is_refused(error: OSError) -> bool:
    """Whether it is about a file that may not be used so."""
    return error.errno in REFUSED and isinstance(error.filename, str | bytes)


def is_full(error: OSError) -> bool:
    """Whether there is no space left, on the disk or in its user's quota."""
    return error.errno in FULL


def unless_broken(error: BaseException) -> None:
    """Raise the error if it tells of a disk: whoever asks wants to know what is wrong with a file that was read."""
    if isinstance(error, OSError) and error.errno in BROKEN:
        raise error


def denied(where: str, error: OSError) -> Failure:
    """The end of a stage that may not use `where`, which begins with the field that names it."""
    if error.errno == errno.EROFS:
        todo = "take a claim or a folder that can be written"
    else:
        todo = (
            f"give uid {os.getuid()} and its groups {sorted({os.getgid(), *os.getgroups()})} the right to read and "
            "write there; on a claim pod.securityContext.fsGroup does, where the volume supports it, else runAsUser"
        )
    return Failure(ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, f"{where}: {error.strerror}; {todo}")


def place(error: OSError) -> str:
    """The file that an error is about, and what of the spec brought it into a pod."""
    path = Path(os.fsdecode(error.filename))
    if path.is_relative_to(WORKSPACE_MOUNT):
        return f"workspace: {path}"
    if path.is_relative_to(CLAIMS_MOUNT) and path != Path(CLAIMS_MOUNT):
        return f"claim {path.relative_to(CLAIMS_MOUNT).parts[0]}: {path}"
    return str(path)
