"""What the operator asks of Jobs and of garbage collection, by the controllers that do it: a test plays the kubelet."""

from __future__ import annotations

import pytest
import trainings
from rule_cases import OFFLINE

from draftyard_api.exit_codes import ExitCode

NAME = OFFLINE["metadata"]["name"]
NOT_COUNTED = (ExitCode.UNAVAILABLE, ExitCode.INTERRUPTED, ExitCode.FENCED)
ONE_SHARD = (ExitCode.BAD_SHARD,)
PERMANENT = tuple(sorted(set(ExitCode) - {ExitCode.OK, ExitCode.ERROR, *NOT_COUNTED, *ONE_SHARD}))
AN_HOUR_AGO = "2026-11-20T08:00:03Z"


def on_codes(action, codes):
    return {"action": action, "onExitCodes": {"containerName": "generate", "operator": "In", "values": [*codes]}}


FIELDS = {
    "completionMode": "Indexed",
    "completions": 2,
    "parallelism": 2,
    "backoffLimitPerIndex": 1,
    "maxFailedIndexes": 0,
    "podReplacementPolicy": "Failed",
    "podFailurePolicy": {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            on_codes("Ignore", NOT_COUNTED),
            on_codes("FailIndex", ONE_SHARD),
            on_codes("FailJob", PERMANENT),
        ]
    },
}
TEMPLATE = {"spec": {"restartPolicy": "Never", "containers": [{"name": "generate", "image": "example.com/none:1"}]}}


class Shards:
    """An Indexed Job of two pods, of which nobody runs one."""

    def __init__(self, server, namespace, owners=(), **changes):
        self.server = server
        self.jobs = f"apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"api/v1/namespaces/{namespace}/pods"
        metadata = {"name": "shards", "ownerReferences": list(owners)}
        self.sent = FIELDS | changes
        self.stored = server.post(self.jobs, {"metadata": metadata, "spec": self.sent | {"template": TEMPLATE}}).made()

    @property
    def status(self):
        return self.server.get(f"{self.jobs}/shards").made()["status"]

    def waiting_pod(self, index):
        """The pod of an index that has not ended."""
        pods = self.server.get(self.pods).made()["items"]
        key = "batch.kubernetes.io/job-completion-index"
        mine = [pod for pod in pods if pod["metadata"]["annotations"][key] == str(index)]
        return next((pod for pod in mine if pod["status"].get("phase") == "Pending"), None)

    def end(self, index, code, conditions=()):
        """Say, as a kubelet would, that the pod of an index ended."""
        name = trainings.eventually(lambda: self.waiting_pod(index))["metadata"]["name"]
        ended = {"exitCode": code, "startedAt": AN_HOUR_AGO, "finishedAt": AN_HOUR_AGO}
        container = {"name": "generate", "state": {"terminated": ended}}
        container |= {"image": "", "imageID": "", "ready": False, "restartCount": 0}
        phase = "Failed" if code else "Succeeded"
        status = {"phase": phase, "conditions": list(conditions), "containerStatuses": [container]}
        self.server.patch(f"{self.pods}/{name}/status", {"status": status}).made()

    def end_of_job(self):
        """Type and reason of the condition with which the Job ends."""

        def found():
            conditions = self.status.get("conditions") or ()
            return [(one["type"], one.get("reason", "")) for one in conditions if one["type"] in ("Complete", "Failed")]

        ((kind, reason),) = trainings.eventually(found)
        return kind, reason


@pytest.fixture
def shards(server, namespace, controllers):
    return lambda **changes: Shards(server, namespace, **changes)


def test_no_field_of_the_job_is_dropped(shards):
    made = shards()
    assert {name: made.stored["spec"][name] for name in FIELDS} == made.sent


def test_all_shards_are_made(shards):
    made = shards()
    made.end(0, ExitCode.OK)
    made.end(1, ExitCode.OK)
    assert made.end_of_job()[0] == "Complete"
    assert made.status["completedIndexes"] == "0,1"


def test_what_is_not_counted_is_tried_again(shards):
    """More often than `backoffLimitPerIndex` allows for failures."""
    made = shards()
    for code in (*NOT_COUNTED, ExitCode.OK):
        made.end(0, code)
    made.end(1, ExitCode.OK)
    assert made.end_of_job()[0] == "Complete"


def test_a_disruption_is_not_counted(shards):
    made = shards(backoffLimitPerIndex=0)
    drained = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    made.end(0, 137, [drained])
    made.end(0, ExitCode.OK)
    made.end(1, ExitCode.OK)
    assert made.end_of_job()[0] == "Complete"


@pytest.mark.parametrize("code", [PERMANENT[0], PERMANENT[-1]], ids=lambda code: code.name)
def test_a_permanent_end_ends_the_job(shards, code):
    made = shards()
    made.end(0, code)
    made.end(1, ExitCode.INTERRUPTED)
    assert made.end_of_job() == ("Failed", "PodFailurePolicy")


def test_a_bad_shard_is_given_up_at_once(shards):
    """The other one is made; that the stage may do with it is for the operator to say."""
    made = shards(maxFailedIndexes=1)
    made.end(0, ExitCode.BAD_SHARD)
    made.end(1, ExitCode.OK)
    assert made.end_of_job() == ("Failed", "FailedIndexes")
    assert (made.status["completedIndexes"], made.status["failedIndexes"]) == ("1", "0")


def test_more_bad_shards_than_may_be_end_the_job(shards):
    made = shards(maxFailedIndexes=0)
    made.end(0, ExitCode.BAD_SHARD)
    made.end(1, ExitCode.INTERRUPTED)
    assert made.end_of_job() == ("Failed", "MaxFailedIndexesExceeded")


def test_what_is_owned_goes_with_its_owner(server, namespace, shards):
    """Deletion of a run needs nobody of ours: no finalizer, no operator."""
    owner = server.post(trainings.path(namespace), OFFLINE).made()
    reference = trainings.owned_by(owner)
    maps = f"api/v1/namespaces/{namespace}/configmaps"
    server.post(maps, {"metadata": {"name": "task", "ownerReferences": [reference]}}).made()
    server.post(maps, {"metadata": {"name": "free"}}).made()
    made = shards(owners=[reference])
    trainings.eventually(lambda: made.waiting_pod(0))
    server.delete(trainings.path(namespace, NAME)).made()
    for gone in (f"{made.jobs}/shards", f"{maps}/task"):
        trainings.eventually(lambda path=gone: server.get(path).status == 404)
    trainings.eventually(lambda: server.get(made.pods).made()["items"] == [])
    assert server.get(f"{maps}/free").is_ok
