"""Answers of the API server that are no objects."""

from __future__ import annotations

from typing import Any

from draftyard_operator.testing.kinds import Kind

Json = Any


class ApiError(Exception):
    """A request that is refused: the code, and the Status object that says why."""

    def __init__(
        self, code: int, reason: str, message: str, details: Json = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.headers = headers or {}

    @property
    def body(self) -> Json:
        """As the API server writes it."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def named(kind: Kind, name: str, causes: list[Json] | None = None) -> Json:
    """Details of a refusal that is about one object."""
    found = {"name": name, "group": kind.group, "kind": kind.plural}
    return found | ({"causes": causes} if causes else {})


def not_found(kind: Kind, name: str) -> ApiError:
    """404 for an object."""
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', named(kind, name))


def no_such_path() -> ApiError:
    """404 for a resource that is not served."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def already_exists(kind: Kind, name: str, *, leaving: bool = False) -> ApiError:
    """409 for a name that is taken."""
    message = f'{kind.resource} "{name}" already exists'
    return ApiError(
        409, "AlreadyExists", f"object is being deleted: {message}" if leaving else message, named(kind, name)
    )


def conflict(kind: Kind, name: str) -> ApiError:
    """409 for a resourceVersion that is not the stored one."""
    message = (
        f'Operation cannot be fulfilled on {kind.resource} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )
    return ApiError(409, "Conflict", message, named(kind, name))


def invalid(kind: Kind, name: str, causes: list[tuple[str, str]]) -> ApiError:
    """422: fields and what is wrong with them."""
    told = ", ".join(f"{field}: {message}" for field, message in causes)
    message = f'{kind.name}{f".{kind.group}" if kind.group else ""} "{name}" is invalid: {told}'
    listed = [{"reason": "FieldValueInvalid", "message": text, "field": field} for field, text in causes]
    return ApiError(422, "Invalid", message, named(kind, name, listed))


def forbidden(kind: Kind, name: str, why: str, causes: list[Json] | None = None) -> ApiError:
    """403, such as a quota, Pod Security, or a verb that is not granted."""
    subject = f' "{name}"' if name else ""
    return ApiError(403, "Forbidden", f"{kind.resource}{subject} is forbidden: {why}", named(kind, name, causes))


def terminating(kind: Kind, name: str, namespace: str) -> ApiError:
    """403: nothing new in a namespace that goes."""
    why = f"unable to create new content in namespace {namespace} because it is being terminated"
    cause = {
        "reason": "NamespaceTerminating",
        "message": f"namespace {namespace} is being terminated",
        "field": "metadata.namespace",
    }
    return forbidden(kind, name, why, [cause])


def expired(message: str = "too old resource version") -> ApiError:
    """410: what was asked for is no longer in the window."""
    return ApiError(410, "Expired", message)


def unsupported(given: str, accepted: str) -> ApiError:
    """415: a patch that this project never sends."""
    return ApiError(415, "UnsupportedMediaType", f"given {given}; accepted: {accepted}")
