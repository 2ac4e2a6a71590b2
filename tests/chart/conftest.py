"""A control plane that knows the kinds of others, but not ours: the chart brings it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import planes
import pytest
import trainings
import yaml
from api_server import ApiServer
from charts import Helm
from control_plane import ControlPlane
from definitions import DEFINITIONS
from programs import HELM

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    planes.found(HELM)
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """A control plane without controllers."""
    planes.found(HELM)
    with planes.serving() as found:
        yield found


@pytest.fixture(scope="session")
def server(plane: ControlPlane) -> ApiServer:
    """A client with full rights."""
    return plane.client()


@pytest.fixture(scope="session")
def others(server: ApiServer) -> ApiServer:
    """The same, of a server that knows the kinds of prometheus-operator, Argo CD and Flux."""
    missing = [definition.path for definition in DEFINITIONS if not definition.is_there]
    if missing:
        pytest.skip(f"make cluster-programs: {', '.join(missing)} are missing")
    names = [server.post(trainings.DEFINITIONS, read(one.file)).made()["metadata"]["name"] for one in DEFINITIONS]
    for name in names:
        trainings.eventually(lambda name=name: is_served(server, name))
    return server


def read(file: Path) -> object:
    return yaml.safe_load(file.read_text())


def is_served(server: ApiServer, name: str) -> bool:
    conditions = server.get(f"{trainings.DEFINITIONS}/{name}").made()["status"].get("conditions", ())
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


@pytest.fixture
def namespace(server: ApiServer) -> str:
    """A namespace of its own for each test."""
    name = f"test-{next(NUMBERS)}"
    server.post("api/v1/namespaces", {"metadata": {"name": name}}).made()
    return name
