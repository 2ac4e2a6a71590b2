"""The stand-in keeps Kueue's contract: tried with plain Jobs, and the real Job controller."""

from __future__ import annotations

import copy

import job_kinds
import pytest
import workloads
from job_kinds import JOB, MIN_PARALLELISM, PRIORITY, QUEUE

from draftyard_operator.testing.pods import Ends, Runs

TEMPLATE = {
    "metadata": {"labels": {"draftyard.dev/stage": "plain"}},
    "spec": {
        "restartPolicy": "Never", "nodeSelector": {"zone": "a"}, "automountServiceAccountToken": False,
        "containers": [{"name": "work", "image": "example.com/none:1"}],
    },
}  # fmt: skip


class Plain:
    """A Job of a team, and what has become of it."""

    def __init__(self, team, name="work", labels=None, notes=None, **spec):
        self.team, self.name = team, name
        labels = {QUEUE: team.queue} if labels is None else labels
        metadata = {"name": name, "labels": labels, "annotations": notes or {}}
        body = {"metadata": metadata, "spec": {"template": copy.deepcopy(TEMPLATE), "backoffLimit": 0} | spec}
        self.answer = team.rig.server.post(JOB.path(team.namespace), body)

    @property
    def job(self):
        return self.team.rig.server.get(JOB.path(self.team.namespace, self.name)).made()

    @property
    def workload(self):
        return self.team.rig.workloads(self.team.namespace).get(self.name)

    def until(self, *kinds):
        """Wait until conditions of its Workload are True."""

        def holds():
            found = self.workload
            return found if found and all(workloads.holds(found, kind) for kind in kinds) else None

        return self.team.rig.until(holds, lambda: self.workload)

    def waits(self):
        """Wait until it is told why it waits. Returns Kueue's words."""
        return self.team.rig.until(
            lambda: self.workload and workloads.condition(self.workload, "QuotaReserved").get("status") == "False"
            and workloads.condition(self.workload, "QuotaReserved")["message"]
        )  # fmt: skip

    def pods(self):
        return self.team.rig.pods(self.team.namespace)

    def selector(self):
        return self.job["spec"]["template"]["spec"]["nodeSelector"]


@pytest.fixture
def plain(team):
    team.rig.node.script = lambda _: Runs()
    yield lambda *args, **fields: Plain(team, *args, **fields)
    for one in team.rig.jobs(JOB, team.namespace):
        team.rig.server.delete(JOB.path(team.namespace, one["metadata"]["name"])).made()


def test_a_job_without_a_queue_is_nobodys_business(team, plain):
    job = plain(labels={})
    team.rig.until(job.pods)
    assert job.workload is None
    assert "suspend" not in job.job["spec"] or not job.job["spec"]["suspend"]


def test_a_job_with_a_queue_never_runs_before_it_is_admitted(team, plain):
    """The webhook suspends it before it is stored, so that there is no moment in which it has pods."""
    job = plain()
    assert job.answer.made()["spec"]["suspend"] is True
    assert job.waits() == f"LocalQueue {team.queue} doesn't exist"
    team.give(0)
    team.rig.until(
        lambda: job.waits().endswith("insufficient unused quota for pods in flavor h100-spot, 1 more needed")
    )
    assert job.pods() == []
    metadata = job.workload["metadata"]
    assert metadata["labels"] == {"kueue.x-k8s.io/job-uid": job.job["metadata"]["uid"]}
    assert metadata["finalizers"] == ["kueue.x-k8s.io/resource-in-use"]
    assert [(one["kind"], one["controller"]) for one in metadata["ownerReferences"]] == [("Job", True)]


