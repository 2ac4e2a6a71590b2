"""The control plane of one process of a test run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import control_plane
import pytest
from control_plane import ControlPlane
from programs import NEWEST, Programs

VERSION = "DRAFTYARD_KUBERNETES"
"""Which version to test on; the newest one when it is not set."""


def found(programs: Programs) -> Programs:
    """The programs, if they are made; else the tests that need them are skipped."""
    if not programs.are_made:
        pytest.skip(f"make cluster-programs: {programs.folder} is missing, or was made from other sources")
    return programs


@contextmanager
def serving() -> Iterator[ControlPlane]:
    """A control plane without controllers, and nothing on it."""
    programs = found(Programs(os.environ.get(VERSION, NEWEST)))
    with (
        tempfile.TemporaryDirectory(prefix="draftyard-cluster-") as folder,
        control_plane.serving(programs, Path(folder)) as plane,
    ):
        yield plane
