"""The chain evaluator against a server that is played round by round, one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
from naive_server import sample_of, serve, server_of

from draftyard_trainer.chain import (
    RoundCounts,
    count_forced,
    count_rounds,
    propose,
    share_forced,
    summarise,
)
from draftyard_trainer.draft.testing import tiny_config, tiny_draft


def tokens(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def proposals(n: int, num_proposals: int, right: set[tuple[int, int]]) -> np.ndarray:
    """`[K, n]`: the token at t+2+k where (k, t) is in `right`, else one that never occurs."""
    return np.array([[t + 2 + k if (k, t) in right else -1 for t in range(n)] for k in range(num_proposals)])


@pytest.mark.parametrize(
    ("n", "prompt", "right", "rounds", "per_position"),
    [
        (10, 4, set(), 5, [0, 0, 0]),
        (10, 4, {(k, t) for k in range(3) for t in range(10)}, 2, [2, 1, 1]),
        (10, 4, {(0, 3), (1, 3)}, 3, [1, 1, 0]),
        (10, 4, {(1, 3), (2, 3)}, 5, [0, 0, 0]),
        (10, 4, {(0, 4)}, 4, [1, 0, 0]),
        (10, 4, {(k, 7) for k in range(3)}, 5, [1, 0, 0]),
        (5, 4, {(k, t) for k in range(3) for t in range(5)}, 0, [0, 0, 0]),
    ],
    ids=[
        "nothing right: one token per round",
        "always right: four tokens, then what is left",
        "the round right after prefill starts at the last prompt row",
        "a wrong first proposal ends the round whatever follows",
        "one accepted in the second round",
        "the end of the reply cuts a round",
        "a reply of one token has no round",
    ],
)
def test_rounds_are_played_as_a_server_plays_them(n, prompt, right, rounds, per_position):
    counts = count_rounds(tokens(n), prompt, proposals(n, 3, right))
    assert (counts.rounds, counts.per_position.tolist()) == (rounds, per_position)
    assert counts.accepted == sum(per_position)


def test_rounds_and_accepted_tokens_add_up_to_the_reply():
    generator = np.random.default_rng(3)
    for _ in range(50):
        n, prompt = int(generator.integers(6, 40)), int(generator.integers(1, 5))
        right = {(k, t) for k in range(3) for t in range(n) if generator.random() < 0.6}
        counts = count_rounds(tokens(n), prompt, proposals(n, 3, right))
        # Every round yields what it accepted and one token of the target; the last one may lack the latter.
        produced = counts.rounds + counts.accepted
        assert (len(counts.by_round), sum(counts.by_round)) == (counts.rounds, counts.accepted)
        assert n - prompt - 1 <= produced <= n - prompt


def test_forced_counts_are_joint_and_stay_inside_the_reply():
    hits = {(0, 3), (0, 4), (0, 6), (1, 4), (1, 5)}
    counts = count_forced(tokens(9), 4, proposals(9, 2, hits))
    # Rows 3..6 can be checked at step 0, rows 3..5 at step 1; (1, 5) does not count, since (0, 5) is wrong.
    assert counts.gated.tolist() == [4, 3]
    assert counts.joint.tolist() == [3, 1]
    assert share_forced([counts, counts]) == (3 / 4, 1 / 3)


def test_forced_counts_of_a_short_reply_are_empty():
    counts = count_forced(tokens(5), 4, proposals(5, 3, set()))
    assert counts.gated.tolist() == [0, 0, 0]
    assert share_forced([counts]) == (0.0, 0.0, 0.0)


def test_summary_weighs_rounds_not_prompts():
    counts = [RoundCounts(1, np.array([1, 1, 1])), RoundCounts(9, np.array([0, 0, 0]))]
    acceptance = summarise(counts)
    assert acceptance.length == pytest.approx(1.3)
    assert acceptance.per_position == (0.1, 0.1, 0.1)
    assert acceptance.interval[0] == 1.0
    assert acceptance.interval[1] == 4.0


def test_interval_is_seeded_and_narrows_with_prompts():
    few = [RoundCounts(10, np.array([3 + index % 4, 1])) for index in range(8)]
    many = few * 32
    low, high = summarise(few).interval
    assert (low, high) == summarise(few).interval
    narrow = summarise(many).interval
    assert low < summarise(few).length < high
    assert narrow[1] - narrow[0] < 0.5 * (high - low)


def test_no_round_at_all_is_an_error():
    with pytest.raises(ValueError, match="nothing to draft"):
        summarise([RoundCounts(0, np.zeros(3, dtype=np.int64))])


# -- Against a server that is played round by round ------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_proposals", [1, 3, 5])
def test_chain_equals_a_server_played_round_by_round(num_proposals, seed):
    draft = tiny_draft(seed=seed)
    sample = sample_of(draft, prompt_length=6, n=26, seed=seed)
    played = serve(server_of(draft, seed), sample, 6, num_proposals)
    counted = count_rounds(sample.document.tokens, 6, propose(draft, sample, num_proposals, forced=False))
    assert (counted.rounds, counted.per_position.tolist()) == (played.rounds, played.per_position.tolist())
    assert played.accepted > 0
    assert played.rounds > 1


def test_a_prompt_of_one_token_works():
    draft = tiny_draft(seed=7)
    sample = sample_of(draft, prompt_length=1, n=12, seed=7)
    played = serve(server_of(draft, 7), sample, 1, 3)
    counted = count_rounds(sample.document.tokens, 1, propose(draft, sample, 3, forced=False))
    assert counted.per_position.tolist() == played.per_position.tolist()


def test_forced_proposals_see_the_true_tokens():
    """Forced and own proposals agree at step 0 and wherever the draft was right before; elsewhere they may differ."""
    draft = tiny_draft(seed=1)
    sample = sample_of(draft, prompt_length=4, n=30, seed=1)
    own, forced = (propose(draft, sample, 3, forced=flag) for flag in (False, True))
    x = sample.document.tokens
    rows = np.arange(3, len(x) - 4)
    assert np.array_equal(own[0, rows], forced[0, rows])
    right = own[0, rows] == x[rows + 2]
    assert right.any()
    assert not right.all()
    assert np.array_equal(own[1, rows[right]], forced[1, rows[right]])
    assert not np.array_equal(own[1, rows[~right]], forced[1, rows[~right]])


def test_normed_feedback_changes_later_steps_only():
    draft = tiny_draft(seed=2)
    sample = sample_of(draft, prompt_length=4, n=30, seed=2)
    normed = tiny_draft(tiny_config(feed_normed_hidden=True), seed=2)
    plain, fed = (propose(model, sample, 3, forced=False) for model in (draft, normed))
    assert np.array_equal(plain[0], fed[0])
    assert not np.array_equal(plain[1:], fed[1:])
