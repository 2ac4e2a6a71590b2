"""Which token is said next: the likeliest, or a draw that depends on nothing but what it is a draw of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from draftyard_trainer.target.decoding import decode
from draftyard_trainer.target.sampling import NOT_A_TOKEN, Choice, draw_keys, uniforms

LOGITS = torch.tensor([0.0, 1.0, 2.0, -30.0])
DRAWS = 20000


def test_greedy_takes_the_lowest_of_equals():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    assert Choice().choose(logits, [0, 1], step=0).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_distribution(temperature):
    keys = draw_keys(7, range(DRAWS), [0] * DRAWS)
    choice = Choice(temperature, keys)
    chosen = choice.choose(LOGITS.expand(DRAWS, -1), list(range(DRAWS)), step=3)
    shares = np.bincount(chosen.numpy(), minlength=4) / DRAWS
    expected = torch.softmax(LOGITS / temperature, dim=-1).numpy()
    # four standard deviations of a share
    assert np.abs(shares - expected).max() < 4 * 0.5 / DRAWS**0.5
    assert shares[3] == 0


def test_steps_of_one_answer_are_independent():
    keys = draw_keys(7, range(DRAWS), [0] * DRAWS)
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert (first >= 0).all()
    assert (first < 1).all()


def test_a_draw_depends_on_seed_row_turn_and_step_alone():
    key = {(seed, row, turn): draw_keys(seed, [row], [turn])[0] for seed in (0, 1) for row in (0, 9) for turn in (0, 1)}
    assert len(set(key.values())) == len(key)
    assert draw_keys(1, [3, 9, 4], [0, 1, 2])[1] == key[1, 9, 1]
    batch = Choice(1.0, draw_keys(1, [3, 9, 4], [0, 1, 2]))
    alone = Choice(1.0, draw_keys(1, [9], [1]))
    assert batch.choose(LOGITS[None], [1], step=5) == alone.choose(LOGITS[None], [0], step=5)


def test_logits_that_are_not_finite_give_no_token():
    logits = torch.stack([LOGITS, torch.full((4,), torch.nan), torch.tensor([0.0, torch.inf, 0.0, 0.0])])
    for choice in (Choice(), Choice(1.0, draw_keys(1, range(3), [0] * 3))):
        chosen = choice.choose(logits, [0, 1, 2], step=0)
        assert chosen[0] >= 0
        assert chosen[1:].tolist() == [NOT_A_TOKEN, NOT_A_TOKEN]


def test_each_reply_ends_at_its_own_limit_at_a_stop_or_where_there_is_no_token():
    """A model that counts: row r says r * 10 + step."""
    seen = []

    def next_tokens(places, step, inputs):
        seen.append(list(places))
        assert inputs["input_ids"].min() >= 0
        said = torch.tensor([place * 10 + step for place in places])
        return torch.where(said == 31, -1, said)

    prompts = [np.array([1, 2]), np.array([1]), np.array([4, 5, 6]), np.array([7])]
    replies = decode(next_tokens, AutoConfig.for_model("llama"), prompts, [1, 9, 5, 9], (12,), torch.device("cpu"))
    assert [reply.tolist() for reply in replies] == [[0], [10, 11, 12], [20, 21, 22, 23, 24], [30, -1]]
    assert len(seen) == 5
    assert seen[0] == [0, 1, 2, 3]
