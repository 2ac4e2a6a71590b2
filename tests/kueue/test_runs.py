"""Whole runs behind a queue (F20), with the operator's own process, real controllers, and Kueue's part played."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trainings
import workloads
from job_kinds import JOB, PRIORITY, QUEUE
from scripts import saves, stage_in, works
from world import GATED, OFFLINE, ONLINE, reading, spec

from draftyard_api.names import PROGRESS_PORT, Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType as C
from draftyard_api.status import Phase
from draftyard_operator import times
from draftyard_operator.deadlines import find
from draftyard_operator.run import stage_of
from draftyard_operator.testing.pods import Ends, Runs, Unschedulable

NAME = "demo"
TWO_NODES = {
    "train": {"nodes": 2},
    "workspace": {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}},
}
MODES = [
    pytest.param(spec(OFFLINE, **GATED), 1, id="Offline, Jobs"),
    pytest.param(ONLINE, 1, id="Online, a PyTorchJob"),
    pytest.param(spec(ONLINE, **TWO_NODES), 2, id="Online, a PyTorchJob of two workers"),
]
NO_ROOM = Unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
QUIET_SECONDS = 10


class Story:
    """One run of a team."""

    def __init__(self, team, given, **blocks):
        self.team, self.rig = team, team.rig
        self.rig.node.on_term = saves
        body = {
            "apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": {"name": NAME},
            "spec": spec(given, scheduling={"queueName": team.queue}, **blocks),
        }  # fmt: skip
        self.rig.server.post(trainings.path(team.namespace), body).made()

    def edit(self, **blocks):
        self.rig.server.patch(trainings.path(self.team.namespace, NAME), {"spec": blocks}).made()

    @property
    def status(self):
        return self.rig.status(self.team.namespace, NAME)

    def reason(self, kind):
        found = find(self.status, kind)
        return found.reason if found else None

    def stage(self, stage):
        return stage_of(self.status, stage)

    def child(self, stage, attempt=1):
        return self.rig.children(self.team.namespace).get(f"{NAME}-{stage}-a{attempt}")

    def pods(self, stage):
        return self.rig.pods(self.team.namespace, stage)

    def until(self, holds):
        return self.rig.until(holds, self.told)

    def told(self):
        """What is there, for a test that fails."""
        pods = self.rig.server.get(f"api/v1/namespaces/{self.team.namespace}/pods").made()["items"]
        found = [*self.rig.children(self.team.namespace).values(), *pods]
        shown = [json.dumps({"metadata": one["metadata"], "status": one.get("status")}) for one in found]
        return "\n".join([self.status.model_dump_json(exclude_none=True), *shown])

    def queued(self, reason=Reason.WAITING_FOR_QUOTA):
        """Wait until it is told that the run is queued, and why."""
        self.until(lambda: self.status.phase is Phase.QUEUED and self.reason(C.QUEUED) == reason)

    def says(self, words):
        """Wait until its message has these words, which are Kueue's."""
        self.until(lambda: self.status.phase is Phase.QUEUED and words in self.status.message)

    def trains(self, nodes):
        """Wait until its training works."""
        self.until(lambda: self.status.phase is Phase.RUNNING and self.status.stage is Stage.TRAIN)
        self.until(lambda: len([pod for pod in self.pods(Stage.TRAIN) if pod["status"]["phase"] == "Running"]) == nodes)

    def completes(self):
        """Wait for the end, which is a good one. Returns the status."""
        self.until(lambda: self.status.completion_time)
        status = self.status
        assert (status.phase, find(status, C.COMPLETE).status) == (Phase.SUCCEEDED, "True"), status.message
        return status

    def used_up(self):
        """Failures that count, of all stages."""
        return sum(one.counted for one in self.status.stages)

    def events(self):
        """Reasons of what was told of the run."""
        found = self.rig.server.get(f"api/v1/namespaces/{self.team.namespace}/events").made()["items"]
        ours = [one for one in found if one["involvedObject"].get("kind") == "DraftTraining"]
        return [one["reason"] for one in sorted(ours, key=lambda one: one["metadata"]["creationTimestamp"])]


