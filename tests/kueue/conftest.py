"""One rig for the tests of one process, and a namespace with a queue of its own for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import planes
import pytest
import rig
import trainings
from played_node import SAVED
from programs import TRAINING
from rig import Rig

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def everything() -> Iterator[Rig]:
    """The rig."""
    planes.found(TRAINING)
    with planes.serving() as plane, rig.played(plane) as found:
        yield found


@dataclass(frozen=True)
class Team:
    """A namespace, and the queue that its runs go to."""

    rig: Rig
    namespace: str

    @property
    def queue(self) -> str:
        """Its name; a queue exists once it has a quota."""
        return f"queue-of-{self.namespace}"

    def give(self, pods: int) -> None:
        """Let so many pods run at the same time."""
        self.rig.kueue.quotas[self.queue] = pods


@pytest.fixture
def team(everything: Rig) -> Iterator[Team]:
    """A team whose runs are removed at the end."""
    name = f"team-{next(NUMBERS)}"
    everything.server.post("api/v1/namespaces", {"metadata": {"name": name}}).made()
    account = f"api/v1/namespaces/{name}/serviceaccounts/default"
    everything.until(lambda: everything.server.get(account).is_ok)
    everything.kueue.disagreements.clear()
    everything.node.selectors.clear()
    yield Team(everything, name)
    everything.node.on_term = lambda _: SAVED
    for run in everything.server.get(trainings.path(name)).made()["items"]:
        everything.server.delete(trainings.path(name, run["metadata"]["name"])).made()
    everything.until(lambda: not everything.children(name) and not everything.pods(name))
