"""A worker of a PyTorchJob is taken away, with the real training-operator: the next attempt follows, and completes."""

from __future__ import annotations

import time

import pytest
from scripts import saves, stage_in
from test_runs import TWO_NODES, Story, first, progress
from world import ONLINE, badly, spec, well

from draftyard_api.names import LABEL_ATTEMPT, Stage
from draftyard_api.reasons import Reason
from draftyard_operator.testing.pods import Ends, Runs

CUT_OFF = badly(1, reason="Disrupted", text="connection reset by peer")
PROMPT_SECONDS = 45
"""From the deletion to the next attempt, which waits for 10 s; workers that look alive are given 60."""


def script(pod):
    """All goes well but for the first attempt of training, which goes on."""
    stage = stage_in(pod)
    if stage is Stage.TRAIN and pod["metadata"]["labels"][LABEL_ATTEMPT] == "1":
        return Runs()
    return well(stage, pod)


def survivor_ends(name: str, end: Ends):
    """The same, and one worker of that attempt ends: it has lost the other one."""
    return lambda pod: end if pod["metadata"]["name"] == name else script(pod)


@pytest.mark.parametrize(
    ("options", "end"),
    [
        pytest.param({}, badly(75, reason="Interrupted", text="saved step 400"), id="both save"),
        pytest.param({}, CUT_OFF, id="the other one was cut off"),
        pytest.param({"gracePeriodSeconds": 0}, CUT_OFF, id="gone at once, and the other one was cut off"),
        pytest.param({"gracePeriodSeconds": 0}, Runs(), id="gone at once, and the other one hangs"),
    ],
)
def test_a_worker_that_is_taken_away_is_followed_by_the_next_attempt_at_once(team, options, end):
    team.rig.node.script = script
    team.give(8)
    story = Story(team, spec(ONLINE, **TWO_NODES), retry={"maxAttempts": 1})
    story.trains(2)
    victim, survivor = sorted(story.pods(Stage.TRAIN), key=lambda pod: pod["metadata"]["name"])
    with progress(first([victim, survivor]), 400):
        story.until(lambda: story.status.progress and story.status.progress.step == 400)
    team.rig.node.on_term = saves
    # times of objects have seconds
    time.sleep(1.1)
    began = time.monotonic()
    pod = f"api/v1/namespaces/{team.namespace}/pods/{victim['metadata']['name']}"
    team.rig.server.request("DELETE", pod, options).made()
    team.rig.node.script = survivor_ends(survivor["metadata"]["name"], end)
    story.until(lambda: story.stage(Stage.TRAIN).attempt == 2)
    assert time.monotonic() - began < PROMPT_SECONDS
    status = story.completes()
    assert [one.reason in (Reason.DISRUPTED, Reason.INTERRUPTED) for one in status.history] == [True]
    assert (story.stage(Stage.TRAIN).uncounted, story.used_up()) == (1, 0)
