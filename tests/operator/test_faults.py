"""Faults and what must happen, by their numbers in the operator's design; those that are decisions of a pass."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from world import CONFIG, GATED, NAME, NAMESPACE, OFFLINE, ONLINE, World, badly, prepared, reading, spec, well

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType as C
from draftyard_api.status import Phase
from draftyard_operator import intervals
from draftyard_operator.refusals import ApiError, Request
from draftyard_operator.testing.direct import Crash
from draftyard_operator.testing.kinds import CLAIM, CONFIG_MAP, JOB, POD, PYTORCH_JOB
from draftyard_operator.testing.pods import Ends, Unschedulable, Waits

TRAIN_A1, TRAIN_A2 = f"{NAME}-train-a1", f"{NAME}-train-a2"
PREPARE_A1 = f"{NAME}-prepare-a1"
GENERATE_A1, GENERATE_A2 = f"{NAME}-generate-a1", f"{NAME}-generate-a2"


def training(**blocks) -> World:
    """A run whose training runs."""
    return World(spec(**blocks)).at_stage(Stage.TRAIN)


def generating(**states) -> World:
    """A run whose shards are made."""
    given = spec(OFFLINE, hiddenStates=OFFLINE["hiddenStates"] | states)
    return World(given).at_stage(Stage.GENERATE)


def refusal(code: int, reason: str, message: str) -> ApiError:
    return ApiError(Request("create", "jobs.batch"), code, reason, message)


# -- F1 to F5: the operator dies, or there are two --------------------------------------------------------------------


def outcome(world: World):
    """What must be the same, however often the operator was killed."""
    table = [(one.name, one.state, one.attempt, one.counted, one.uncounted) for one in world.status.stages]
    return world.status.phase, world.status.reason, table, world.jobs, world.pytorch_jobs


def story(world: World) -> None:
    """A run with a failure in it, to its end, looked at until nothing is left to do."""
    while world.status.completion_time is None:
        survive(world)
        stage = world.status.stage
        first = world.stage(Stage.TRAIN).attempt == 1 and stage is Stage.TRAIN
        for pod in world.fake.pods(NAMESPACE):
            if pod["status"].get("phase") == "Running":
                end = badly(1) if first else well(stage, pod)
                world.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], end)
        survive(world)
        world.later(31)
    survive(world)


def survive(world: World) -> None:
    """Passes until all is at rest; a killed operator starts again."""
    while True:
        try:
            world.settle()
        except Crash:
            continue
        return


def test_f1_the_operator_is_killed_after_any_write():
    whole = World(spec(OFFLINE, **GATED))
    story(whole)
    writes = len(whole.cluster.writes)
    assert whole.status.phase is Phase.SUCCEEDED
    assert writes > 25
    for number in range(1, writes + 1):
        world = World(spec(OFFLINE, **GATED))
        world.cluster.crash_after = number
        story(world)
        assert outcome(world) == outcome(whole), f"killed after write {number}"
        made = [
            body["metadata"]["name"] for request, body in world.cluster.writes if str(request) == "create jobs.batch"
        ]
        assert len(made) == len(set(made)), f"a child was made twice, killed after write {number}"


def test_f3_a_second_operator_changes_nothing():
    world = training()
    before = (world.object, world.jobs)
    for _ in range(3):
        world.look()
    assert (world.object, world.jobs) == before


def test_f4_a_status_that_was_changed_meanwhile_is_read_again():
    world = World()
    world.look()
    conflict = ApiError(Request("patch", "drafttrainings"), 409, "Conflict", "the object has been modified")
    world.cluster.refusals["patch drafttrainings.draftyard.dev/status"] = conflict
    world.fake.kubelet.end(NAMESPACE, world.live_pods()[0], well(Stage.PREPARE)) if world.live_pods() else None
    assert world.look() == 1.0
    world.cluster.refusals.clear()
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def stranger(kind, name: str) -> dict:
    return {"apiVersion": "v1", "kind": kind.name, "metadata": {"name": name}}


def test_f5_a_foreign_object_of_that_name_is_left_alone():
    world = World()
    world.fake.api.create(CONFIG_MAP, NAMESPACE, stranger(CONFIG_MAP, PREPARE_A1) | {"data": {"theirs": "x"}})
    world.settle()
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.BLOCKED, Reason.CHILD_CONFLICT)
    assert world.jobs == []
    assert world.fake.store.get(CONFIG_MAP, NAMESPACE, PREPARE_A1)["data"] == {"theirs": "x"}
    world.fake.api.delete(CONFIG_MAP, NAMESPACE, PREPARE_A1, {})
    world.settle()
    assert world.jobs == [PREPARE_A1]


def test_f5_a_child_of_ours_whose_reply_was_lost_is_adopted():
    world = World()
    world.look()
    world.cluster.crash_after = 2
    with pytest.raises(Crash):
        world.settle()
    assert world.jobs == [PREPARE_A1]
    assert world.stage(Stage.PREPARE).start_time is None
    world.settle()
    assert world.stage(Stage.PREPARE).start_time is not None
    assert world.jobs == [PREPARE_A1]


# -- F6: what the API server refuses ----------------------------------------------------------------------------------

REFUSALS = [
    pytest.param(
        403, "Forbidden", "exceeded quota: gpus, requested: 8, used: 8", Reason.QUOTA_EXCEEDED, Phase.PENDING,
        id="quota",
    ),
    pytest.param(
        403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
        Reason.POD_SECURITY_VIOLATION, Phase.BLOCKED, id="Pod Security",
    ),
    pytest.param(
        403, "Forbidden", 'admission webhook "policy.example" denied the request: no', Reason.CHILD_REJECTED,
        Phase.BLOCKED, id="a webhook",
    ),
    pytest.param(422, "Invalid", 'Job "x" is invalid: spec: wrong', Reason.CHILD_REJECTED, Phase.BLOCKED, id="422"),
    pytest.param(
        403, "Forbidden",
        'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"',
        Reason.FORBIDDEN, Phase.BLOCKED, id="a right is missing",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "kind", "text", "reason", "phase"), REFUSALS)
def test_f6_a_refused_child_is_told_and_goes_on_when_it_is_mended(code, kind, text, reason, phase):
    world = World()
    world.cluster.refusals["create jobs.batch"] = refusal(code, kind, text)
    for _ in range(5):
        world.look()
    assert (world.status.phase, world.reason(C.RUNNING)) == (phase, reason)
    assert text[:40] in world.status.message
    assert world.events.count(reason) == 1
    world.cluster.refusals.clear()
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


UNKNOWN_KIND = (
    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion kubeflow.org/v1 "
    'Kind PyTorchJob: no matches for kind "PyTorchJob" in version "kubeflow.org/v1"'
)


def test_f6_a_kind_that_was_defined_just_now_is_waited_for_and_nobody_is_called():
    world = World()
    world.cluster.refusals["create jobs.batch"] = refusal(403, "Forbidden", UNKNOWN_KIND)
    for _ in range(5):
        world.look()
    assert (world.status.phase, world.reason(C.RUNNING), world.due) == (Phase.PENDING, Reason.PENDING, 1.0)
    assert "cannot find RESTMapping" in world.status.message
    assert world.condition(C.STALLED).status == "False"
    assert not {"ChildRejected", "Pending"} & set(world.events)
    world.cluster.refusals.clear()
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_f6_pods_of_a_kind_that_was_defined_just_now_are_waited_for_and_nobody_is_called():
    world = World(spec(), pytorch_jobs=True)
    world.fake.pod_rules.append(lambda pod: UNKNOWN_KIND if "-train-" in pod["metadata"]["name"] else "")
    world.at_stage(Stage.TRAIN)
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.PENDING, Reason.PENDING)
    assert world.status.message.startswith("train a1: its pods cannot be made yet: cannot set blockOwnerDeletion")
    assert not {"ChildRejected", "Pending"} & set(world.events)
    world.fake.pod_rules.clear()
    watch(world, 20)
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.RUNNING, 1)


NO_PODS = [
    pytest.param("exceeded quota: team, requested: pods=1", Reason.QUOTA_EXCEEDED, Phase.PENDING, id="a quota"),
    pytest.param(
        'violates PodSecurity "restricted:latest"', Reason.POD_SECURITY_VIOLATION, Phase.BLOCKED, id="Pod Security"
    ),
    pytest.param("maximum memory usage per Container is 1Gi", Reason.CHILD_REJECTED, Phase.BLOCKED, id="a LimitRange"),
]


@pytest.mark.parametrize("pytorch_jobs", [False, True], ids=["Jobs", "PyTorchJobs"])
@pytest.mark.parametrize(("why", "reason", "phase"), NO_PODS)
def test_f6_pods_that_cannot_be_made_are_told_and_the_run_goes_on_when_it_is_mended(why, reason, phase, pytorch_jobs):
    world = World(spec(), pytorch_jobs=pytorch_jobs)
    world.fake.pod_rules.append(lambda pod: why if "-train-" in pod["metadata"]["name"] else "")
    world.at_stage(Stage.TRAIN)
    assert (world.status.phase, world.reason(C.RUNNING)) == (phase, reason)
    assert world.status.message.startswith(f"train a1: its pods cannot be made: {why}; ")
    before = len(world.cluster.writes)
    watch(world, 60)
    assert len(world.cluster.writes) == before, "each try names another pod, which is no news"
    assert world.events.count(reason) == 1
    world.fake.pod_rules.clear()
    watch(world, 40)
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.RUNNING, 1)
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_f6_pods_that_never_can_be_made_end_the_run_with_the_reason():
    world = World(spec(deadlines={"startSeconds": 600}))
    world.fake.pod_rules.append(lambda _: "exceeded quota: team")
    watch(world, 700)
    assert world.reason(C.FAILED) == Reason.START_DEADLINE_EXCEEDED
    assert "QuotaExceeded: prepare a1: its pods cannot be made: exceeded quota: team" in world.status.message


def test_f6_events_are_asked_for_only_while_pods_are_missing():
    world = training()
    world.cluster.refusals["list events"] = ApiError(Request("list", "events"), 500, "", "nobody should ask")
    watch(world, 60)
    assert world.status.phase is Phase.RUNNING


def test_f28_a_missing_right_to_list_names_verb_and_resource():
    world = training()
    text = 'pods is forbidden: User "system:serviceaccount:a:b" cannot list resource "pods" in API group ""'
    world.cluster.refusals["list pods"] = ApiError(Request("list", "pods"), 403, "Forbidden", text)
    world.settle()
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.BLOCKED, Reason.FORBIDDEN)
    assert "may not list pods" in world.status.message
    assert world.jobs == [PREPARE_A1, TRAIN_A1]
    world.cluster.refusals.clear()
    world.settle()
    assert world.status.phase is Phase.RUNNING


def test_f33_a_namespace_that_goes_is_left_in_peace():
    world = World()
    text = 'jobs.batch "x" is forbidden: unable to create new content in namespace team because it is being terminated'
    world.cluster.refusals["create jobs.batch"] = refusal(403, "Forbidden", text)
    for _ in range(4):
        world.look()
    assert world.status.phase is Phase.PENDING
    assert world.events.count("Forbidden") + world.events.count("ChildRejected") == 0


def test_f7_an_outage_is_raised_for_the_queue_to_wait():
    world = training()
    world.cluster.refusals["list jobs.batch"] = ApiError(Request("list", "jobs.batch"), 503, "", "down")
    with pytest.raises(ApiError):
        world.look()
    assert world.status.phase is Phase.RUNNING


# -- F11, F16: what others do -----------------------------------------------------------------------------------------


def test_f10_a_child_that_ended_while_nobody_looked():
    world = training()
    for pod in world.live_pods():
        world.fake.kubelet.end(NAMESPACE, pod, well(Stage.TRAIN))
    world.later(7 * 24 * 3600)
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


def test_f15_a_child_that_somebody_deleted_is_made_again_under_another_number():
    world = training()
    world.fake.api.delete(JOB, NAMESPACE, TRAIN_A1, {"propagationPolicy": "Foreground"})
    world.settle()
    assert world.stage(Stage.TRAIN).uncounted == 1
    assert world.status.history[-1].reason == Reason.CHILD_DELETED
    assert "ChildDeleted" in world.events
    world.later(11)
    world.settle()
    assert TRAIN_A2 in world.jobs


def test_f15_nothing_is_made_again_after_the_end():
    world = World().run_all()
    for name in world.jobs:
        world.fake.api.delete(JOB, NAMESPACE, name, {"propagationPolicy": "Foreground"})
    world.later(3600)
    world.settle()
    assert world.jobs == []
    assert world.status.phase is Phase.SUCCEEDED


def test_f16_what_a_queue_changes_in_a_child_is_not_reverted():
    world = World(spec(OFFLINE, scheduling={"queueName": "gpus"})).at_stage(Stage.GENERATE)
    world.fake.api.patch(JOB, NAMESPACE, GENERATE_A1, {"spec": {"parallelism": 1}})
    world.edit(hiddenStates={"parallelism": 3})
    world.settle()
    assert world.job(GENERATE_A1)["spec"]["parallelism"] == 1


# -- F12, F13: deletion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN], ids=str)
def test_f12_a_deleted_run_makes_no_child(stage):
    world = World().at_stage(stage)
    world.fake.api.delete(world.fake.kind, NAMESPACE, NAME, {})
    for _ in range(3):
        assert world.look() is None
    assert world.jobs == []
    assert world.fake.pods(NAMESPACE) == []
    assert world.claim() is not None


def test_f13_a_run_of_the_same_name_adopts_no_old_child_but_the_retained_claim():
    world = training()
    claim = world.claim()["metadata"]["uid"]
    world.fake.api.delete(world.fake.kind, NAMESPACE, NAME, {})
    world.fake.add_run(NAMESPACE, NAME, spec())
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED
    assert world.claim()["metadata"]["uid"] == claim
    owners = {world.job(name)["metadata"]["ownerReferences"][0]["uid"] for name in world.jobs}
    assert owners == {world.uid}


def test_f13_a_claim_that_goes_with_an_older_object_is_waited_for():
    world = World()
    old = {"apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "name": NAME, "uid": "older"}
    held = {
        "metadata": {
            "name": f"{NAME}-workspace", "labels": {"draftyard.dev/claim-of": NAME}, "ownerReferences": [old],
            "finalizers": ["kubernetes.io/pvc-protection"],
        },
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
    world.fake.api.create(CLAIM, NAMESPACE, held)
    for _ in range(4):
        world.look()
    assert world.jobs == []
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.PENDING, Reason.PENDING)
    assert "older object" in world.status.message


# -- F14: edits -------------------------------------------------------------------------------------------------------


def test_f14_a_free_field_is_prepared_again():
    world = World()
    world.settle()
    world.edit(data={"maxSamples": 10})
    world.settle()
    assert world.status.history[-1].reason == Reason.INTERRUPTED
    world.later(11)
    world.settle()
    assert world.jobs == [f"{NAME}-prepare-a2"]
    assert json.loads(world.task(f"{NAME}-prepare-a2"))["data"]["maxSamples"] == 10
    assert world.status.observed_generation == 2


def test_f14_how_it_runs_is_used_by_the_next_attempt():
    world = training()
    world.edit(train={"pod": {"nodeSelector": {"gpu": "h200"}}})
    world.settle()
    assert world.jobs == [PREPARE_A1, TRAIN_A1]
    world.end(badly(1))
    world.later(31)
    world.settle()
    assert world.job(TRAIN_A2)["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "h200"}


# -- F17: exit codes --------------------------------------------------------------------------------------------------

FATAL = [
    (ExitCode.BAD_TASK, Reason.TASK_REJECTED, Reason.TASK_REJECTED),
    (ExitCode.BAD_DATA, Reason.DATA_REJECTED, Reason.DATA_REJECTED),
    (ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND, Reason.MODEL_NOT_FOUND),
    (ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, Reason.DATA_NOT_FOUND),
    (ExitCode.NOT_CONFORMANT, Reason.CONFORMANCE_FAILED, Reason.CONFORMANCE_FAILED),
    (ExitCode.DIVERGED, Reason.DIVERGED, Reason.DIVERGED),
    (ExitCode.EXISTS, Reason.OUTPUT_EXISTS, Reason.OUTPUT_EXISTS),
    (ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED, Reason.MODEL_ACCESS_DENIED),
    (ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, Reason.STORAGE_ACCESS_DENIED),
    (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, Reason.TARGET_UNSUPPORTED),
    (ExitCode.GATE_MISSED, Reason.ACCEPTANCE_TOO_LOW, Reason.ACCEPTANCE_TOO_LOW),
]


@pytest.mark.parametrize(("code", "said", "reason"), FATAL, ids=lambda value: getattr(value, "name", str(value)))
def test_f17_a_permanent_code_ends_the_run(code, said, reason):
    world = training()
    world.end(badly(code, reason=said, text="what is wrong, and what to do"))
    assert (world.status.phase, world.reason(C.FAILED)) == (Phase.FAILED, reason)
    assert world.status.message == "what is wrong, and what to do"
    assert world.status.completion_time is not None
    assert world.stage(Stage.TRAIN).counted == 0
    assert world.live_pods() == []


@pytest.mark.parametrize("code", [1, 2, 99], ids=str)
def test_f17_any_other_code_is_counted_until_attempts_are_used_up(code):
    world = training(retry={"maxAttempts": 2})
    world.end(badly(code))
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.RETRYING, Reason.BACKOFF)
    world.later(31)
    world.settle()
    world.end(badly(code))
    assert (world.status.phase, world.reason(C.FAILED)) == (Phase.FAILED, Reason.RETRIES_EXHAUSTED)
    assert world.stage(Stage.TRAIN).counted == 2
    assert "PodFailed: it went wrong" in world.status.message


def test_f17_waits_grow_and_are_bounded():
    world = training(retry={"maxAttempts": 100, "backoffSeconds": 200})
    waits = []
    for _ in range(4):
        world.end(badly(1))
        waits.append(world.due if world.due < 20 else None)
        before = world.now
        while world.status.phase is Phase.RETRYING:
            world.later(10)
            world.settle()
        waits[-1] = (world.now - before).total_seconds()
    assert waits == [200, 400, 600, 600]


def test_f17_out_of_memory_is_counted_and_says_what_to_do():
    world = training()
    world.end(Ends(137, reason="OOMKilled"))
    assert world.status.history[-1].reason == Reason.OUT_OF_MEMORY
    assert world.stage(Stage.TRAIN).counted == 1
    assert "memory" in world.status.history[-1].message


@pytest.mark.parametrize("kind", ["Job", "PyTorchJob"])
def test_f17_a_disruption_is_not_counted_whatever_the_survivors_said(kind):
    """I10. In a Job the pod is replaced; a PyTorchJob fails, and is judged as a whole."""
    if kind == "Job":
        world = training()
        world.end(Ends(137, disrupted=True))
        assert (world.stage(Stage.TRAIN).attempt, world.stage(Stage.TRAIN).counted) == (1, 0)
        assert len(world.live_pods()) == 1
        return
    world = two_nodes()
    first, second = sorted(world.live_pods())
    world.fake.is_paused = True
    world.fake.kubelet.end(NAMESPACE, second, badly(1, text="connection reset by peer"))
    world.fake.kubelet.end(NAMESPACE, first, Ends(143, disrupted=True))
    world.fake.is_paused = False
    world.fake.settle()
    world.settle()
    assert world.status.history[-1].reason == Reason.DISRUPTED
    assert (world.stage(Stage.TRAIN).counted, world.stage(Stage.TRAIN).uncounted) == (0, 1)


def two_nodes(**blocks) -> World:
    workspace = {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}}
    given = spec(workspace=workspace, train={"nodes": 2}, **blocks)
    return World(given, pytorch_jobs=True).at_stage(Stage.TRAIN)


def test_f17_the_worker_that_knows_wins_over_the_ones_that_were_cut_off():
    world = two_nodes()
    first, second = sorted(world.live_pods())
    world.fake.is_paused = True
    world.fake.kubelet.end(NAMESPACE, first, badly(1, text="connection reset by peer"))
    world.fake.kubelet.end(NAMESPACE, second, badly(71, reason="Diverged", text="the loss is NaN at step 12"))
    world.fake.is_paused = False
    world.fake.settle()
    world.settle()
    assert (world.reason(C.FAILED), world.status.message) == (Reason.DIVERGED, "the loss is NaN at step 12")


def test_f17_the_pod_that_knows_why_may_be_the_last():
    """The training-operator ends the job with the first pod that failed."""
    world = two_nodes()
    first, second = sorted(world.live_pods())
    world.fake.kubelet.end(NAMESPACE, first, badly(1, text="connection reset by peer"))
    world.settle()
    assert world.stage(Stage.TRAIN).state == "Running"
    world.later(20)
    world.fake.kubelet.end(NAMESPACE, second, Ends(137, disrupted=True))
    world.settle()
    assert world.status.history[-1].reason == Reason.DISRUPTED
    assert world.stage(Stage.TRAIN).counted == 0


def test_f17_a_survivor_that_hangs_is_not_waited_for():
    world = two_nodes()
    first, _ = sorted(world.live_pods())
    world.fake.kubelet.end(NAMESPACE, first, badly(1, text="CUDA error"))
    world.later(61)
    world.settle()
    assert world.status.history[-1].message == "CUDA error"
    assert world.live_pods() == []


def test_a_worker_that_hangs_after_the_end_gives_its_gpus_back():
    world = two_nodes()
    first, second = sorted(world.live_pods())
    world.fake.kubelet.end(NAMESPACE, first, well(Stage.TRAIN))
    world.settle()
    assert (world.status.phase, world.live_pods()) == (Phase.SUCCEEDED, [second])
    world.later(61)
    world.settle()
    assert world.live_pods() == []
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (ExitCode.INTERRUPTED, Reason.INTERRUPTED),
        (ExitCode.FENCED, Reason.FENCED),
        (ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_f17_what_is_not_counted_never_uses_attempts_up(code, reason):
    world = two_nodes(retry={"maxAttempts": 1})
    for _ in range(3):
        world.end(badly(code, reason=reason))
        assert world.status.history[-1].reason == reason
        world.later(301)
        world.settle()
    assert (world.stage(Stage.TRAIN).counted, world.stage(Stage.TRAIN).uncounted) == (0, 3)
    assert world.status.phase is Phase.RUNNING


def test_f17_an_earlier_output_that_is_gone_is_made_again_but_not_for_ever():
    world = World(spec(OFFLINE)).at_stage(Stage.TRAIN)
    for number in (1, 2):
        world.end(badly(ExitCode.STALE_INPUT, reason="StaleInput", text="shard 2 is gone"), Stage.TRAIN)
        assert world.status.stage is Stage.GENERATE
        assert world.stage(Stage.GENERATE).attempt == number + 1
        world.finish(Stage.GENERATE)
        assert world.status.stage is Stage.TRAIN
    world.end(badly(ExitCode.STALE_INPUT, reason="StaleInput", text="shard 2 is gone"), Stage.TRAIN)
    assert (world.reason(C.FAILED), world.status.message) == (Reason.DATA_NOT_FOUND, "shard 2 is gone")
    assert world.stage(Stage.TRAIN).counted == 0


# -- F18: pods that do not start --------------------------------------------------------------------------------------

PROBLEMS = [
    pytest.param(Waits("ImagePullBackOff", "no such image"), Reason.IMAGE_PULL_FAILED, id="image"),
    pytest.param(Waits("CreateContainerConfigError", 'secret "hf" not found'), Reason.SECRET_NOT_FOUND, id="secret"),
    pytest.param(
        Unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu"), Reason.UNSCHEDULABLE, id="gpu"
    ),
    pytest.param(
        Unschedulable("0/3 nodes: pod has unbound immediate PersistentVolumeClaims"),
        Reason.VOLUME_NOT_BOUND,
        id="claim",
    ),
]


@pytest.mark.parametrize(("behaviour", "reason"), PROBLEMS)
def test_f18_a_pod_that_does_not_start_says_why_at_once_and_ends_the_run_in_the_end(behaviour, reason):
    world = World(spec(deadlines={"startSeconds": 600}))
    world.fake.kubelet.script = lambda _: behaviour
    world.settle()
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.PENDING, reason)
    world.later(599)
    world.settle()
    assert world.condition(C.FAILED).status == "False"
    world.later(2)
    world.settle()
    assert world.reason(C.FAILED) == Reason.START_DEADLINE_EXCEEDED
    assert reason in world.status.message
    assert world.live_pods() == []


# -- F19: lost nodes --------------------------------------------------------------------------------------------------


def test_f19_no_attempt_starts_beside_a_pod_that_may_still_write():
    """I1."""
    world = two_nodes()
    first, second = sorted(world.live_pods())
    node = world.fake.store.get(POD, NAMESPACE, first)["spec"]["nodeName"]
    world.fake.kubelet.lose_node(node)
    world.fake.kubelet.end(NAMESPACE, second, badly(1))
    world.settle()
    world.later(120)
    world.settle()
    assert world.stage(Stage.TRAIN).attempt == 1
    assert world.live_pods() == [first]
    world.later(600)
    world.settle()
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.BLOCKED, Reason.POD_STUCK_TERMINATING)
    assert node in world.status.message
    assert "node.kubernetes.io/out-of-service" in world.status.message
    world.fake.kubelet.release_node(node)
    world.settle()
    assert world.stage(Stage.TRAIN).attempt == 2
    assert world.status.phase is Phase.RUNNING


# -- F20: queues ------------------------------------------------------------------------------------------------------


def suspend_child(world: World, name: str, suspended: bool) -> None:
    world.fake.api.patch(JOB, NAMESPACE, name, {"spec": {"suspend": suspended}})


def queued_world() -> World:
    """A run whose children a queue suspends when they are made, as Kueue's webhook does."""
    world = World(spec(scheduling={"queueName": "gpus"}, deadlines={"startSeconds": 60}))

    def admit(verb, kind, given):
        return given | {"spec": given["spec"] | {"suspend": True}} if (verb, kind) == ("create", JOB) else given

    world.fake.api.admission.append(admit)
    world.settle()
    return world


