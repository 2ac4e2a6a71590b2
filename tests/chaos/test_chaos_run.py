"""The driver itself: one run that is killed once, driven to its end, and compared."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from chaos_run import ChaosRun
from chaos_world import Undisturbed, World
from comparison import Ending
from disturbances import Disturbance, Kind, Script
from victims import role_of, running_stage, tree_of, wait_until_none_names

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage


def test_a_run_that_is_killed_once_is_started_again_and_ends_alike(tmp_path: Path):
    world = World.make(tmp_path / "world")
    undisturbed = world.undisturbed("Online")
    assert set(undisturbed.seconds) == {Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE}
    kill = Disturbance(Stage.TRAIN, 0.6, Kind.KILL, pick=0.99)
    record = ChaosRun(Script(0, "Online", "folder", (1,), (kill,)), world, undisturbed, None).go()
    assert [each["kind"] for each in record.done] == [Kind.KILL]
    assert len(record.codes) >= 2
    assert record.codes[0] != ExitCode.OK == record.codes[-1]
    assert (record.lost, record.doubled, record.difference, record.manifest) == (0, 0, 0.0, [])
    assert (record.partial, record.stuck, record.kills) == ([], 0, 1)
    assert wait_until_none_names(tmp_path, seconds=5) == 0


def test_the_tree_begins_with_its_root_and_a_stage_is_told_apart():
    own = psutil.Process()
    assert tree_of(own.pid)[0] == own
    assert running_stage(own.pid) is None
    assert tree_of(2**22 + 1) == []
    assert role_of(own)


@pytest.mark.parametrize(("stage", "seconds", "due"), [
    (Stage.PREPARE, 100.0, False), (Stage.TRAIN, 4.9, False), (Stage.TRAIN, 5.1, True), (Stage.EVALUATE, 0.0, True),
])  # fmt: skip
def test_a_moment_is_a_share_of_its_stage_and_is_not_missed(tmp_path: Path, stage, seconds, due):
    ending = Ending(b"", {}, {}, [])
    run = ChaosRun(
        Script(0, "Online", "folder", (1,), ()), World(tmp_path), Undisturbed(ending, {Stage.TRAIN: 10.0}), None
    )
    assert run.is_due(Disturbance(Stage.TRAIN, 0.5, Kind.KILL, 0.0), stage, seconds) is due
