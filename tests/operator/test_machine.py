"""A run under everything that may happen to it, in any order: what must hold whatever happens.

The numbers are those of the invariants: I1 one live attempt, I2 sticky ends, I5 repeated looks change nothing, I6 the
object is the user's, I9 every failure is told, I10 disruptions are not counted, I11 no end without a manifest.
"""

from __future__ import annotations

import asyncio
import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import GATED, NAME, NAMESPACE, OFFLINE, ONLINE, World, badly, is_live, reading, spec, well

from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, Phase
from draftyard_operator.census import take
from draftyard_operator.reconcile import reconcile
from draftyard_operator.run import is_terminal
from draftyard_operator.testing.direct import Crash
from draftyard_operator.testing.kinds import CONFIG_MAP, JOB, PYTORCH_JOB
from draftyard_operator.testing.pods import Ends

FAST = {"retry": {"maxAttempts": 3, "backoffSeconds": 1}, "deadlines": {"startSeconds": 600, "progressSeconds": 600}}
WIDE = {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}}
SPECS = (
    spec(ONLINE, **FAST),
    spec(OFFLINE, **FAST, **GATED),
    spec(ONLINE, **FAST, workspace=WIDE, train={"nodes": 2}),
)
UNCOUNTED = (Reason.DISRUPTED, Reason.INTERRUPTED, Reason.FENCED, Reason.STORAGE_UNAVAILABLE, Reason.CHILD_DELETED,
             Reason.STALE_INPUT, Reason.RESULT_LOST, Reason.WORKSPACE_FULL, Reason.SUSPENDED)  # fmt: skip
CODES = (1, 1, 2, 69, 69, 75, 75, 79, 81, 83, 83, 137, 137, 71, 0)
"""Some ends are likelier than the ones that no run comes back from: a permanent code, and 0 without a result."""


