"""The operator on a real API server with the real Job controller and garbage collector; only nodes are played."""

from __future__ import annotations

import pytest
import trainings
from nodes import Nodes, ends_well, holding
from trainings import RUN
from world import GATED, OFFLINE, spec

from draftyard_api.names import Stage

OWNED = ("apis/batch/v1/namespaces/{}/jobs", "api/v1/namespaces/{}/pods", "api/v1/namespaces/{}/configmaps")
ROOT_CA = "kube-root-ca.crt"
"""A ConfigMap that every namespace has."""


class Scene(trainings.Scene):
    """A namespace with nodes."""

    def __init__(self, server, namespace, operator):
        super().__init__(server, namespace)
        self.operator = operator
        self.nodes = Nodes(server, namespace)

    def until(self, **wanted):
        """Wait until the status says so, and return it. Raises NotStartedError with both and the end of the log."""

        def found():
            status = self.status
            return status if {name: status.get(name) for name in wanted} == wanted else None

        try:
            return trainings.eventually(found)
        except TimeoutError as error:
            raise self.operator.failure(f"has not led to {wanted}, but to {self.status}") from error

    def names(self, path):
        found = self.server.get(path.format(self.namespace)).made()["items"]
        return sorted(one["metadata"]["name"] for one in found if one["metadata"]["name"] != ROOT_CA)

    def left(self):
        """What a deleted run has left behind, claims aside."""
        return [name for path in OWNED for name in self.names(path)]


@pytest.fixture
def scene(server, namespace, operator):
    made = Scene(server, namespace, operator)
    made.nodes.start()
    yield made
    made.nodes.stop()


@pytest.mark.parametrize(
    ("given", "stages"),
    [
        pytest.param(spec(), ["prepare", "train"], id="Online"),
        pytest.param(spec(OFFLINE, **GATED), ["prepare", "generate", "train", "evaluate"], id="Offline"),
    ],
)
def test_a_run_goes_to_the_end(scene, given, stages):
    scene.add_run(given)
    status = scene.until(phase="Succeeded")
    assert [(one["name"], one["state"], one["attempt"]) for one in status["stages"]] == [
        (name, "Succeeded", 1) for name in stages
    ]
    assert (status["reason"], status["acceptance"]["length"]) == ("DraftPublished", "2.71")
    assert scene.names(OWNED[0]) == sorted(f"{RUN}-{name}-a1" for name in stages)


def test_suspend_gives_the_pods_back_and_resume_goes_on(scene):
    scene.nodes.script = holding(Stage.TRAIN)
    scene.add_run(spec())
    scene.until(phase="Running", stage="train")
    path = trainings.path(scene.namespace, RUN)
    scene.server.patch(path, {"spec": {"suspend": True}}).made()
    scene.until(phase="Suspended")
    assert [name for name in scene.names(OWNED[1]) if "-train-" in name] == []
    scene.server.patch(path, {"spec": {"suspend": False}}).made()
    status = scene.until(phase="Running", stage="train")
    assert (status["attempt"], status["stages"][1]["counted"]) == (2, 0)
    scene.nodes.script = ends_well
    scene.nodes.end(Stage.TRAIN)
    scene.until(phase="Succeeded")


@pytest.mark.parametrize("reclaim", ["Retain", "Delete"])
@pytest.mark.parametrize("stage", [*Stage, None], ids=lambda stage: stage or "the end")
def test_f12_a_run_that_is_deleted_leaves_nothing_that_it_owned(scene, stage, reclaim):
    scene.nodes.script = holding(*([stage] if stage else []))
    workspace = {"pvc": {"claimTemplate": {"size": "1Gi", "accessModes": ["ReadWriteMany"], "reclaim": reclaim}}}
    asked = OFFLINE["data"] | ({"regenerate": {"shards": 2}} if stage is Stage.REGENERATE else {})
    scene.add_run(spec(OFFLINE, data=asked, workspace=workspace, **GATED))
    scene.until(**({"phase": "Running", "stage": stage.value} if stage else {"phase": "Succeeded"}))
    assert scene.left()
    scene.server.delete(trainings.path(scene.namespace, RUN)).made()
    trainings.eventually(lambda: not scene.left())
    claims = scene.names("api/v1/namespaces/{}/persistentvolumeclaims")
    if reclaim == "Delete":
        trainings.eventually(lambda: not scene.names("api/v1/namespaces/{}/persistentvolumeclaims"))
    else:
        assert claims == [f"{RUN}-workspace"]
