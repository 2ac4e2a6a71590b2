"""The chain evaluator against a server that is played round by round, one token at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from draftyard_trainer.chain import (
    RoundCounts,
    count_forced,
    count_rounds,
    propose,
    share_forced,
    summarise,
)
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import tiny_config, tiny_draft, tiny_embedding, tiny_sample
from draftyard_trainer.hidden_states.sample import Sample


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


# -- A server, one token at a time -------------------------------------------------------------


@dataclass
class NaiveServer:
    """Drafts like an engine: one token per call, a cache of keys and values, plain loops, no masks."""

    weights: dict[str, Tensor]
    embedding: Tensor
    config: DraftConfig

    def norm(self, name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean() + self.config.rms_norm_eps) * self.weights[f"{name}.weight"]

    def heads(self, name: str, x: Tensor, position: int) -> Tensor:
        heads = (self.weights[f"midlayer.self_attn.{name}.weight"] @ x).view(-1, self.config.head_dim)
        if name == "v_proj":
            return heads
        half = self.config.head_dim // 2
        angles = position * self.config.rope_theta ** (-torch.arange(half) / half)
        left, right = heads[:, :half], heads[:, half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def attend(self, query: Tensor, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        outputs = []
        for head in range(self.config.num_attention_heads):
            scores = torch.stack([query[head] @ key[head // group] for key, _ in cache])
            weights = torch.softmax(scores / math.sqrt(self.config.head_dim), dim=0)
            outputs.append(sum(w * value[head // group] for w, (_, value) in zip(weights, cache, strict=True)))
        return torch.cat(outputs)

    def run(self, token: int, hidden: Tensor, position: int, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """One token through the layer: appends to the cache, returns the un-normed output."""
        embedded = self.norm("midlayer.input_layernorm", self.embedding[token])
        x = torch.cat([embedded, self.norm("midlayer.hidden_norm", hidden)])
        cache.append((self.heads("k_proj", x, position), self.heads("v_proj", x, position)))
        attended = self.attend(self.heads("q_proj", x, position), cache)
        hidden = hidden + self.weights["midlayer.self_attn.o_proj.weight"] @ attended
        y = self.norm("midlayer.post_attention_layernorm", hidden)
        gate = torch.nn.functional.silu(self.weights["midlayer.mlp.gate_proj.weight"] @ y)
        up = self.weights["midlayer.mlp.up_proj.weight"] @ y
        return hidden + self.weights["midlayer.mlp.down_proj.weight"] @ (gate * up)

    def predict(self, hidden: Tensor) -> int:
        draft_id = int((self.weights["lm_head.weight"] @ self.norm("norm", hidden)).argmax())
        return draft_id + int(self.weights["d2t"][draft_id])

    def draft(self, x: list[int], aux: Tensor, verified: int, num_proposals: int) -> list[int]:
        """Proposals after `verified`, the newest verified position: the cache is rebuilt from real features."""
        cache: list[tuple[Tensor, Tensor]] = []
        hidden = torch.zeros(0)
        for t in range(verified):
            hidden = self.run(x[t + 1], self.weights["fc.weight"] @ aux[t], t, cache)
        proposed = [self.predict(hidden)]
        for k in range(1, num_proposals):
            hidden = self.run(proposed[-1], hidden, verified - 1 + k, cache)
            proposed.append(self.predict(hidden))
        return proposed


def serve(server: NaiveServer, sample: Sample, prompt_length: int, num_proposals: int) -> RoundCounts:
    """Draft, verify against the reply, go on behind the last accepted token."""
    x = sample.document.tokens.tolist()
    per_position = [0] * num_proposals
    rounds, verified = 0, prompt_length
    while verified < len(x) - 1:
        proposed = server.draft(x, sample.aux, verified, num_proposals)
        truth = x[verified + 1 :]
        accepted = 0
        while accepted < min(num_proposals, len(truth)) and proposed[accepted] == truth[accepted]:
            per_position[accepted] += 1
            accepted += 1
        rounds += 1
        verified += accepted + 1
    return RoundCounts(rounds, np.array(per_position))


def sample_of(draft: DraftModel, prompt_length: int, n: int, seed: int) -> Sample:
    """Random states and a reply that follows the draft's own proposals at most positions, so that rounds differ."""
    sample = tiny_sample(draft.config, n, prompt_length, seed)
    x, server = sample.document.tokens, server_of(draft, seed)
    for position in range(prompt_length + 1, n):
        if position % 5:
            x[position] = server.draft(x.tolist(), sample.aux, position - 1, 1)[0]
    return sample


def server_of(draft: DraftModel, seed: int) -> NaiveServer:
    weights = {name: tensor.detach() for name, tensor in draft.state_dict().items()}
    return NaiveServer(weights, tiny_embedding(draft.config, seed), draft.config)


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