def test_f20_a_queued_child_waits_without_a_deadline():
    world = queued_world()
    assert (world.status.phase, world.reason(C.QUEUED)) == (Phase.QUEUED, Reason.WAITING_FOR_QUOTA)
    assert world.job(PREPARE_A1)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    world.later(10 * 3600)
    world.settle()
    assert world.status.phase is Phase.QUEUED
    suspend_child(world, PREPARE_A1, False)
    world.settle()
    assert (world.status.phase, world.reason(C.QUEUED)) == (Phase.RUNNING, Reason.ADMITTED)
    assert world.stage(Stage.PREPARE).attempt == 1


def test_f20_a_preempted_child_goes_on_as_the_same_attempt():
    world = queued_world()
    suspend_child(world, PREPARE_A1, False)
    world.settle()
    suspend_child(world, PREPARE_A1, True)
    world.settle()
    assert (world.status.phase, world.reason(C.QUEUED)) == (Phase.QUEUED, Reason.PREEMPTED)
    world.look()
    assert world.reason(C.QUEUED) == Reason.PREEMPTED
    suspend_child(world, PREPARE_A1, False)
    world.settle()
    assert (world.stage(Stage.PREPARE).attempt, world.stage(Stage.PREPARE).uncounted) == (1, 0)
    assert [name for name in ("Queued", "Admitted", "Preempted") if name in world.events] == [
        "Queued", "Admitted", "Preempted",
    ]  # fmt: skip
    world.finish(Stage.PREPARE)
    assert (world.status.stage, world.reason(C.QUEUED)) == (Stage.TRAIN, Reason.WAITING_FOR_QUOTA)


