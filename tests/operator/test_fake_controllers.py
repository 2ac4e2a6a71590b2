"""The controllers, the collector and the kubelet of the fake cluster, without an operator.

What Jobs come to is judged by the table that a real controller is judged by too (`tests/cluster/test_jobs.py`).
"""

from __future__ import annotations

import pytest
import runs
from job_cases import CASES, CONTAINER, SHARDS

from draftyard_operator.testing import errors
from draftyard_operator.testing.children import RETRY_SECONDS
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.kinds import CLAIM, CONFIG_MAP, EVENT, JOB, POD, PYTORCH_JOB
from draftyard_operator.testing.kinds import NAMESPACE as NAMESPACES
from draftyard_operator.testing.pods import Ends, Unschedulable, Waits

HOME = "team"
INDEX = "batch.kubernetes.io/job-completion-index"
CONTAINERS = [{"name": CONTAINER, "image": "trainer:1"}]
TEMPLATE = {"spec": {"restartPolicy": "Never", "containers": CONTAINERS}}


class Scene:
    """A cluster with a clock that stands still."""

    def __init__(self):
        self.now = 1_000_000.0
        self.fake = FakeCluster(lambda: self.now, pytorch_jobs=True)
        self.fake.add_namespace(HOME)

    def later(self, seconds):
        self.now += seconds
        self.fake.tick()

    def add_job(self, name="work", owner=None, **spec):
        references = [runs.owner_reference(owner)] if owner else []
        metadata = {"name": name, "ownerReferences": references}
        return self.fake.api.create(JOB, HOME, {"metadata": metadata, "spec": {"template": TEMPLATE} | spec})

    def add_pytorch_job(self, **replicas):
        specs = {kind: {"replicas": number, "restartPolicy": "Never", "template": TEMPLATE}
                 for kind, number in replicas.items()}  # fmt: skip
        given = {"metadata": {"name": "train"}, "spec": {"pytorchReplicaSpecs": specs, "runPolicy": {}}}
        return self.fake.api.create(PYTORCH_JOB, HOME, given)

    def job(self, kind=JOB, name="work"):
        return self.fake.store.find(kind, HOME, name)

    def pods(self, phase=""):
        return [pod for pod in self.fake.pods(HOME) if phase in ("", pod["status"]["phase"])]

    def names(self, phase="Running"):
        return [pod["metadata"]["name"] for pod in self.pods(phase)]

    def end(self, name, end):
        self.fake.kubelet.end(HOME, name, end)

    def conditions(self, kind=JOB, name="work"):
        found = self.job(kind, name)["status"].get("conditions", ())
        return {one["type"]: one.get("reason", "") for one in found if one["status"] == "True"}


@pytest.fixture
def scene():
    return Scene()


def index(pod):
    return int(pod["metadata"].get("annotations", {}).get(INDEX, 0))


# -- Jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_how_a_job_ends(scene, case):
    scene.add_job(**(case.spec | case.changes))
    for end in case.ends:
        running = [pod for pod in scene.pods("Running") if index(pod) == end.index]
        # whose Job has ended already was stopped, which a real kubelet would do later
        if running:
            scene.end(running[0]["metadata"]["name"], Ends(end.code, disrupted=end.disrupted))
    ended = {kind: reason for kind, reason in scene.conditions().items() if kind in ("Complete", "Failed")}
    assert ended == {case.condition: case.reason}
    told = {"completedIndexes": case.completed, "failedIndexes": case.failed}
    status = scene.job()["status"]
    for name, text in told.items():
        assert text is None or status.get(name, "").replace("-", ",") == text
    assert scene.names() == []


def test_as_many_pods_as_parallelism_says_each_with_its_index(scene):
    scene.add_job(**SHARDS | {"completions": 5, "parallelism": 2})
    assert sorted(map(index, scene.pods())) == [0, 1]
    scene.fake.api.patch(JOB, HOME, "work", {"spec": {"parallelism": 4}})
    assert sorted(map(index, scene.pods())) == [0, 1, 2, 3]
    scene.end(scene.names()[0], Ends(0))
    assert sorted(map(index, scene.pods("Running"))) == [1, 2, 3, 4]
    assert scene.job()["status"]["active"] == 4


