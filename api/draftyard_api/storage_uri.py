"""Where something lies: `file://`, `pvc://claim/path`, `s3://bucket/prefix`, `hf://org/name`, or a bare `org/name`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Scheme = Literal["file", "pvc", "s3", "hf"]

ACCEPTED = "org/name, hf://org/name, pvc://claim/path, s3://bucket/prefix (file:// works in draftyard run only)"

CLUSTER_PATTERN = (
    r"^(hf://)?[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
    r"|^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^/].*$"
    r"|^s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/.*)?$"
)
"""What the API server accepts; RE2 and Python agree on it."""


@dataclass(frozen=True)
class StorageUri:
    """A parsed location: `authority` is the claim, the bucket, or empty; `path` starts with a slash for files only."""

    scheme: Scheme
    authority: str
    path: str

    def __str__(self) -> str:
        match self.scheme:
            case "file":
                return f"file://{self.path}"
            case "hf":
                return f"hf://{self.path}"
            case _:
                return f"{self.scheme}://{self.authority}/{self.path}".rstrip("/")


def is_file(text: str) -> bool:
    """Whether a location is a file or folder of this machine: `file://` and a path, or a path such as `./folder`."""
    return len(text) > len("file://") if text.startswith("file://") else text.startswith(("/", "./", "../"))


def is_in_cluster(text: str) -> bool:
    """Whether a pod can reach a location; a `..` in it would lead out of the claim or the prefix."""
    return re.fullmatch(CLUSTER_PATTERN, text) is not None and "/../" not in f"{text}/"


def parse(text: str) -> StorageUri:
    """Read a location. Raises ValueError naming what was given and what is accepted.

    A relative `file://path` or `./path` is legal here and stays relative: see `resolve`.
    """
    if is_file(text):
        return StorageUri("file", "", text.removeprefix("file://"))
    if is_in_cluster(text):
        scheme, separator, rest = text.partition("://")
        if not separator:
            return StorageUri("hf", "", text)
        if scheme == "hf":
            return StorageUri("hf", "", rest)
        authority, _, path = rest.partition("/")
        return StorageUri("pvc" if scheme == "pvc" else "s3", authority, path)
    raise ValueError(f'given "{text}"; accepted: {ACCEPTED}')


def resolve(text: str, base: Path, claims: Mapping[str, Path]) -> str:
    """Turn a location into one that a process here can open: claims and relative files become absolute files.

    `base` is the folder of the YAML file, `claims` says where each claim is mounted. Raises ValueError for an
    unknown claim.
    """
    uri = parse(text)
    if uri.scheme == "file":
        return f"file://{(base / uri.path).resolve()}"
    if uri.scheme == "pvc":
        if uri.authority not in claims:
            raise ValueError(
                f'given "{text}"; claim {uri.authority} is no folder here: '
                f"pass --claim {uri.authority}=DIRECTORY, or use a file:// location"
            )
        return f"file://{(claims[uri.authority] / uri.path).resolve()}"
    return str(uri)


def local_path(text: str) -> Path | None:
    """The folder or file behind an absolute `file://` location, else None."""
    uri = parse(text)
    return Path(uri.path) if uri.scheme == "file" else None