@pytest.mark.parametrize(("is_removed", "counted"), [(True, 0), (False, 1)], ids=["removed", "still there"])
def test_f20_a_pytorchjob_keeps_the_pods_that_failed_unless_somebody_removes_them(is_removed, counted):
    """As after an eviction, when the next admission comes before they are gone."""
    world = World(spec(), pytorch_jobs=True).at_stage(Stage.TRAIN)
    (pod,) = world.live_pods()
    world.fake.kubelet.end(NAMESPACE, pod, badly(1))
    if is_removed:
        world.fake.api.delete(POD, NAMESPACE, pod, {})
    world.settle()
    held = world.stage(Stage.TRAIN)
    assert (held.counted, held.uncounted) == (counted, 1 - counted)


def test_f20_a_run_that_leaves_its_queue_was_not_admitted():
    world = queued_world()
    world.edit(suspend=True)
    world.settle()
    assert (world.status.phase, world.reason(C.QUEUED)) == (Phase.SUSPENDED, Reason.NO_QUEUE)
    world.edit(suspend=False)
    world.settle()
    assert (world.status.phase, world.reason(C.QUEUED)) == (Phase.QUEUED, Reason.WAITING_FOR_QUOTA)
    assert world.events.count("Queued") == 2
    assert "Admitted" not in world.events


