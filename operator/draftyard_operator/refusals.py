"""What an answer of the API server means that is no success."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_operator.observe import Problem, read_time

Json = Any
NO_PODS = ("FailedCreate", "FailedCreatePod")
"""Events with which the Job controller and the training-operator tell that they may not make a pod."""
TOLD_AGAIN = timedelta(minutes=10)
"""What goes on is told at least so often: a client of Kubernetes tells the same thing every 5 minutes."""
NEWNESS = re.compile(r'^Error creating: (pods "[^"]*" is forbidden: )?')
"""What differs from one try to the next, since each pod has another name."""
UNKNOWN_KIND = ("cannot find RESTMapping", "no matches for kind")
"""How admission says that it does not know the kind of an owner, as for seconds after the kind was defined."""


@dataclass(frozen=True)
class Request:
    """A request, as it is counted and compared with the rights that the operator has."""

    verb: str
    resource: str
    """Such as `jobs.batch` or `drafttrainings.draftyard.dev/status`."""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


class ApiError(Exception):
    """An answer that is no success; `code` 0 when none came."""

    def __init__(self, request: Request, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{request}: {code} {reason}: {message}")
        self.request = request
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks for."""

    @property
    def is_missing(self) -> bool:
        """The object, or its whole kind, does not exist."""
        return self.code == 404

    @property
    def is_conflict(self) -> bool:
        """The object has changed since it was read."""
        return self.code == 409 and self.reason != "AlreadyExists"

    @property
    def is_taken(self) -> bool:
        """The name is taken."""
        return self.code == 409 and self.reason == "AlreadyExists"

    @property
    def is_final(self) -> bool:
        """The server has understood, and says no: the same request will not do."""
        return self.code in (400, 403, 422)


def read_error(request: Request, code: int, body: str, retry_after: str | None = None) -> ApiError:
    """An answer as an error. What is no Status object is cut: proxies answer in HTML."""
    try:
        told = json.loads(body)
        reason, message = str(told.get("reason", "")), str(told.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", " ".join(body.split())[:200]
    seconds = float(retry_after) if retry_after and re.fullmatch(r"\d+(\.\d+)?", retry_after) else 0.0
    return ApiError(request, code, reason, message, min(seconds, 300.0))


def explain(error: ApiError) -> Problem:
    """Why something was refused, in our words."""
    text = error.message
    if is_right_missing(error):
        return Problem(Reason.FORBIDDEN, f"the operator may not {error.request}: {text}")
    reason = reason_of(text)
    if reason is Reason.PENDING:
        return Problem(reason, f"{error.request}: {text}; tried again, since a kind is known a while after it is made")
    return Problem(reason, f"{error.request}: {text}" if reason is Reason.CHILD_REJECTED else text)


def reason_of(text: str) -> Reason:
    """Which admission has refused an object; all but RBAC. Pending where it will not do so for long."""
    if any(words in text for words in UNKNOWN_KIND):
        return Reason.PENDING
    if "exceeded quota" in text or "failed quota" in text:
        return Reason.QUOTA_EXCEEDED
    return Reason.POD_SECURITY_VIOLATION if "violates PodSecurity" in text else Reason.CHILD_REJECTED


def of_pods(events: Iterable[Mapping[str, Json]], stage: Stage, now: datetime) -> Problem | None:
    """Why the pods of a child cannot be made, by the newest of its events that say so; None when none does."""
    told = [(time, event) for event in events if event.get("reason") in NO_PODS and (time := last_time(event))]
    fresh = [(time, event) for time, event in told if now - time < TOLD_AGAIN]
    if not fresh:
        return None
    text = NEWNESS.sub("", max(fresh, key=lambda one: one[0])[1].get("message", ""))
    reason = reason_of(text)
    if reason is Reason.PENDING:
        return Problem(reason, f"its pods cannot be made yet: {text}; its controller tries again")
    todo = "raise the quota, or ask for less" if reason is Reason.QUOTA_EXCEEDED else "change what is asked for"
    return Problem(reason, f"its pods cannot be made: {text}; {todo} in {stage}.pod")


def last_time(event: Mapping[str, Json]) -> datetime | None:
    """When an event was told last; both of Kubernetes' ways to write that."""
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return read_time(next(filter(None, times), None))


def is_right_missing(error: ApiError) -> bool:
    """Whether a 403 is RBAC's: it names the user, which admission does not."""
    return error.code == 403 and " cannot " in error.message and "User " in error.message


def is_leaving(error: ApiError) -> bool:
    """Whether the namespace goes: nothing more is made there, and nobody needs to be told."""
    return error.code == 403 and "is being terminated" in error.message
