"""A control plane for the tests of one process, and a namespace for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import control_plane
import operators
import planes
import pytest
import trainings
from api_server import ApiServer
from control_plane import ControlPlane, Running

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane without controllers, and nothing on it. Processes of one test run have one each."""
    with planes.serving() as found:
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


@pytest.fixture(scope="module")
def operator(plane: ControlPlane, controllers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The operator in a process of its own, for the tests of one file."""
    with operators.running(plane, tmp_path_factory.mktemp("operator")) as process:
        yield process


@pytest.fixture
def namespace(server: ApiServer) -> Iterator[str]:
    """A namespace of its own for each test. Its runs go with the test: an operator that starts later takes up all."""
    name = f"test-{next(NUMBERS)}"
    server.post("api/v1/namespaces", {"metadata": {"name": name}}).made()
    yield name
    server.delete(trainings.path(name)).made()