def test_f20_pods_that_still_end_report_no_progress():
    world = queued_world()
    suspend_child(world, PREPARE_A1, False)
    world.settle()
    world.cluster.readings["*"] = reading(Stage.PREPARE)
    world.settle()
    assert world.status.progress is not None
    world.fake.kubelet.on_term = lambda _: None
    suspend_child(world, PREPARE_A1, True)
    world.settle()
    assert world.live_pods() != []
    assert world.status.progress is None


# -- F21: heartbeats --------------------------------------------------------------------------------------------------


def watch(world: World, seconds: int, every: int = 20) -> None:
    """Looks, as the queue makes them."""
    for _ in range(0, seconds, every):
        world.later(every)
        world.settle()


def test_f21_a_heartbeat_that_stops_ends_the_attempt():
    world = training(deadlines={"progressSeconds": 600})
    world.cluster.readings["*"] = reading(done=10, total=100, step=10, total_steps=100)
    world.settle()
    assert world.reason(C.PROGRESS_REPORTING) == Reason.FRESH
    watch(world, 400)
    assert world.reason(C.PROGRESS_REPORTING) == Reason.STALE
    assert world.status.phase is Phase.RUNNING
    watch(world, 240)
    assert world.status.history[-1].reason == Reason.PROGRESS_DEADLINE_EXCEEDED
    assert world.stage(Stage.TRAIN).counted == 1
    assert "ProgressDeadlineExceeded" in world.events


