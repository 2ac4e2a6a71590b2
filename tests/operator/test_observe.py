"""Raw objects as values."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from draftyard_api.names import Stage
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_operator import observe

LABELS = {"draftyard.dev/stage": "train", "draftyard.dev/attempt": "2"}


def job(status=None, **spec):
    return {"metadata": {"name": "j", "uid": "u", "labels": LABELS}, "spec": spec, "status": status or {}}


def ends(kind, status="True", **more):
    return {"conditions": [{"type": kind, "status": status, **more}]}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        pytest.param(job(), "Pending", id="just made"),
        pytest.param(job({"active": 1}), "Running", id="a pod exists"),
        pytest.param(job(suspend=True), "Queued", id="suspended"),
        pytest.param(job(ends("Complete"), suspend=True), "Succeeded", id="complete"),
        pytest.param(job(ends("Failed", reason="BackoffLimitExceeded")), "Failed", id="failed"),
        pytest.param(job(ends("FailureTarget") | {"active": 1}), "Running", id="about to fail, while pods stop"),
        pytest.param(job(ends("SuccessCriteriaMet") | {"active": 1}), "Running", id="about to be complete"),
        pytest.param(job(ends("Failed", "False")), "Pending", id="a condition that does not hold"),
    ],
)
def test_the_state_of_a_job(found, state):
    assert observe.read_job(found).state == state


def test_what_a_job_says():
    read = observe.read_job(
        job({"completedIndexes": "0-2", "failedIndexes": "3"} | ends("Failed", reason="x"), parallelism=2)
    )
    assert (read.stage, read.attempt, read.parallelism) == (Stage.TRAIN, 2, 2)
    assert (read.completed, read.failed, read.reason) == ("0-2", "3", "x")


@pytest.mark.parametrize(
    ("status", "policy", "state"),
    [
        ({}, {}, "Pending"),
        ({"replicaStatuses": {"Worker": {"active": 2}}}, {}, "Running"),
        (ends("Succeeded"), {}, "Succeeded"),
        (ends("Failed"), {}, "Failed"),
        ({}, {"suspend": True}, "Queued"),
        (ends("Suspended"), {"suspend": True}, "Queued"),
    ],
    ids=["just made", "active workers", "succeeded", "failed", "suspended", "said to be suspended"],
)
def test_the_state_of_a_pytorch_job(status, policy, state):
    read = observe.read_pytorch_job(job(status, runPolicy=policy))
    assert (read.kind, read.state) == ("PyTorchJob", state)


@pytest.mark.parametrize("labels", [{}, {"draftyard.dev/stage": "odd"} | LABELS | {"draftyard.dev/attempt": "x"}])
def test_what_is_not_ours_is_no_child(labels):
    assert observe.read_job({"metadata": {"name": "j", "uid": "u", "labels": labels}, "spec": {}}) is None
    assert observe.read_pod({"metadata": {"name": "j", "uid": "u", "labels": labels}}) is None


# -- Pods ---------------------------------------------------------------------------------------


def pod(status=None, names=("train",), **metadata):
    spec = {"nodeName": "gpu-7", "containers": [{"name": name} for name in names]}
    return {"metadata": {"name": "p", "uid": "u", "labels": LABELS} | metadata, "spec": spec, "status": status or {}}


def state(name="train", **found):
    return {"containerStatuses": [{"name": name, "state": found}]}


def scheduled(message):
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (scheduled("0/3 nodes are available: 3 Insufficient cpu"), Reason.UNSCHEDULABLE),
        (scheduled("pod has unbound immediate PersistentVolumeClaims"), Reason.VOLUME_NOT_BOUND),
        (scheduled('persistentvolumeclaim "scratch" not found'), Reason.VOLUME_NOT_BOUND),
        (scheduled("1 node(s) had volume node affinity conflict"), Reason.VOLUME_NOT_BOUND),
        (state(waiting={"reason": "ErrImagePull", "message": "x"}), Reason.IMAGE_PULL_FAILED),
        (state(waiting={"reason": "InvalidImageName"}), Reason.IMAGE_PULL_FAILED),
        (
            state(waiting={"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}),
            Reason.SECRET_NOT_FOUND,
        ),
        (state(waiting={"reason": "CreateContainerConfigError", "message": "couldn't find key"}), Reason.PENDING),
    ],
)
def test_why_a_pod_does_not_start(status, reason):
    assert observe.read_pod(pod(status)).problem.reason is reason


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_being_made_has_no_problem(reason):
    assert observe.read_pod(pod(state(waiting={"reason": reason}))).problem is None


RESULT = StageResult(stage=Stage.TRAIN, manifest_sha256="ab")


def ended(code, message="", phase=None, **more):
    told = state(terminated={"exitCode": code, "message": message, "finishedAt": "2026-11-20T08:00:00Z"})
    return {"phase": phase or ("Failed" if code else "Succeeded")} | told | more


def test_a_result_is_read_from_the_termination_message():
    end = observe.read_pod(pod(ended(0, RESULT.model_dump_json(by_alias=True)))).end
    assert (end.exit_code, end.result, end.text) == (0, RESULT, "")
    assert end.finished_at == datetime(2026, 11, 20, 8, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "last line of a log", "{}", '{"stage": "train", "exitCode": "x"}', "[1"])
def test_what_is_no_result_is_text(text):
    end = observe.read_pod(pod(ended(1, text))).end
    assert (end.result, end.text) == (None, text)


@pytest.mark.parametrize(
    ("more", "disrupted"),
    [
        ({}, False),
        ({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}, True),
        ({"conditions": [{"type": "DisruptionTarget", "status": "False"}]}, False),
        ({"reason": "Evicted", "message": "low on memory"}, True),
        ({"reason": "NodeLost"}, True),
    ],
    ids=["none", "evicted by API", "not so", "evicted by the kubelet", "a lost node"],
)
def test_a_disruption_is_seen(more, disrupted):
    assert observe.read_pod(pod(ended(137, **more))).end.is_disrupted is disrupted


def test_a_pod_that_went_without_a_word_was_killed():
    assert observe.read_pod(pod({"phase": "Failed"})).end.exit_code == 137


def test_a_container_that_a_mesh_has_put_first_is_not_asked():
    status = {
        "phase": "Failed",
        "containerStatuses": [
            {"name": "proxy", "state": {"terminated": {"exitCode": 0}}},
            {"name": "train", "state": {"terminated": {"exitCode": 71}}},
        ],
    }
    assert observe.read_pod(pod(status, ("proxy", "train"))).end.exit_code == 71


@pytest.mark.parametrize(
    "metadata",
    [
        {"annotations": {"batch.kubernetes.io/job-completion-index": "7"}},
        {"labels": LABELS | {"training.kubeflow.org/replica-index": "7"}},
    ],
    ids=["an Indexed Job", "a PyTorchJob"],
)
def test_the_index_of_a_pod(metadata):
    assert observe.read_pod(pod(**metadata)).index == 7


def test_the_ready_pod_with_the_lowest_index_is_asked_if_it_is_the_childs():
    ready = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}

    def made(name, index, owner):
        owners = [{"uid": owner, "controller": True}]
        notes = {"batch.kubernetes.io/job-completion-index": str(index)}
        return observe.read_pod(pod(ready, name=name, ownerReferences=owners, annotations=notes))

    pods = [made("b", 2, "job"), made("foreign", 0, "other"), made("a", 1, "job")]
    assert observe.first_ready(pods, "job").name == "a"
    assert observe.first_ready(pods, "nobody") is None


# -- The claim ----------------------------------------------------------------------------------


def test_a_claim():
    found = {
        "metadata": {
            "name": "c", "uid": "u", "labels": {"draftyard.dev/claim-of": "r1"}, "deletionTimestamp": "x",
            "ownerReferences": [{"kind": "Other", "uid": "o"}, {"kind": "DraftTraining", "uid": "d"}],
        },
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    }  # fmt: skip
    read = observe.read_claim(found)
    assert (read.capacity, read.requested, read.is_bound) == (2**30, 2**31, True)
    assert (read.owner_uid, read.claim_of, read.is_deleting) == ("d", "r1", True)


def test_a_claim_that_is_not_bound():
    read = observe.read_claim({"metadata": {"name": "c", "uid": "u"}, "spec": {}})
    assert (read.capacity, read.requested, read.is_bound, read.access_modes) == (0, 0, False, ())