# -- To the end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "nodes"), MODES)
def test_a_run_waits_in_its_queue_and_goes_to_the_end(team, given, nodes):
    team.rig.node.script = works()
    story = Story(team, given)
    story.queued()
    story.says(f"LocalQueue {team.queue} doesn't exist")
    team.give(0)
    story.says("insufficient unused quota for pods in flavor h100-spot, 1 more needed")
    began = time.monotonic()
    assert team.rig.pods(team.namespace) == []
    time.sleep(5)
    waited = time.monotonic() - began
    team.give(8)
    status = story.completes()
    assert all(name.endswith("-a1") for name in team.rig.children(team.namespace))
    assert {(one.counted, one.uncounted) for one in status.stages} == {(0, 0)}
    assert not status.history
    took = times.seconds_since(status.start_time, times.parse(status.completion_time))
    assert status.active_seconds <= took - waited + 1
    assert len(team.rig.node.selectors) >= len(status.stages) + nodes - 1
    for placed in team.rig.node.selectors:
        assert placed["nodeSelector"] == {"example.com/instance": "h100-spot"}
        assert {"key": "example.com/spot", "operator": "Exists", "effect": "NoSchedule"} in placed["tolerations"]
    story.until(lambda: all(workloads.holds(one, "Finished") for one in team.rig.workloads(team.namespace).values()))
    assert {"Queued", "Admitted", "DraftPublished"} <= set(story.events())
    assert team.rig.kueue.disagreements == []


# -- Preempted --------------------------------------------------------------------------------------------------------