def test_f21_a_heartbeat_without_progress_keeps_the_attempt():
    world = training(deadlines={"progressSeconds": 600})
    for beat in range(100):
        world.cluster.readings["*"] = reading(heartbeat=100.0 + beat, done=10, total=100)
        world.later(20)
        world.settle()
    assert world.status.phase is Phase.RUNNING
    assert world.reason(C.PROGRESS_REPORTING) == Reason.FRESH


def test_f21_a_heartbeat_that_was_never_seen_ends_nothing():
    world = training(deadlines={"progressSeconds": 60})
    watch(world, 4000)
    assert world.status.phase is Phase.RUNNING
    assert (world.condition(C.PROGRESS_REPORTING).status, world.reason(C.PROGRESS_REPORTING)) == (
        "Unknown", Reason.UNREACHABLE,
    )  # fmt: skip


def test_f21_an_operator_that_was_away_does_not_take_its_own_silence_for_the_pods():
    world = training(deadlines={"progressSeconds": 600})
    world.cluster.readings["*"] = reading(heartbeat=100.0)
    world.settle()
    world.later(10 * 3600)
    world.cluster.readings.clear()
    world.settle()
    assert world.status.phase is Phase.RUNNING
    world.later(300)
    world.cluster.readings["*"] = reading(heartbeat=36000.0)
    world.settle()
    assert (world.status.phase, world.reason(C.PROGRESS_REPORTING)) == (Phase.RUNNING, Reason.FRESH)


