"""A seed is a run: the same everywhere, and of few runs all kinds are seen."""

from __future__ import annotations

from itertools import pairwise

import pytest
from disturbances import FEWEST_KILLS, KILLS, KILLS_IN_TRAIN, Kind, draw

from draftyard_api.names import Stage

SEEDS = range(1, 101)
MODES = ("Online", "Offline")


def test_the_same_seed_is_the_same_run():
    assert [draw(seed) for seed in SEEDS] == [draw(seed) for seed in SEEDS]
    assert len({draw(seed).disturbances for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_run_is_killed_often_enough_and_in_order(seed):
    script = draw(seed)
    kills = [each for each in script.disturbances if each.kind in KILLS]
    assert len(kills) >= FEWEST_KILLS == 5
    assert sum(each.stage is Stage.TRAIN for each in kills) >= KILLS_IN_TRAIN
    assert script.mode == "Offline" or all(each.stage is not Stage.GENERATE for each in script.disturbances)
    assert script.regenerates == any(each.stage is Stage.REGENERATE for each in kills)
    order = [(list(Stage).index(each.stage), each.moment) for each in script.disturbances]
    assert all(early <= late for early, late in pairwise(order))
    assert all(0 <= each.moment < 1 and 0 <= each.pick < 1 for each in script.disturbances)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_done_to_storage_fits_it(seed):
    script = draw(seed)
    others = {each.kind for each in script.disturbances if each.kind not in KILLS}
    assert others == ({Kind.FULL} if script.storage == "folder" else {Kind.AWAY, Kind.FAULTS})


def test_ten_runs_see_every_mode_on_every_storage_all_kinds_and_all_stages():
    scripts = [draw(seed) for seed in range(1, 11)]
    assert len({(script.mode, script.storage) for script in scripts}) == 4
    assert {each.kind for script in scripts for each in script.disturbances} == set(Kind)
    assert {each.stage for script in scripts for each in script.disturbances} == {*Stage}
    assert {(script.mode, script.regenerates) for script in scripts} == {(m, r) for m in MODES for r in (True, False)}
    assert {script.is_reshaped for script in scripts} == {True, False}
    assert draw(5).processes == (2, 1, 3, 1)
    assert "2-1-3-1 processes" in draw(5).name