@contextmanager
def progress(pod, step):
    """What a pod says of its progress, at its address."""
    body = reading(heartbeat=time.time(), step=step, total_steps=1000).model_dump_json(by_alias=True).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_):
            pass

    server = ThreadingHTTPServer((pod["status"]["podIP"], PROGRESS_PORT), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def first(pods):
    """The pod that is asked for its progress."""
    return min(pods, key=lambda pod: pod["metadata"]["labels"].get("training.kubeflow.org/replica-index", ""))


@pytest.mark.parametrize(("given", "nodes"), MODES)
def test_a_preempted_training_goes_on_as_the_same_attempt_at_its_checkpoint(team, given, nodes):
    team.rig.node.script = works(Stage.TRAIN)
    team.give(8)
    story = Story(team, given, retry={"maxAttempts": 1})
    story.trains(nodes)
    before, task = story.child(Stage.TRAIN), mounted_task(first(story.pods(Stage.TRAIN)))
    with progress(first(story.pods(Stage.TRAIN)), 400):
        story.until(lambda: story.status.progress and story.status.progress.step == 400)
        team.give(0)
        story.queued(Reason.PREEMPTED)
    story.says("insufficient unused quota for pods")
    story.until(lambda: not story.pods(Stage.TRAIN))
    assert story.status.progress is None
    held = story.stage(Stage.TRAIN)
    assert (held.state, held.attempt, held.counted, held.uncounted) == ("Running", 1, 0, 0)
    team.give(8)
    story.trains(nodes)
    assert story.child(Stage.TRAIN)["metadata"]["uid"] == before["metadata"]["uid"]
    # the same task in the same workspace: what the trainer's own tests find to go on from the last checkpoint
    assert mounted_task(first(story.pods(Stage.TRAIN))) == task
    with progress(first(story.pods(Stage.TRAIN)), 410):
        story.until(lambda: story.status.progress and story.status.progress.step == 410)
    team.rig.node.script = works()
    status = story.completes()
    assert (story.stage(Stage.TRAIN).attempt, story.used_up()) == (1, 0)
    assert not status.history
    assert "Preempted" in story.events()
    assert team.rig.kueue.disagreements == []


def mounted_task(pod):
    """The ConfigMap that says what to do, and the claim to do it in."""
    volumes = pod["spec"]["volumes"]
    maps = [one["configMap"]["name"] for one in volumes if "configMap" in one]
    return maps + [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]


ENDS_OF_PREEMPTED = [
    pytest.param(NO_ROOM, None, id="before any node took them"),
    pytest.param(Runs(), Ends(137), id="that had to be killed"),
]


@pytest.mark.parametrize(("pod", "end"), ENDS_OF_PREEMPTED)
@pytest.mark.parametrize(("given", "nodes"), MODES[:2])
def test_preempted_pods_that_could_save_nothing_use_up_no_attempt(team, given, nodes, pod, end):
    """With one attempt, a failure that counts would be the end of the run."""
    team.rig.node.script = works(Stage.TRAIN, as_if=pod)
    team.give(8)
    story = Story(team, given, retry={"maxAttempts": 1})
    if pod is NO_ROOM:
        story.until(lambda: story.reason(C.RUNNING) == Reason.UNSCHEDULABLE)
    else:
        story.trains(nodes)
    team.rig.node.on_term = lambda _: end
    team.give(0)
    story.queued(Reason.PREEMPTED)
    story.until(lambda: not story.pods(Stage.TRAIN))
    team.rig.node.script = works()
    team.give(8)
    status = story.completes()
    assert story.used_up() == 0
    assert {entry.reason for entry in status.history or ()} <= {Reason.DISRUPTED}
    assert team.rig.kueue.disagreements == []


@pytest.mark.parametrize(("given", "nodes"), MODES)
def test_a_training_that_is_admitted_again_while_its_pods_still_end_uses_up_no_attempt(team, given, nodes):
    """Quota is free before the pods are gone; training-operator takes pods that still end for failed ones."""
    team.rig.node.script = works(Stage.TRAIN)
    team.give(8)
    story = Story(team, given, retry={"maxAttempts": 1})
    story.trains(nodes)
    team.rig.node.on_term = lambda _: None
    team.give(0)
    story.queued(Reason.PREEMPTED)
    team.give(8)
    story.until(lambda: story.status.phase is not Phase.QUEUED)
    assert all("deletionTimestamp" in pod["metadata"] for pod in story.pods(Stage.TRAIN))
    team.rig.node.on_term, team.rig.node.script = saves, works()
    status = story.completes()
    assert story.used_up() == 0
    assert {entry.reason for entry in status.history or ()} <= {Reason.DISRUPTED, Reason.INTERRUPTED}


def test_a_more_important_job_takes_the_place_of_a_training_and_gives_it_back(team):
    team.rig.node.script = works(Stage.TRAIN)
    team.give(1)
    team.rig.kueue.priorities["urgent"] = 100
    story = Story(team, OFFLINE | {"hiddenStates": {"shards": 1}})
    story.trains(1)
    template = {"metadata": {"labels": {"app": "urgent"}}, "spec": story.child(Stage.TRAIN)["spec"]["template"]["spec"]}
    labels = {QUEUE: team.queue, PRIORITY: "urgent"}
    urgent = {"metadata": {"name": "urgent", "labels": labels}, "spec": {"template": template}}
    uid = team.rig.server.post(JOB.path(team.namespace), urgent).made()["metadata"]["uid"]
    story.queued(Reason.PREEMPTED)
    story.until(lambda: [pod for pod in team.rig.pods(team.namespace) if stage_in(pod) is None])
    team.rig.server.delete(JOB.path(team.namespace, "urgent")).made()
    story.trains(1)
    assert uid not in {one["metadata"]["uid"] for one in team.rig.children(team.namespace).values()}
    team.rig.node.script = works()
    assert not story.completes().history


# -- What Kueue changes is left alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "nodes"), MODES[:2])
def test_nobody_fights_over_what_an_admission_writes(team, given, nodes):
    """Requests of the operator are counted while a run waits, and while it trains with another's node selector."""
    team.rig.node.script = works(Stage.TRAIN)
    team.give(0)
    story = Story(team, given)
    story.queued()
    quiet(story)
    team.give(8)
    story.trains(nodes)
    assert quiet(story)["spec"]
    assert team.rig.kueue.disagreements == []


def quiet(story):
    """Nothing is written, and little asked, while nothing happens. Returns the child, which is as it was."""
    time.sleep(2)
    stage = story.status.stage
    child, before = story.child(stage), story.rig.operator.requests()
    time.sleep(QUIET_SECONDS)
    made = story.rig.operator.requests() - before
    writes = {request: number for request, number in made.items() if request[0] in ("create", "patch", "delete")}
    assert {request for request in writes if "status" not in request[1]} == set()
    # a pass is at most ten requests, and the resync brings one every 5 s at the most
    assert sum(made.values()) <= 60, made
    assert sum(writes.values()) <= 3, writes
    after = story.child(stage)
    assert (after["spec"], after["metadata"]["labels"]) == (child["spec"], child["metadata"]["labels"])
    return after


def test_lowered_parallelism_is_left_alone(team):
    team.rig.node.script = works(Stage.GENERATE)
    team.give(1)
    story = Story(team, OFFLINE)
    child = story.until(lambda: len(story.pods(Stage.GENERATE)) == 1 and story.child(Stage.GENERATE))
    assert (child["spec"]["parallelism"], child["spec"]["completions"]) == (1, 4)
    story.edit(hiddenStates={"parallelism": 3})
    generation = team.rig.server.get(trainings.path(team.namespace, NAME)).made()["metadata"]["generation"]
    story.until(lambda: story.status.observed_generation == generation)
    time.sleep(QUIET_SECONDS)
    assert story.child(Stage.GENERATE)["spec"]["parallelism"] == 1
    team.rig.node.script = works()
    story.completes()
    assert (story.stage(Stage.GENERATE).completed_shards, story.stage(Stage.GENERATE).attempt) == ("0-3", 1)
    assert team.rig.kueue.disagreements == []


# -- A person, beside Kueue -------------------------------------------------------------------------------------------


def test_a_run_that_is_suspended_leaves_the_queue(team):
    team.rig.node.script = works()
    team.give(0)
    story = Story(team, ONLINE)
    story.queued()
    story.edit(suspend=True)
    story.until(lambda: story.status.phase is Phase.SUSPENDED)
    story.until(lambda: not team.rig.children(team.namespace) and not team.rig.workloads(team.namespace))
    team.give(8)
    time.sleep(QUIET_SECONDS)
    assert (team.rig.children(team.namespace), story.status.phase) == ({}, Phase.SUSPENDED)
    assert "Admitted" not in story.events()
    story.edit(suspend=False)
    story.completes()
    assert (story.stage(Stage.PREPARE).attempt, story.used_up()) == (2, 0)


@pytest.mark.parametrize(("given", "nodes"), MODES)
def test_kueue_does_not_bring_back_what_a_person_has_suspended(team, given, nodes):
    team.rig.node.script = works(Stage.TRAIN)
    team.give(8)
    story = Story(team, given)
    story.trains(nodes)
    story.edit(suspend=True)
    story.until(lambda: story.status.phase is Phase.SUSPENDED)
    assert story.pods(Stage.TRAIN) == []
    team.give(0)
    story.edit(suspend=False)
    story.queued()
    assert story.child(Stage.TRAIN, attempt=2)["metadata"]["labels"][QUEUE] == team.queue
    team.rig.node.script = works()
    team.give(8)
    story.completes()
    assert (story.stage(Stage.TRAIN).attempt, story.used_up()) == (2, 0)


@pytest.mark.parametrize(
    ("given", "held"), [(ONLINE, Stage.PREPARE), (OFFLINE, Stage.TRAIN), (ONLINE, Stage.TRAIN)],
    ids=["prepare", "train, a Job", "train, a PyTorchJob"],
)  # fmt: skip
def test_a_run_that_is_deleted_in_its_queue_leaves_nothing(team, given, held):
    team.rig.node.script = works(held)
    team.give(8)
    story = Story(team, given)
    story.until(lambda: len(story.pods(held)) == 1)
    team.give(0)
    story.queued(Reason.PREEMPTED)
    team.rig.server.delete(trainings.path(team.namespace, NAME)).made()
    team.rig.until(lambda: not team.rig.children(team.namespace) and not team.rig.workloads(team.namespace))
    team.rig.until(lambda: not team.rig.pods(team.namespace))
    team.give(8)
    time.sleep(QUIET_SECONDS)
    assert (team.rig.children(team.namespace), team.rig.workloads(team.namespace)) == ({}, {})
    maps = team.rig.server.get(f"api/v1/namespaces/{team.namespace}/configmaps").made()["items"]
    assert json.dumps([one["metadata"]["name"] for one in maps]) == json.dumps(["kube-root-ca.crt"])