def test_f22_shards_that_may_be_missing_do_not_fail_the_run():
    world = generating(maxFailedShards=1)
    end_shards(world, bad={1})
    assert world.stage(Stage.GENERATE).state == "Succeeded"
    assert world.stage(Stage.GENERATE).failed_shards == "1"
    assert "ShardFailed" in world.events
    assert json.loads(world.task(TRAIN_A1))["hiddenStates"]["shards"] == [0, 2, 3]


def test_f22_training_gets_every_shard_though_they_are_too_many_to_be_shown():
    """1,000 shards of which every third is missing: neither list fits into what is shown of the others."""
    world = generating(shards=1000, maxFailedShards=999)
    pods = [pod for pod in world.fake.pods(NAMESPACE) if pod["metadata"]["name"].startswith(GENERATE_A1)]
    failed = set(range(0, 1000, 3))
    completed = set(range(1000)) - failed
    ended = {"type": "Failed", "status": "True", "reason": "FailedIndexes", "lastTransitionTime": job_time(world)}
    told = {"completedIndexes": intervals.render(completed), "failedIndexes": intervals.render(failed)}
    world.fake.is_paused = True
    for pod in pods:
        world.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], well(Stage.GENERATE, pod))
    world.fake.store.replace(JOB, world.job(GENERATE_A1) | {"status": told | {"conditions": [ended]}})
    world.settle()
    held = world.stage(Stage.GENERATE)
    assert (held.state, len(held.completed_shards) <= 1024) == ("Succeeded", True)
    assert held.completed_shards.endswith(",… (666 in all)")
    assert len(held.failed_shards) > 1024
    assert json.loads(world.task(TRAIN_A1))["hiddenStates"]["shards"] == sorted(completed)


def job_time(world: World) -> str:
    return world.now.strftime("%Y-%m-%dT%H:%M:%SZ")


def end_shards(world: World, bad: set[int], code: int = ExitCode.BAD_SHARD) -> None:
    """Let every index end, the bad ones with a code."""
    for _ in range(40):
        pods = [pod for pod in world.fake.pods(NAMESPACE, f"{NAME}-generate") if pod["status"]["phase"] == "Running"]
        if not pods:
            break
        index = int(pods[0]["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])
        ends = badly(code, Stage.GENERATE) if index in bad else well(Stage.GENERATE, pods[0])
        world.fake.kubelet.end(NAMESPACE, pods[0]["metadata"]["name"], ends)
    world.settle()


def test_f22_more_bad_shards_than_may_be_missing_fail_the_run():
    world = generating(maxFailedShards=0)
    end_shards(world, bad={1})
    assert world.reason(C.FAILED) == Reason.SHARDS_FAILED
    assert "shards 1" in world.status.message


def test_f22_shards_that_failed_for_no_reason_of_their_own_are_tried_by_the_next_attempt():
    world = generating(maxFailedShards=0)
    end_shards(world, bad={1}, code=1)
    assert world.stage(Stage.GENERATE).counted == 1
    world.later(31)
    world.settle()
    assert world.jobs[-2:] == [GENERATE_A2, PREPARE_A1]
    end_shards(world, bad=set())
    assert world.status.stage is Stage.TRAIN


# -- F23, F24: storage, and what ended pods say -----------------------------------------------------------------------


def test_f23_a_full_workspace_blocks_until_the_claim_grows():
    world = training()
    world.end(badly(ExitCode.NO_SPACE, reason="WorkspaceFull", text="no space left on /data"))
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.BLOCKED, Reason.WORKSPACE_FULL)
    assert world.stage(Stage.TRAIN).counted == 0
    watch(world, 200)
    assert world.status.phase is Phase.BLOCKED
    world.edit(workspace={"pvc": {"claimTemplate": {"size": "400Gi"}}})
    world.settle()
    assert world.claim()["spec"]["resources"]["requests"]["storage"] == "400Gi"
    world.settle()
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.RUNNING, 2)