def test_a_suspended_job_has_no_pods_and_its_stopped_ones_count_as_nothing(scene):
    scene.add_job(backoffLimit=0)
    assert len(scene.names()) == 1
    scene.fake.api.patch(JOB, HOME, "work", {"spec": {"suspend": True}})
    assert scene.pods() == []
    assert scene.conditions() == {"Suspended": "JobSuspended"}
    assert "startTime" not in scene.job()["status"]
    scene.fake.api.patch(JOB, HOME, "work", {"spec": {"suspend": False}})
    assert len(scene.names()) == 1
    assert "Suspended" not in scene.conditions()
    assert scene.job()["status"]["failed"] == 0


def test_before_its_end_a_job_waits_for_its_pods(scene):
    scene.fake.kubelet.on_term = lambda _: None
    scene.add_job(**SHARDS)
    first, second = scene.names()
    scene.end(first, Ends(71))
    assert scene.conditions() == {"FailureTarget": "PodFailurePolicy"}
    assert scene.job()["status"]["terminating"] == 1
    scene.end(second, Ends(143))
    assert scene.conditions() == {"FailureTarget": "PodFailurePolicy", "Failed": "PodFailurePolicy"}


def test_pods_that_are_refused_are_told_of_and_tried_again(scene):
    scene.fake.pod_rules.append(lambda pod: f"exceeded quota for {pod['spec']['containers'][0]['name']}")
    scene.add_job()
    (event,) = scene.fake.store.every(EVENT, HOME)
    assert (event["reason"], event["type"]) == ("FailedCreate", "Warning")
    assert event["involvedObject"]["uid"] == scene.job()["metadata"]["uid"]
    assert event["message"].startswith('Error creating: pods "work-')
    assert event["message"].endswith("is forbidden: exceeded quota for generate")
    scene.later(RETRY_SECONDS / 2)
    assert len(scene.fake.store.every(EVENT, HOME)) == 1
    scene.later(RETRY_SECONDS / 2)
    assert len(scene.fake.store.every(EVENT, HOME)) == 2
    scene.fake.pod_rules.clear()
    scene.later(RETRY_SECONDS)
    assert len(scene.names()) == 1


# -- PyTorchJobs ----------------------------------------------------------------------------------


def test_workers_have_names_and_indexes_of_their_own(scene):
    scene.add_pytorch_job(Worker=2)
    assert scene.names() == ["train-worker-0", "train-worker-1"]
    labels = [pod["metadata"]["labels"] for pod in scene.pods()]
    assert [one["training.kubeflow.org/replica-index"] for one in labels] == ["0", "1"]
    assert scene.job(PYTORCH_JOB, "train")["status"]["replicaStatuses"] == {"Worker": {"active": 2}}
    assert scene.conditions(PYTORCH_JOB, "train") == {
        "Created": "PyTorchJobCreated", "Running": "PyTorchJobRunning",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("replicas", "first", "ends"),
    [
        pytest.param({"Worker": 2}, "train-worker-1", True, id="without a Master one worker is enough"),
        pytest.param({"Master": 1, "Worker": 1}, "train-worker-0", False, id="with one, workers do not count"),
        pytest.param({"Master": 1, "Worker": 1}, "train-master-0", True, id="but it does"),
    ],
)
def test_whose_success_is_the_success_of_all(scene, replicas, first, ends):
    scene.add_pytorch_job(**replicas)
    scene.end(first, Ends(0))
    assert ("Succeeded" in scene.conditions(PYTORCH_JOB, "train")) is ends


def test_one_failed_worker_ends_it_and_the_others_go_on(scene):
    """`cleanPodPolicy: None`: they are for us to remove."""
    scene.add_pytorch_job(Worker=2)
    scene.end("train-worker-0", Ends(1))
    assert scene.conditions(PYTORCH_JOB, "train")["Failed"] == "PyTorchJobFailed"
    assert scene.names() == ["train-worker-1"]
    before = scene.job(PYTORCH_JOB, "train")
    scene.end("train-worker-1", Ends(0))
    assert scene.job(PYTORCH_JOB, "train") == before, "an end is kept"


def test_a_worker_that_is_told_to_end_has_failed_though_it_still_runs(scene):
    scene.fake.kubelet.on_term = lambda _: None
    scene.add_pytorch_job(Worker=2)
    scene.fake.api.delete(POD, HOME, "train-worker-0", {})
    job = scene.job(PYTORCH_JOB, "train")
    assert scene.conditions(PYTORCH_JOB, "train")["Failed"] == "PyTorchJobFailed"
    assert job["status"]["replicaStatuses"] == {"Worker": {"active": 1, "failed": 1}}


