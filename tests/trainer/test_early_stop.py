"""train.earlyStop: when a training ends, that it ends there also after a kill, and that the best draft is exported."""

from __future__ import annotations

import pytest
import torch

from draftyard_api.exit_codes import Failure
from draftyard_api.spec import EarlyStop
from draftyard_trainer.checkpoint import Score
from draftyard_trainer.early_stop import evaluations_without_improvement, is_over
from draftyard_trainer.loop import Trainer

FIRST_EPOCH = 8
LENGTHS = (1.5, 1.9, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.05, 1.04, 1.03)
"""Rises once, then falls for good."""


def scores(*lengths: float, every: int = 4) -> tuple[Score, ...]:
    return tuple(
        Score(step=every * number, tau_sim=length, per_position=(), documents=9)
        for number, length in enumerate(lengths, 1)
    )


@pytest.mark.parametrize(
    ("lengths", "waited"),
    [
        pytest.param((), 0, id="nothing was evaluated"),
        pytest.param((1.5,), 0, id="a first one is an improvement"),
        pytest.param((1.5, 1.6, 1.7), 0, id="better every time"),
        pytest.param((1.5, 1.505, 1.505), 2, id="exactly the least difference is none"),
        pytest.param((1.5, 1.4, 1.3), 2, id="worse"),
        pytest.param((1.5, 1.503, 1.506), 0, id="small steps that add up are one improvement"),
        pytest.param((1.5, 1.4, 1.6, 1.55), 1, id="an improvement begins anew"),
    ],
)
def test_evaluations_without_an_improvement_are_counted(lengths, waited):
    assert evaluations_without_improvement(scores(*lengths), 0.005) == waited


@pytest.mark.parametrize(
    ("lengths", "rule", "over"),
    [
        pytest.param((1.5, 1.4, 1.4, 1.4), None, False, id="not asked for"),
        pytest.param((1.5, 1.4, 1.4), EarlyStop(patience=3), False, id="patience is left"),
        pytest.param((1.5, 1.4, 1.4, 1.4), EarlyStop(patience=3), True, id="patience is used up"),
        pytest.param((1.5,), EarlyStop(patience=1), False, id="a first evaluation"),
        pytest.param((), EarlyStop(patience=1), False, id="no evaluation"),
        pytest.param((1.5, 1.6, 1.7), EarlyStop(patience=1, min_delta=1.0), True, id="too little each time"),
    ],
)
def test_a_training_is_over_when_patience_is_used_up(lengths, rule, over):
    assert is_over(scores(*lengths), rule, FIRST_EPOCH) is over


def test_a_training_never_ends_within_its_first_epoch():
    rule, falling = EarlyStop(patience=1), scores(1.5, 1.4, every=3)
    assert not is_over(falling, rule, first_epoch_steps=7)
    assert is_over(falling, rule, first_epoch_steps=6)


# -- In a training ----------------------------------------------------------------------------


@pytest.fixture
def falling(monkeypatch):
    """Acceptance on held-out documents falls, whatever the loss does."""

    def score(trainer: Trainer, step: int, draft_tokens: int, row_tokens: int) -> Score:
        return Score(step=step, tau_sim=LENGTHS[min(step // 4, len(LENGTHS)) - 1], per_position=(0.1,), documents=9)

    monkeypatch.setattr(Trainer, "score", score)


def test_the_best_checkpoint_is_chosen_by_acceptance_while_the_loss_falls(workshop, falling):
    result = workshop.train(workshop.task("overtrained"))
    curve = workshop.metrics("overtrained")
    divergence = [line["divergence"][0] for line in curve]
    assert sum(divergence[-8:]) < sum(divergence[4:12])
    assert result.trained.best_step == 8
    assert result.trained.steps == 36
    assert workshop.manifest("overtrained")["checkpoint"]["step"] == 8
    assert "stoppedEarly" not in workshop.manifest("overtrained")["schedule"]
    assert result.message == "exported step 8 of 36"


def stopping_task(workshop, run: str, patience: int = 4):
    return workshop.task(run, early_stop=EarlyStop(patience=patience))


def test_a_training_ends_when_acceptance_stops_to_improve_and_says_so(workshop, falling):
    result = workshop.train(stopping_task(workshop, "stopped"))
    # evaluations at 4, 8, 12, 16, 18 (an epoch's end), 20: the best is 8
    told = "stopped early at step 20: no improvement above 0.005 in 4 evaluations (train.earlyStop)"
    assert (result.trained.steps, result.trained.best_step) == (20, 8)
    assert result.message == f"exported step 8 of 36; {told}"
    assert workshop.manifest("stopped")["schedule"]["stoppedEarly"] == told
    assert workshop.manifest("stopped")["schedule"]["steps"] == 20
    assert len(workshop.metrics("stopped")) == 20
    assert workshop.metrics("stopped")[-1]["evaluationsWithoutImprovement"] == 3
    assert workshop.published("stopped").exists()


def test_patience_that_ends_within_the_first_epoch_waits_for_its_end(workshop, falling):
    assert workshop.train(stopping_task(workshop, "patient", patience=1)).trained.steps == 18


@pytest.mark.parametrize("step", [6, 16, 18, 20], ids=lambda step: f"at step {step}")
def test_a_training_that_was_killed_ends_where_an_undisturbed_one_does(workshop, falling, step):
    run = f"killed-{step}"
    whole = workshop.train(stopping_task(workshop, f"whole-{step}"))
    with pytest.raises(Failure, match="stopped"):
        workshop.train(stopping_task(workshop, run), workshop.stopping_at(step))
    result = workshop.train(stopping_task(workshop, run))
    assert result.trained == whole.trained
    assert result.message == whole.message
    theirs = workshop.tensors(f"whole-{step}")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in workshop.tensors(run).items())


def test_a_run_that_ended_early_is_found_finished(workshop, falling):
    first = workshop.train(stopping_task(workshop, "again"))
    assert workshop.train(stopping_task(workshop, "again")) == first


def test_without_the_field_all_epochs_are_trained(workshop, undisturbed):
    assert undisturbed.trained.steps == 36
    assert "evaluationsWithoutImprovement" not in workshop.metrics("undisturbed")[-1]