def test_f23_a_full_workspace_is_tried_again_now_and_then():
    world = training()
    world.end(badly(ExitCode.NO_SPACE, reason="WorkspaceFull"))
    world.later(601)
    world.settle()
    assert world.stage(Stage.TRAIN).attempt == 2


@pytest.mark.parametrize("text", ["", "Traceback: something", "{broken"], ids=["no message", "a log", "broken JSON"])
def test_f24_a_pod_that_ends_well_without_a_manifest_fails_the_run(text):
    """I11."""
    world = training()
    world.end(Ends(0, text))
    assert world.reason(C.FAILED) == Reason.OUTPUT_MISSING


def test_f24_a_result_without_a_manifest_fails_the_run():
    world = training()
    world.end(well(Stage.TRAIN, manifest_sha256=None))
    assert world.reason(C.FAILED) == Reason.OUTPUT_MISSING


def test_f24_a_result_that_was_collected_is_verified_by_the_next_attempt():
    world = training()
    (pod,) = world.live_pods()
    world.fake.kubelet.end(NAMESPACE, pod, well(Stage.TRAIN))
    world.fake.api.delete(POD, NAMESPACE, pod, {})
    world.settle()
    assert world.status.history[-1].reason == Reason.RESULT_LOST
    assert (world.stage(Stage.TRAIN).counted, world.stage(Stage.TRAIN).uncounted) == (0, 1)
    world.later(11)
    world.settle()
    world.finish(Stage.TRAIN)
    assert world.status.phase is Phase.SUCCEEDED


def test_f24_the_first_worker_that_is_done_does_not_speak_for_the_one_with_the_result():
    world = two_nodes()
    first, second = sorted(world.live_pods())
    world.fake.kubelet.end(NAMESPACE, second, well(Stage.TRAIN, manifest_sha256=None, trained=None, published=None))
    world.settle()
    assert world.stage(Stage.TRAIN).state == "Running"
    world.fake.kubelet.end(NAMESPACE, first, well(Stage.TRAIN))
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


# -- F25, F26: suspension and deadlines -------------------------------------------------------------------------------


def test_f25_suspension_deletes_and_resuming_is_the_next_attempt():
    world = training()
    world.fake.kubelet.on_term = lambda _: None
    world.edit(suspend=True)
    world.settle()
    assert (world.status.phase, world.reason(C.SUSPENDED)) == (Phase.SUSPENDING, Reason.SUSPENDING)
    world.end(badly(ExitCode.INTERRUPTED), Stage.TRAIN)
    assert (world.status.phase, world.reason(C.SUSPENDED)) == (Phase.SUSPENDED, Reason.SUSPENDED)
    assert world.jobs == [PREPARE_A1]
    assert world.condition(C.RECONCILING).status == "False"
    assert world.due is None
    world.edit(suspend=False)
    world.settle()
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.RUNNING, 2)
    assert world.reason(C.SUSPENDED) == Reason.RESUMED
    assert [one for one in world.events if one in ("Suspended", "Resumed")] == ["Suspended", "Resumed"] or set(
        world.events
    ) >= {"Suspended", "Resumed"}
    assert world.stage(Stage.TRAIN).counted == 0


def test_f25_quick_turns_make_one_attempt_at_a_time():
    world = training()
    for suspend in (True, False, True, False):
        world.edit(suspend=suspend)
        world.look()
    world.settle()
    assert len(world.live_pods()) == 1
    assert world.status.phase is Phase.RUNNING


def test_f25_a_run_that_was_done_when_it_was_suspended_is_done():
    world = training()
    for pod in world.live_pods():
        world.fake.kubelet.end(NAMESPACE, pod, well(Stage.TRAIN))
    world.edit(suspend=True)
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    world.edit(suspend=False)
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


def test_f26_the_active_deadline_stands_still_while_suspended():
    world = training(deadlines={"activeSeconds": 3600})
    world.later(1800)
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert world.status.active_seconds == 1800
    world.later(100 * 3600)
    world.settle()
    world.edit(suspend=False)
    world.settle()
    world.later(1790)
    world.settle()
    assert world.status.phase is Phase.RUNNING
    world.later(20)
    world.settle()
    assert world.reason(C.FAILED) == Reason.DEADLINE_EXCEEDED
    assert world.live_pods() == []


def test_f26_a_clock_that_jumps_back_ends_nothing_and_keeps_nobody_waiting():
    world = training(deadlines={"activeSeconds": 3600})
    world.end(badly(1))
    world.now -= timedelta(days=1)
    world.later(31)
    world.settle()
    world.later(60)
    world.settle()
    assert world.status.phase is Phase.RUNNING


def test_f26_children_are_removed_when_it_is_time():
    world = World(spec(cleanup={"ttlSecondsAfterFinished": 600})).run_all()
    assert world.due == pytest.approx(600)
    world.later(599)
    world.settle()
    assert world.jobs == [PREPARE_A1, TRAIN_A1]
    assert "CleanedUp" not in world.events
    world.later(2)
    world.settle()
    assert world.jobs == []
    assert world.due is None
    assert world.events.count("CleanedUp") == 1
    assert world.status.phase is Phase.SUCCEEDED
    assert world.fake.store.find(CONFIG_MAP, NAMESPACE, TRAIN_A1) is not None


@pytest.mark.parametrize(
    ("children", "fails", "kept"),
    [
        pytest.param("OnSuccess", True, True, id="a failed run keeps its logs"),
        pytest.param("Always", True, False, id="unless it shall not"),
        pytest.param("Never", False, True, id="never"),
    ],
)
def test_f26_which_end_cleans_up(children, fails, kept):
    world = training(cleanup={"children": children, "ttlSecondsAfterFinished": 0})
    world.end(badly(71) if fails else well(Stage.TRAIN))
    world.later(10)
    world.settle()
    assert (world.jobs != []) is kept