class Life(RuleBasedStateMachine):
    """One run, and all who have a hand in it."""

    @initialize(given=st.sampled_from(SPECS))
    def begin(self, given):
        self.world = World(given, pytorch_jobs=True)
        # a pod that is told to stop goes on until something ends it: nothing may start beside it
        self.world.fake.kubelet.on_term = lambda _: None
        self.given = copy.deepcopy(self.world.object["spec"])
        self.ended = None
        self.census = None
        self.manifests = 0
        self.highest: dict[tuple[str, str], int] = {}

    # -- Who has a hand in it ---------------------------------------------------------------------------------------

    @rule(times=st.integers(1, 6))
    def the_operator_looks(self, times):
        for _ in range(times):
            self.world.look()

    @rule()
    def a_census_is_taken(self):
        world = self.world
        self.census = asyncio.run(take(world.cluster, world.operator.config, ()))

    @precondition(lambda self: self.census is not None)
    @rule()
    def the_operator_looks_at_an_old_census(self):
        """Older than it may be: it may be late then, but it does nothing wrong."""
        world = self.world
        asyncio.run(reconcile(world.operator, NAMESPACE, NAME, world.now, self.census))

    @rule(writes=st.integers(1, 4))
    def the_operator_is_killed_after_a_write(self, writes):
        self.world.cluster.crash_after = writes
        try:
            for _ in range(3):
                self.world.look()
        except Crash:
            pass
        self.world.cluster.crash_after = None

    @rule(seconds=st.sampled_from([1, 11, 31, 301, 601, 90000]))
    def time_passes(self, seconds):
        self.world.later(seconds)

    @rule()
    def the_clock_is_set_back(self):
        self.world.later(-45)

    @rule(number=st.integers(0, 9))
    def a_pod_ends_well(self, number):
        pod = self.pick(number)
        if pod is None:
            return
        stage = Stage(pod["metadata"]["labels"]["draftyard.dev/stage"])
        self.manifests += stage in (Stage.TRAIN, Stage.EVALUATE)
        self.world.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], well(stage, pod))

    @rule(pods=st.integers(1, 2))
    def all_goes_well_for_a_while(self, pods):
        for _ in range(pods):
            self.world.settle()
            self.a_pod_ends_well(0)

    @rule(number=st.integers(0, 9), code=st.sampled_from(CODES))
    def a_pod_fails(self, number, code):
        self.end(number, badly(code) if code else Ends(0, "no result"))

    @rule(number=st.integers(0, 9))
    def a_pod_is_taken_away(self, number):
        self.end(number, Ends(137, disrupted=True))

    @rule(suspend=st.booleans())
    def a_person_suspends_or_resumes(self, suspend):
        self.edit(suspend=suspend)

    @rule(attempts=st.integers(3, 5))
    def a_person_allows_more_attempts(self, attempts):
        if attempts >= self.world.object["spec"]["retry"]["maxAttempts"]:
            self.edit(retry={"maxAttempts": attempts})

    @rule(samples=st.integers(1, 3))
    def a_person_changes_the_data(self, samples):
        """As long as the API server takes it."""
        if self.world.status.frozen_time is None:
            self.edit(data={"maxSamples": samples})

    @rule(refuses=st.booleans())
    def a_quota_takes_no_pods_or_takes_them_again(self, refuses):
        self.world.fake.pod_rules[:] = [lambda _: "exceeded quota: team"] if refuses else []

    @rule(number=st.integers(0, 9))
    def somebody_deletes_a_child(self, number):
        found = [*self.world.fake.store.every(JOB, NAMESPACE), *self.world.fake.store.every(PYTORCH_JOB, NAMESPACE)]
        if found:
            child = found[number % len(found)]
            kind = PYTORCH_JOB if child["kind"] == "PyTorchJob" else JOB
            options = {"propagationPolicy": "Foreground"}
            self.world.fake.api.delete(kind, NAMESPACE, child["metadata"]["name"], options)

    @rule(beat=st.one_of(st.none(), st.integers(0, 1000)))
    def pods_say_how_far_they_are(self, beat):
        readings = self.world.cluster.readings
        readings.clear()
        if beat is not None:
            readings["*"] = reading(heartbeat=float(beat), done=beat % 100, total=100)

    def pick(self, number: int):
        found = [pod for pod in self.world.fake.pods(NAMESPACE) if is_live(pod)]
        return found[number % len(found)] if found else None

    def end(self, number: int, ends: Ends) -> None:
        pod = self.pick(number)
        if pod is not None:
            self.world.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], ends)

    def edit(self, **blocks) -> None:
        self.world.edit(**blocks)
        self.given = copy.deepcopy(self.world.object["spec"])

    # -- What holds -------------------------------------------------------------------------------------------------

    @invariant()
    def i1_pods_of_one_attempt_only_are_alive(self):
        alive = {
            (pod["metadata"]["labels"]["draftyard.dev/stage"], pod["metadata"]["labels"]["draftyard.dev/attempt"])
            for pod in self.world.fake.pods(NAMESPACE)
            if is_live(pod)
        }
        assert len(alive) <= 1, alive

    @invariant()
    def i2_an_end_stays(self):
        status = self.world.status
        if self.ended is not None:
            assert (status.phase, status.reason, status.completion_time) == self.ended
        elif is_terminal(status):
            self.ended = (status.phase, status.reason, status.completion_time)

    @invariant()
    def i6_spec_and_metadata_are_the_users(self):
        found = self.world.object
        assert found["spec"] == self.given
        assert "finalizers" not in found["metadata"]
        assert "annotations" not in found["metadata"]

    @invariant()
    def i9_a_failed_run_says_why(self):
        status = self.world.status
        if status.phase is Phase.FAILED:
            assert status.message
            assert Reason(status.reason) is not Reason.IN_PROGRESS

    @invariant()
    def i10_only_failures_are_counted(self):
        for entry in self.world.status.history or ():
            counted = self.world.stage(entry.stage).counted
            assert counted or entry.reason in UNCOUNTED or self.world.status.phase is Phase.FAILED, entry

    @invariant()
    def i11_a_run_is_complete_with_a_manifest_only(self):
        assert self.world.status.phase is not Phase.SUCCEEDED or self.manifests > 0

    @invariant()
    def attempts_only_grow_and_children_have_the_number_of_a_stored_one(self):
        stages = {held.name: held for held in self.world.status.stages or ()}
        for name, held in stages.items():
            key = (NAME, name)
            assert held.attempt >= self.highest.get(key, 0)
            self.highest[key] = held.attempt
            # a suspended, prepared or lost attempt may be in none of the two
            assert held.counted + held.uncounted <= held.attempt
        for kind in (JOB, PYTORCH_JOB, CONFIG_MAP):
            for child in self.world.fake.store.every(kind, NAMESPACE):
                labels = child["metadata"]["labels"]
                assert int(labels["draftyard.dev/attempt"]) <= stages[labels["draftyard.dev/stage"]].attempt

    @invariant()
    def the_phase_is_one_and_follows_from_the_conditions(self):
        status = self.world.status
        if status.phase is None:
            return
        truth = {one.type: one.status for one in status.conditions}
        ends = (truth[ConditionType.COMPLETE], truth[ConditionType.FAILED])
        assert ends != ("True", "True")
        assert (truth[ConditionType.READY] == "True") is (status.phase is Phase.SUCCEEDED)
        assert (truth[ConditionType.STALLED] == "True") is (status.phase in (Phase.FAILED, Phase.BLOCKED))

    @rule()
    def i5_looking_again_at_the_same_changes_nothing(self):
        """However often; the first looks may still have something to do."""
        self.world.settle()
        before, writes = self.world.object, len(self.world.cluster.writes)
        self.world.look()
        assert self.world.object == before
        assert len(self.world.cluster.writes) == writes

    @precondition(lambda self: self.ended is not None)
    @rule()
    def i2_an_ended_run_makes_no_pod(self):
        self.world.settle()
        for pod in self.world.live_pods():
            self.world.fake.kubelet.end(NAMESPACE, pod, Ends(143))
        self.world.settle()
        assert self.world.live_pods() == []
        creates = [request for request, _ in self.world.cluster.writes if str(request) == "create jobs.batch"]
        self.world.settle()
        after = [request for request, _ in self.world.cluster.writes if str(request) == "create jobs.batch"]
        assert len(after) == len(creates)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
