"""What the operator asks of Jobs and of garbage collection, by the controllers that do it: a test plays the kubelet."""

from __future__ import annotations

import pytest
import trainings
from job_cases import CASES, CONTAINER, SHARDS
from rule_cases import OFFLINE

NAME = OFFLINE["metadata"]["name"]
AN_HOUR_AGO = "2026-11-20T08:00:03Z"
INDEX = "batch.kubernetes.io/job-completion-index"
DRAINED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
TEMPLATE = {"spec": {"restartPolicy": "Never", "containers": [{"name": CONTAINER, "image": "example.com/none:1"}]}}


class Work:
    """A Job of which nobody runs a pod."""

    def __init__(self, server, namespace, spec, owners=()):
        self.server = server
        self.jobs = f"apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"api/v1/namespaces/{namespace}/pods"
        metadata = {"name": "work", "ownerReferences": list(owners)}
        self.sent = spec
        self.stored = server.post(self.jobs, {"metadata": metadata, "spec": spec | {"template": TEMPLATE}}).made()

    @property
    def status(self):
        return self.server.get(f"{self.jobs}/work").made()["status"]

    def waiting_pod(self, index):
        """The pod of an index that has not ended."""
        pods = self.server.get(self.pods).made()["items"]
        mine = [pod for pod in pods if pod["metadata"].get("annotations", {}).get(INDEX, "0") == str(index)]
        return next((pod for pod in mine if pod["status"].get("phase") == "Pending"), None)

    def end(self, index, code, conditions=()):
        """Say, as a kubelet would, that the pod of an index ended."""
        name = trainings.eventually(lambda: self.waiting_pod(index))["metadata"]["name"]
        ended = {"exitCode": code, "startedAt": AN_HOUR_AGO, "finishedAt": AN_HOUR_AGO}
        container = {"name": CONTAINER, "state": {"terminated": ended}}
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
def work(server, namespace, controllers):
    return lambda spec, **more: Work(server, namespace, spec, **more)


def test_no_field_of_the_job_is_dropped(work):
    made = work(SHARDS)
    assert {name: made.stored["spec"][name] for name in SHARDS} == made.sent


@pytest.mark.parametrize("case", CASES)
def test_how_a_job_ends(work, case):
    """As the fake controller of the operator's tests says, by the same table."""
    made = work(case.spec | case.changes)
    for end in case.ends:
        made.end(end.index, end.code, [DRAINED] if end.disrupted else ())
    assert made.end_of_job() == (case.condition, case.reason)
    told = {"completedIndexes": case.completed, "failedIndexes": case.failed}
    status = made.status
    assert {name: status.get(name, "") for name, text in told.items() if text is not None} == {
        name: text for name, text in told.items() if text is not None
    }


def test_what_is_owned_goes_with_its_owner(server, namespace, work):
    """Deletion of a run needs nobody of ours: no finalizer, no operator."""
    owner = server.post(trainings.path(namespace), OFFLINE).made()
    reference = trainings.owned_by(owner)
    maps = f"api/v1/namespaces/{namespace}/configmaps"
    server.post(maps, {"metadata": {"name": "task", "ownerReferences": [reference]}}).made()
    server.post(maps, {"metadata": {"name": "free"}}).made()
    made = work(SHARDS, owners=[reference])
    trainings.eventually(lambda: made.waiting_pod(0))
    server.delete(trainings.path(namespace, NAME)).made()
    for gone in (f"{made.jobs}/work", f"{maps}/task"):
        trainings.eventually(lambda path=gone: server.get(path).status == 404)
    trainings.eventually(lambda: server.get(made.pods).made()["items"] == [])
    assert server.get(f"{maps}/free").is_ok