@pytest.mark.parametrize(("is_behind", "names"), [(False, 1), (True, 2)], ids=["in time", "a moment behind"])
def test_what_is_gone_after_the_end_is_made_again_only_while_the_end_is_not_seen(scene, is_behind, names):
    scene.add_pytorch_job(Worker=2)
    scene.fake.training_operator.is_behind = is_behind
    scene.fake.api.delete(POD, HOME, "train-worker-0", {})
    assert len(scene.names()) == names
    assert "Failed" in scene.conditions(PYTORCH_JOB, "train")


def test_a_worker_that_is_gone_before_it_was_seen_to_end_is_made_again(scene):
    scene.add_pytorch_job(Worker=2)
    scene.fake.is_paused = True
    scene.fake.api.delete(POD, HOME, "train-worker-0", {"gracePeriodSeconds": 0})
    scene.fake.is_paused = False
    scene.fake.settle()
    assert scene.names() == ["train-worker-0", "train-worker-1"]
    assert "Failed" not in scene.conditions(PYTORCH_JOB, "train")


def test_suspending_it_removes_its_pods_and_resuming_makes_new_ones(scene):
    scene.add_pytorch_job(Worker=2)
    uids = {pod["metadata"]["uid"] for pod in scene.pods()}
    scene.fake.api.patch(PYTORCH_JOB, HOME, "train", {"spec": {"runPolicy": {"suspend": True}}})
    assert scene.pods() == []
    assert scene.conditions(PYTORCH_JOB, "train")["Suspended"] == "PyTorchJobSuspended"
    scene.fake.api.patch(PYTORCH_JOB, HOME, "train", {"spec": {"runPolicy": {"suspend": False}}})
    assert len(scene.names()) == 2
    assert not uids & {pod["metadata"]["uid"] for pod in scene.pods()}


def test_its_pods_that_are_refused_are_told_of_in_its_own_words(scene):
    scene.fake.pod_rules.append(lambda _: "exceeded quota")
    scene.add_pytorch_job(Worker=1)
    (event,) = scene.fake.store.every(EVENT, HOME)
    assert (event["reason"], event["involvedObject"]["kind"]) == ("FailedCreatePod", "PyTorchJob")


# -- Deletion -------------------------------------------------------------------------------------


def delete(scene, policy=None, kind=JOB, name="work"):
    scene.fake.api.delete(kind, HOME, name, {"propagationPolicy": policy} if policy else {})


def test_in_the_foreground_an_owner_waits_for_its_pods(scene):
    scene.fake.kubelet.on_term = lambda _: None
    scene.add_job()
    delete(scene, "Foreground")
    (pod,) = scene.pods()
    assert "deletionTimestamp" in pod["metadata"]
    assert scene.job()["metadata"]["finalizers"] == ["foregroundDeletion"]
    scene.end(pod["metadata"]["name"], Ends(143))
    assert (scene.job(), scene.pods()) == (None, [])


def test_in_the_background_pods_follow_their_owner(scene):
    scene.add_job()
    delete(scene, "Background")
    assert (scene.job(), scene.pods()) == (None, [])


def test_without_a_policy_a_job_leaves_its_pods_behind(scene):
    """`batch/v1` does so for old clients."""
    scene.add_job()
    delete(scene)
    assert scene.job() is None
    (pod,) = scene.pods("Running")
    assert not pod["metadata"].get("ownerReferences")


def test_what_a_run_owns_goes_with_it_and_nothing_else(scene):
    run = scene.fake.add_run(HOME, "demo", runs.ONLINE)
    scene.add_job(owner=run)
    references = [runs.owner_reference(run)]
    for name, owners in (("task", references), ("free", [])):
        scene.fake.api.create(CONFIG_MAP, HOME, {"metadata": {"name": name, "ownerReferences": owners}})
    delete(scene, "Background", scene.fake.kind, "demo")
    assert (scene.job(), scene.pods()) == (None, [])
    assert [one["metadata"]["name"] for one in scene.fake.store.every(CONFIG_MAP, HOME)] == ["free"]


def test_what_names_an_owner_that_is_gone_is_collected(scene):
    owner = runs.owner_reference(scene.fake.add_run(HOME, "demo", runs.ONLINE)) | {"uid": "of-another-one"}
    scene.fake.api.create(CONFIG_MAP, HOME, {"metadata": {"name": "stray", "ownerReferences": [owner]}})
    assert scene.fake.store.every(CONFIG_MAP, HOME) == []


def test_another_object_of_that_name_is_not_deleted(scene):
    scene.add_job()
    with pytest.raises(errors.ApiError) as caught:
        scene.fake.api.delete(JOB, HOME, "work", {"preconditions": {"uid": "another"}})
    assert caught.value.code == 409
    assert scene.job() is not None


