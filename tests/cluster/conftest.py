"""A control plane for the tests of one process, and a namespace for each test."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import control_plane
import pytest
import trainings
from api_server import ApiServer
from control_plane import ControlPlane
from programs import NEWEST, Programs

VERSION = "DRAFTYARD_KUBERNETES"
"""Which version to test on; the newest one when it is not set."""
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane without controllers, and nothing on it. Processes of one test run have one each."""
    programs = Programs(os.environ.get(VERSION, NEWEST))
    if not programs.are_made:
        pytest.skip(f"make cluster-programs: {programs.folder} is missing, or was made from other sources")
    with (
        tempfile.TemporaryDirectory(prefix="draftyard-cluster-") as folder,
        control_plane.serving(programs, Path(folder)) as found,
    ):
        yield found


@pytest.fixture(scope="session")
def server(plane: ControlPlane) -> ApiServer:
    """A client with full rights, of a server that knows DraftTrainings."""
    client = plane.client()
    trainings.install(client)
    return client


@pytest.fixture(scope="session")
def controllers(plane: ControlPlane, server: ApiServer) -> Iterator[None]:
    """With it, Jobs get pods, and what lost its owner is collected. It must find the definition when it starts."""
    with control_plane.controllers(plane):
        yield


@pytest.fixture
def namespace(server: ApiServer) -> str:
    """A namespace of its own for each test."""
    name = f"test-{next(NUMBERS)}"
    server.post("api/v1/namespaces", {"metadata": {"name": name}}).made()
    return name
