"""How a pod ends, and what that means to the one who started it.

A stage raises `Failure`; the process around it turns that into an exit code and a termination message.
"""

from __future__ import annotations

from enum import IntEnum

from draftyard_api.reasons import Reason


class ExitCode(IntEnum):
    """Exit codes of every stage process. Any other code counts as ERROR."""

    OK = 0
    ERROR = 1
    """An unexpected end; counted as a failed attempt."""
    BAD_TASK = 64
    """The task file or the spec is wrong."""
    BAD_DATA = 65
    """The conversations cannot be trained from."""
    NOT_FOUND = 66
    """A model or a data source does not exist."""
    UNAVAILABLE = 69
    """Storage or the hub is out of reach after retries."""
    NOT_CONFORMANT = 70
    """The exported draft breaks a rule of an engine."""
    DIVERGED = 71
    """The loss is not finite any more."""
    EXISTS = 73
    """Another export is in the way."""
    INTERRUPTED = 75
    """Ended by a signal; what was done is saved."""
    DENIED = 77
    """Access to a model or to storage was refused."""
    UNSUPPORTED = 78
    """The target cannot be used in the way the spec asks for."""
    NO_SPACE = 79
    """The workspace is full."""
    BAD_SHARD = 80
    """Too many documents of one shard cannot be used."""
    FENCED = 81
    """Another pod has taken over the run."""
    GATE_MISSED = 82
    """The acceptance length is below the gate."""
    STALE_INPUT = 83
    """The output of an earlier stage is gone or broken."""


class Failure(Exception):
    """An end that the stage understands: what happened, what was given, what is accepted, what to do.

    `message` is shown to users and stored in the status: it names the field and never holds a Secret.
    """

    def __init__(self, code: ExitCode, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
