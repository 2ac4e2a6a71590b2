"""Pods that admission refuses: their Job's status does not say so, the status of the run does, soon, and why."""

from __future__ import annotations

import time

import operators
import pytest
import trainings
from trainings import RUN
from world import spec

from draftyard_api import names
from draftyard_api.names import Stage

JOB = names.child(RUN, Stage.PREPARE, 1)
SOON = 2 * 2 * operators.RESYNC_SECONDS
"""Two resyncs of the longest kind."""


class Scene(trainings.Scene):
    """A namespace that takes no pod of a run."""

    def __init__(self, server, namespace):
        super().__init__(server, namespace)
        self.pods = f"api/v1/namespaces/{namespace}/pods"
        self.jobs = f"apis/batch/v1/namespaces/{namespace}/jobs"

    def limit(self, kind, hard):
        """A ResourceQuota or a LimitRange, in force."""
        path = f"api/v1/namespaces/{self.namespace}/{kind}"
        self.server.post(path, {"metadata": {"name": "limit"}, "spec": hard}).made()
        if kind == "resourcequotas":
            told = lambda: self.server.get(f"{path}/limit").made().get("status", {}).get("hard")  # noqa: E731
            assert trainings.eventually(told) == hard["hard"]
        return f"{path}/limit"

    def told(self, reason):
        """The message, once the status has the reason; no later than SOON after the Job was made."""
        trainings.eventually(lambda: self.server.get(f"{self.jobs}/{JOB}").is_ok)
        began = time.monotonic()
        trainings.eventually(lambda: self.status.get("reason") == reason)
        assert time.monotonic() - began < SOON
        return self.status["message"]

    def goes_on(self):
        """Once the cause is gone: the Job controller tries again, and nobody is told of it any more."""
        trainings.eventually(lambda: self.server.get(self.pods).made()["items"])
        trainings.eventually(lambda: self.status["reason"] == "Pending")
        assert self.status["phase"] == "Pending"
        assert [one["attempt"] for one in self.status["stages"]][:1] == [1]


@pytest.fixture
def scene(server, namespace, operator):
    return Scene(server, namespace)


def test_f6_a_quota_of_pods(scene):
    quota = scene.limit("resourcequotas", {"hard": {"pods": "0"}})
    scene.add_run(spec())
    message = scene.told("QuotaExceeded")
    assert message == (
        "prepare a1: its pods cannot be made: exceeded quota: limit, requested: pods=1, used: pods=0, limited: pods=0; "
        "raise the quota, or ask for less in prepare.pod"
    )
    assert scene.status["phase"] == "Pending"
    scene.server.delete(quota).made()
    scene.goes_on()


def test_f6_a_quota_that_wants_to_know_more(scene):
    scene.limit("resourcequotas", {"hard": {"limits.memory": "1Gi"}})
    scene.add_run(spec())
    assert "failed quota: limit: must specify limits.memory for: prepare" in scene.told("QuotaExceeded")


def test_f6_a_limit_range(scene):
    limits = scene.limit("limitranges", {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]})
    scene.add_run(spec(prepare={"pod": {"resources": {"limits": {"memory": "2Gi"}}}}))
    message = scene.told("ChildRejected")
    assert "maximum memory usage per Container is 1Gi, but limit is 2Gi" in message
    assert message.endswith("change what is asked for in prepare.pod")
    assert scene.status["phase"] == "Blocked"
    scene.server.delete(limits).made()
    scene.goes_on()


def test_f6_pod_security(scene):
    """No field of a run breaks the standard: a Job stands in for one that a webhook has changed.

    It is there before the operator makes its own, which a ConfigMap of that name holds up.
    """
    home = f"api/v1/namespaces/{scene.namespace}"
    scene.server.patch(home, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}).made()
    scene.server.post(f"{home}/configmaps", {"metadata": {"name": JOB}}).made()
    run = scene.add_run(spec())
    trainings.eventually(lambda: scene.status.get("reason") == "ChildConflict")
    labels = {
        names.LABEL_MANAGED: "true", names.LABEL_RUN: RUN, names.LABEL_UID: run["metadata"]["uid"],
        names.LABEL_STAGE: "prepare", names.LABEL_ATTEMPT: "1",
    }  # fmt: skip
    container = {"name": "prepare", "image": "example.com/none:1"}
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": JOB, "labels": labels, "ownerReferences": [trainings.owned_by(run)]}
    scene.server.post(scene.jobs, {"metadata": metadata, "spec": {"backoffLimit": 0, "template": template}}).made()
    assert 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation' in scene.told("PodSecurityViolation")
    assert scene.status["phase"] == "Blocked"
    scene.server.patch(home, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": None}}}).made()
    scene.goes_on()