def test_a_namespace_takes_all_along_and_nothing_new(scene):
    scene.fake.kubelet.on_term = lambda _: None
    scene.add_job()
    scene.fake.add_run(HOME, "demo", runs.ONLINE)
    scene.fake.api.delete(NAMESPACES, "", HOME, {})
    with pytest.raises(errors.ApiError, match="is being terminated"):
        scene.add_job("late")
    assert len(scene.pods()) == 1
    scene.end(scene.names()[0], Ends(143))
    assert scene.fake.store.find(NAMESPACES, "", HOME) is None
    assert scene.fake.store.every(scene.fake.kind, HOME) == []


def test_with_a_definition_all_its_objects_go(scene):
    scene.add_pytorch_job(Worker=1)
    definition = next(one for one in scene.fake.api.kinds() if one.name == "CustomResourceDefinition")
    scene.fake.api.delete(definition, "", PYTORCH_JOB.resource, {})
    assert scene.fake.store.every(PYTORCH_JOB, HOME) == []
    assert PYTORCH_JOB not in scene.fake.api.kinds()


# -- The kubelet ----------------------------------------------------------------------------------


def test_a_pod_ends_when_its_time_has_come_and_says_what_it_was_told_to(scene):
    scene.fake.kubelet.script = lambda _: Ends(75, "saved", after=30)
    scene.add_job(backoffLimit=0)
    scene.later(29)
    assert len(scene.names()) == 1
    scene.later(1)
    (pod,) = scene.pods("Failed")
    (container,) = pod["status"]["containerStatuses"]
    ended = container["state"]["terminated"]
    assert (ended["exitCode"], ended["message"], ended["reason"]) == (75, "saved", "Error")


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        pytest.param(Waits("ImagePullBackOff", "no such image"), "ImagePullBackOff", id="an image"),
        pytest.param(Unschedulable("0/3 nodes are available"), "Unschedulable", id="no node"),
    ],
)
def test_a_pod_that_does_not_start_says_why(scene, behaviour, told):
    scene.fake.kubelet.script = lambda _: behaviour
    scene.add_job()
    (pod,) = scene.pods("Pending")
    assert told in str(pod["status"])
    assert not pod["status"].get("podIP")


def test_a_pod_that_is_told_to_end_has_its_grace(scene):
    scene.fake.kubelet.on_term = lambda _: Ends(75, after=20)
    scene.add_job()
    delete(scene, "Foreground")
    scene.later(19)
    assert len(scene.pods()) == 1
    scene.later(1)
    assert scene.pods() == []


def test_a_lost_node_keeps_its_pods_terminating_until_it_is_given_up(scene):
    scene.add_job()
    (pod,) = scene.pods("Running")
    scene.fake.kubelet.lose_node(pod["spec"]["nodeName"])
    (lost,) = [one for one in scene.pods() if "deletionTimestamp" in one["metadata"]]
    assert lost["status"]["phase"] == "Running"
    assert "DisruptionTarget" in [one["type"] for one in lost["status"]["conditions"]]
    scene.fake.kubelet.release_node(pod["spec"]["nodeName"])
    assert pod["metadata"]["uid"] not in [one["metadata"]["uid"] for one in scene.pods()]


@pytest.mark.parametrize(("binds", "phase"), [(True, "Bound"), (False, "Pending")])
def test_claims_are_bound_unless_a_test_says_otherwise(scene, binds, phase):
    scene.fake.kubelet.binds_claims = binds
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    scene.fake.api.create(CLAIM, HOME, {"metadata": {"name": "scratch"}, "spec": spec})
    status = scene.fake.store.get(CLAIM, HOME, "scratch")["status"]
    assert (status["phase"], status.get("capacity")) == (phase, {"storage": "1Gi"} if binds else None)


def test_every_pod_has_an_address_of_its_own(scene):
    scene.add_job(**SHARDS | {"completions": 30, "parallelism": 30})
    addresses = [pod["status"]["podIP"] for pod in scene.pods()]
    assert len(set(addresses)) == 30
    assert scene.fake.store.every(POD, HOME)[0]["status"]["podIPs"][0]["ip"] in addresses


def test_a_cluster_that_is_paused_catches_up(scene):
    scene.fake.is_paused = True
    scene.add_job()
    assert scene.pods() == []
    scene.fake.is_paused = False
    scene.fake.settle()
    assert len(scene.names()) == 1