# -- F27 to F29: kinds and objects that are not as they should be -----------------------------------------------------


def test_f27_two_nodes_wait_for_the_training_operator():
    workspace = {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}}
    world = World(spec(workspace=workspace, train={"nodes": 2}))
    world.settle()
    assert (world.status.phase, world.reason(C.ACCEPTED)) == (Phase.BLOCKED, Reason.BACKEND_UNAVAILABLE)
    assert world.status.message == (
        "train.nodes 2 needs PyTorchJob (kubeflow.org/v1), which is not installed: install training-operator 1.9.4, or "
        "set train.nodes: 1"
    )
    assert world.jobs == []
    world.fake.define(PYTORCH_JOB)
    world.run_all()
    assert (world.status.phase, world.status.backend) == (Phase.SUCCEEDED, "PyTorchJob")


def test_f27_training_whose_kind_is_not_served_any_more_is_not_taken_for_deleted():
    """Its rights were taken away, or the operator was told not to look: the pods may go on."""
    world = World(pytorch_jobs=True).at_stage(Stage.TRAIN)
    allowed = world.operator.config
    world.operator.config = allowed.model_copy(update={"pytorch_jobs": False})
    world.settle()
    assert (world.status.phase, world.reason(C.ACCEPTED)) == (Phase.BLOCKED, Reason.BACKEND_UNAVAILABLE)
    assert (world.stage(Stage.TRAIN).state, world.stage(Stage.TRAIN).attempt) == ("Running", 1)
    assert world.live_pods() != []
    world.operator.config = allowed
    world.settle()
    assert (world.status.phase, world.pytorch_jobs) == (Phase.RUNNING, [TRAIN_A1])
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_f27_fields_that_a_server_drops_are_noticed(caplog):
    world = World()

    def forget(verb, kind, given):
        if (verb, kind) != ("create", JOB):
            return given
        return given | {"spec": {name: value for name, value in given["spec"].items() if name != "podFailurePolicy"}}

    world.fake.api.admission.append(forget)
    world.settle()
    assert [record.error for record in caplog.records if hasattr(record, "error")] == ["spec.podFailurePolicy"]


def test_f29_a_stored_object_that_no_longer_parses_is_said_to_be_so():
    world = training()
    stored = world.object
    broken = stored | {"spec": stored["spec"] | {"hiddenStates": {"shards": 4}}}
    world.fake.store.replace(world.fake.kind, broken)
    world.settle()
    assert (world.status.phase, world.reason(C.ACCEPTED)) == (Phase.BLOCKED, Reason.INVALID_SPEC)
    assert "given mode Online with hiddenStates" in world.status.message
    assert world.live_pods() != []
    world.fake.store.replace(world.fake.kind, world.object | {"spec": stored["spec"]})
    world.settle()
    assert world.status.phase is Phase.RUNNING


# -- F31 to F34 -------------------------------------------------------------------------------------------------------


def test_f31_long_messages_are_cut_and_nan_is_text():
    world = training()
    world.cluster.readings["*"] = reading(done=1, total=100, loss="NaN", acceptance="NaN")
    world.settle()
    assert world.status.progress.loss == "NaN"
    world.end(badly(71, reason="Diverged", text="x" * 1500))
    assert len(world.condition(C.FAILED).message) == 1024


def test_f34_a_claim_that_is_too_small_starts_no_gpu_and_is_looked_at_again_when_it_grows():
    world = World(spec(OFFLINE, workspace={"pvc": {"claimTemplate": {"size": "1Gi"}}}, hiddenStates={"shards": 4}))
    world.settle()
    finish_prepare(world, free_bytes=2**30)
    assert (world.status.phase, world.reason(C.PLANNED)) == (Phase.BLOCKED, Reason.WORKSPACE_TOO_SMALL)
    assert "grow claimTemplate.size to" in world.status.message
    assert world.status.frozen_time is None
    assert world.jobs == [PREPARE_A1]
    watch(world, 60)
    assert world.jobs == [PREPARE_A1]
    world.edit(workspace={"pvc": {"claimTemplate": {"size": "4Ti"}}})
    world.settle()
    assert world.jobs == [f"{NAME}-prepare-a2"]
    finish_prepare(world, free_bytes=2**42)
    assert (world.reason(C.PLANNED), world.status.stage) == (Reason.PLAN_FITS, Stage.GENERATE)
    assert world.status.frozen_time is not None


def finish_prepare(world: World, **changes) -> None:
    world.end(well(Stage.PREPARE, prepared=prepared(**changes)), Stage.PREPARE)


def test_f34_a_claim_that_does_not_exist_is_named():
    world = World(spec(workspace={"pvc": {"existingClaim": "scratch"}}))
    world.settle()
    assert (world.status.phase, world.reason(C.ACCEPTED)) == (Phase.BLOCKED, Reason.CLAIM_NOT_FOUND)
    claim = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    world.fake.api.create(CLAIM, NAMESPACE, {"metadata": {"name": "scratch"}} | claim)
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_f35_a_pod_of_somebody_else_with_our_labels_is_not_asked():
    world = training()
    foreign = {
        "metadata": {"name": "foreign", "labels": world.fake.pods(NAMESPACE, TRAIN_A1)[0]["metadata"]["labels"]},
        "spec": {"containers": [{"name": "train", "image": "x"}]},
    }
    world.fake.api.create(POD, NAMESPACE, foreign)
    ip = world.fake.store.get(POD, NAMESPACE, "foreign")["status"]["podIP"]
    world.cluster.readings[ip] = reading(done=99, total=100)
    world.settle()
    assert world.status.progress is None


def test_the_configuration_of_these_tests_is_the_default_one():
    assert CONFIG.gpu_resource == "nvidia.com/gpu"
    assert ONLINE["mode"] == "Online"
