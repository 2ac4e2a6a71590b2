"""The curve: a line per step, legal JSON, no seam after a resume, and what stands out is said and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_checkpoint import build_manifest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import METRICS, train_path
from draftyard_trainer.checkpoint import CheckpointManifest
from draftyard_trainer.fence import Fence
from draftyard_trainer.journal import (
    MIN_SPIKE_STEPS,
    SPIKE_DEVIATIONS,
    SPIKE_STEPS,
    Journal,
    is_spike,
    journal_line,
)
from draftyard_trainer.loop import Consumed, StepReport
from draftyard_trainer.metrics import MetricSums
from draftyard_trainer.optim import Update
from draftyard_trainer.order import Step

RUN = "curve"


def line(step: int, loss: float | str = 1.0, **fields: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "skipped": isinstance(loss, str), **fields}


def noisy(count: int, level: float = 4.0) -> list[float]:
    """Losses that fall slowly and differ by a few hundredths."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, generator=generator).tolist()
    return [level - 0.002 * number + 0.05 * each for number, each in enumerate(noise)]


@pytest.fixture
def journal(workshop) -> Journal:
    workshop.store.delete(f"{train_path(RUN)}/{METRICS}")
    return Journal.open(Fence.take(workshop.store, workshop.task(RUN)), RUN, steps=0)


# -- Lines --------------------------------------------------------------------------------------


def test_a_skipped_step_is_a_line_of_legal_json():
    """NaN is none: only Python reads it."""
    nan = torch.full((3,), float("nan"), dtype=torch.float64)
    sums = replace(MetricSums.zeros(3), loss=nan, ce=nan)
    update = Update(0.1, float("inf"), clipped=False, skipped=True)
    report = StepReport(update, sums, Consumed(2, 77), tokens=8, waited=0.0)
    step = Step(index=4, epoch=1, first_row=6, rows=((1,), (2,)), num_rows=9)
    written = journal_line(step, build_manifest(5), report, 1.0, 3)
    read = json.loads(json.dumps(written, allow_nan=False))
    assert (read["loss"], read["gradNorm"], read["divergence"]) == ("nan", "inf", ["nan"] * 3)
    assert (read["rows"], read["documents"], read["documentHash"]) == ([1, 6, 8], 2, 77)


def test_a_resumed_curve_drops_what_came_after_its_checkpoint(workshop, journal):
    for step in range(1, 8):
        journal.add(line(step, step / 4))
    journal.write(7)
    resumed = Journal.open(Fence.take(workshop.store, workshop.task(RUN)), RUN, steps=4)
    for step in range(5, 7):
        resumed.add(line(step, step / 2))
    resumed.write(6)
    assert [(read["step"], read["loss"]) for read in workshop.metrics(RUN)] == [
        (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 2.5), (6, 3.0),
    ]  # fmt: skip
    with pytest.raises(Failure) as caught:
        journal.write(7)
    assert caught.value.code == ExitCode.FENCED
    assert len(workshop.metrics(RUN)) == 6


def test_lines_that_come_while_it_writes_wait_for_the_next_time(workshop, journal):
    for step in range(1, 5):
        journal.add(line(step))
    journal.write(3)
    assert [read["step"] for read in workshop.metrics(RUN)] == [1, 2, 3]
    journal.write(4)
    assert [read["step"] for read in workshop.metrics(RUN)] == [1, 2, 3, 4]


def test_it_is_due_at_once_and_then_now_and_then(journal, monkeypatch):
    now = 50.0
    monkeypatch.setattr("draftyard_trainer.journal.time.monotonic", lambda: now)
    assert journal.is_due
    journal.write(0)
    assert not journal.is_due
    now += 10.1
    assert journal.is_due


def test_the_last_value_of_a_field(journal):
    assert journal.last("onPolicy") == ""
    journal.add(line(1, onPolicy=0.25))
    journal.add(line(2, onPolicy=0.123456))
    assert journal.last("onPolicy") == "0.1235"
    assert journal.last("nothing") == ""


# -- What stands out ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "loss", "stands_out"),
    [
        pytest.param(noisy(64), 4.0, False, id="as before"),
        pytest.param(noisy(64), 4.2, False, id="a hard batch"),
        pytest.param(noisy(64), 5.0, True, id="far above"),
        pytest.param(noisy(64), 1.0, False, id="far below is no spike"),
        pytest.param(noisy(MIN_SPIKE_STEPS - 1), 50.0, False, id="too few to compare with"),
        pytest.param(noisy(MIN_SPIKE_STEPS), 50.0, True, id="just enough"),
        pytest.param([2.0] * 40, 2.1, False, id="a flat curve may move a little"),
        pytest.param([2.0] * 40, 2.2, True, id="a flat curve may not jump"),
        pytest.param([*noisy(50), *[9.0] * 10], 9.0, True, id="spikes do not hide the next one"),
        pytest.param(noisy(64), "nan", False, id="what is not finite is skipped, and counted there"),
    ],
)
def test_spikes(before, loss, stands_out):
    assert is_spike(loss, before) is stands_out


def test_a_fall_as_at_the_start_has_no_spikes():
    losses = [8.0 * 0.98**step + 3 + 0.05 * noise for step, noise in enumerate(noisy(300, level=0.0))]
    assert not any(is_spike(loss, losses[max(0, at - SPIKE_STEPS) : at]) for at, loss in enumerate(losses))
    assert all(early > late for early, late in pairwise(losses[:200:20]))
    assert SPIKE_DEVIATIONS > 3


def test_spikes_are_said_in_their_line_and_counted_over_a_resume(workshop, journal):
    losses: list[float | str] = [*noisy(20), 50.0, "nan", 3.9, 60.0, 3.95]
    told = [journal.add(line(step, loss)) for step, loss in enumerate(losses, start=1)]
    assert [step for step, spike in enumerate(told, start=1) if spike] == [21, 24]
    journal.write(len(losses))
    assert [read["step"] for read in workshop.metrics(RUN) if read["spike"]] == [21, 24]
    resumed = Journal.open(Fence.take(workshop.store, workshop.task(RUN)), RUN, steps=22)
    assert resumed.spikes == 1
    again = [resumed.add(line(step, loss)) for step, loss in enumerate(losses[22:], start=23)]
    assert again == told[22:]
    assert resumed.spikes == journal.spikes == 2


def test_lines_of_an_earlier_version_are_read(workshop):
    """They say nothing of spikes."""
    name = f"{train_path(RUN)}/{METRICS}"
    workshop.store.publish(name, "".join(f"{json.dumps(line(step))}\n" for step in range(1, 30)).encode())
    journal = Journal.open(Fence.take(workshop.store, workshop.task(RUN)), RUN, steps=29)
    assert (len(journal.lines), journal.spikes) == (29, 0)
    assert journal.add(line(30, 9.0))


def test_the_manifest_of_a_checkpoint_knows_nothing_of_spikes():
    """They are a matter of the curve: what decides the numbers is the same with and without them."""
    assert not [name for name in CheckpointManifest.model_fields if "spike" in name]