def test_admission_writes_the_flavor_into_the_template(team, plain):
    team.give(1)
    job = plain()
    job.until("QuotaReserved", "Admitted")
    (pod,) = team.rig.until(job.pods)
    assert pod["spec"]["nodeSelector"] == {"zone": "a", "example.com/instance": "h100-spot"}
    assert {"key": "example.com/spot", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
    team.rig.node.script = lambda _: Ends()
    job.until("Finished")
    team.rig.until(lambda: "finalizers" not in job.workload["metadata"])
    assert team.rig.kueue.disagreements == []


def test_eviction_takes_the_flavor_out_again_and_the_pods_away(team, plain):
    team.give(1)
    job = plain(podFailurePolicy={"rules": [on_code(75)]})
    team.rig.until(job.pods)
    team.give(0)
    job.until("Evicted", "Requeued")
    team.rig.until(lambda: not job.pods())
    found = job.job
    assert (found["spec"]["suspend"], job.selector()) == (True, {"zone": "a"})
    assert job_kinds.STOPPING not in found["metadata"].get("annotations", {})
    team.give(1)
    again = job.until("Admitted")
    assert workloads.condition(again, "Evicted")["message"].startswith("Previously: Preempted")
    team.rig.until(job.pods)
    assert job.selector() == {"zone": "a", "example.com/instance": "h100-spot"}


def on_code(code):
    return {"action": "Ignore", "onExitCodes": {"containerName": "work", "operator": "In", "values": [code]}}


def test_a_pod_that_an_eviction_kills_is_no_failure_of_its_job(team, plain):
    """The Job controller does not count pods that it ends itself, however they end."""
    team.give(1)
    team.rig.node.on_term = lambda _: Ends(137)
    job = plain()
    (pod,) = team.rig.until(lambda: [one for one in job.pods() if one["status"]["phase"] == "Running"])
    team.give(0)
    team.rig.until(lambda: not job.pods())
    team.give(1)
    (again,) = team.rig.until(job.pods)
    assert again["metadata"]["uid"] != pod["metadata"]["uid"]
    assert job_kinds.end_of(job.job) is None
    assert "failed" not in job.job["status"]


def test_who_starts_a_job_past_the_queue_is_stopped(team, plain):
    team.give(0)
    job = plain()
    job.waits()
    team.rig.server.patch(JOB.path(team.namespace, job.name), {"spec": {"suspend": False}}).made()
    team.rig.until(lambda: job.job["spec"]["suspend"])
    team.rig.until(lambda: not job.pods())


def test_partial_admission_lowers_parallelism_and_eviction_restores_it(team, plain):
    team.give(2)
    job = plain(notes={MIN_PARALLELISM: "1"}, parallelism=4, completions=4, podFailurePolicy={"rules": [on_code(75)]})
    team.rig.until(lambda: len(job.pods()) == 2)
    assert job.job["spec"]["parallelism"] == 2
    refused = team.rig.server.patch(JOB.path(team.namespace, job.name), {"spec": {"parallelism": 3}})
    assert "cannot change when partial admission is enabled" in refused.message
    team.give(0)
    team.rig.until(lambda: job.job["spec"]["suspend"] and job.job["spec"]["parallelism"] == 4)


@pytest.mark.parametrize("least", ["0", "4"])
def test_a_minimum_that_is_none_is_refused(plain, least):
    refused = plain(notes={MIN_PARALLELISM: least}, parallelism=4, completions=4).answer
    assert "should be between 0 and 3" in refused.message


def test_a_more_important_job_preempts(team, plain):
    team.give(1)
    team.rig.kueue.priorities["urgent"] = 100
    first = plain("first", podFailurePolicy={"rules": [on_code(75)]})
    team.rig.until(first.pods)
    second = plain("second", labels={QUEUE: team.queue, PRIORITY: "urgent"})
    uid = second.until("Admitted")["metadata"]["uid"]
    assert workloads.condition(first.until("Evicted"), "Evicted")["message"] == (
        f"Preempted to accommodate a workload (UID: {uid}) due to prioritization"
    )
    team.rig.server.delete(JOB.path(team.namespace, "second")).made()
    first.until("Admitted")


def test_what_somebody_changes_in_an_admitted_job_is_noticed(team, plain):
    """So that the tests of runs can fail: real Kueue stops such a job."""
    team.give(4)
    job = plain(parallelism=2, completions=4)
    team.rig.until(lambda: len(job.pods()) == 2)
    team.rig.server.patch(JOB.path(team.namespace, job.name), {"spec": {"parallelism": 3}}).made()
    assert team.rig.until(lambda: team.rig.kueue.disagreements) == ["work: {'main': 3} pods, admitted with 2"]


def test_a_deleted_job_takes_its_workload_along(team, plain):
    team.give(0)
    job = plain()
    job.waits()
    team.rig.server.delete(JOB.path(team.namespace, job.name), "Foreground").made()
    team.rig.until(lambda: not team.rig.workloads(team.namespace))
    assert team.rig.jobs(JOB, team.namespace) == []
