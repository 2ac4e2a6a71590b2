"""Merge patches (RFC 7386), and the refusal of every other kind."""

from __future__ import annotations

from typing import Any

from draftyard_operator.testing import errors

Json = Any
MERGE_PATCH = "application/merge-patch+json"


def merged(target: Json, patch: Json) -> Json:
    """The target with a merge patch put into it: null takes a field away, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


def checked_type(content_type: str) -> None:
    """Let only merge patches through. Raises ApiError 415.

    A client that names no type sends a *strategic* patch for built-in kinds, which merges lists by keys.
    """
    if content_type.partition(";")[0].strip() != MERGE_PATCH:
        raise errors.unsupported(content_type or "no content type", MERGE_PATCH)
