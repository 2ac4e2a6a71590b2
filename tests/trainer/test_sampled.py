"""Temperature 1: a server that rejects and draws anew, token by token, against the target and against our evaluator.

Small vocabularies, many replies, fixed seeds: what is compared are counts of whole outcomes, by chi-square. A bound is
the quantile that a right procedure exceeds once in a million times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from naive_server import NaiveServer

from draftyard_api.spec import Target
from draftyard_trainer import testing
from draftyard_trainer.chain import count_rounds
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.vocabulary import DraftVocabulary
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.sampled import Draws, accept, acceptance_shares, log_proposed, uniforms
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.decoding import draw
from draftyard_trainer.target.location import locate

TOKENS = 8
"""The target's vocabulary, and 5 of them the draft's."""
DRAFTED = np.array([0, 1, 3, 5, 6])
PROMPT = (4, 1, 2)
REPLIES = 4000
NEW_TOKENS = 3
NUM_PROPOSALS = 2


@dataclass
class World:
    """A target of few tokens, and a draft whose guesses are neither right nor useless."""

    target: CapturedTarget
    draft: DraftModel
    server: NaiveServer
    known: dict[tuple[int, ...], tuple[np.ndarray, torch.Tensor]]

    def read(self, tokens: tuple[int, ...]) -> tuple[np.ndarray, torch.Tensor]:
        """The target's distribution behind some tokens, and its states of all of them; each text is read once."""
        if tokens not in self.known:
            document = Document(0, np.array(tokens), np.array([[0, len(tokens)]]))
            (sample,) = self.target.capture([document])
            probability = self.target.head.logits(sample.last[-1:])[0].double().softmax(-1).numpy()
            self.known[tokens] = probability, sample.aux
        return self.known[tokens]

    def guess(self, tokens: tuple[int, ...], drafted: tuple[int, ...]) -> np.ndarray:
        """The draft's distribution behind verified tokens and some of its own, over the target's vocabulary.

        The newest verified token is the last one of `tokens`: the draft has states of those before it.
        """
        key = (*tokens, -1, *drafted)
        if key not in self.known:
            cache: list[Any] = []
            _, aux = self.read(tokens[:-1])
            hidden = torch.zeros(0)
            for place in range(len(tokens) - 1):
                fused = self.server.weights["fc.weight"] @ aux[place]
                hidden = self.server.run(tokens[place + 1], fused, place, cache)
            for step, token in enumerate(drafted):
                hidden = self.server.run(token, hidden, len(tokens) - 1 + step, cache)
            logits = self.server.weights["lm_head.weight"] @ self.server.norm("norm", hidden)
            found = np.zeros(TOKENS)
            found[DRAFTED] = logits.double().softmax(0).numpy()
            self.known[key] = found, aux
        return self.known[key][0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = testing.write_target(
        tmp_path_factory.mktemp("target"), vocab_size=TOKENS, num_hidden_layers=6, seed=3, initializer_range=0.25,
        eos_token_id=2,
    )  # fmt: skip
    target = CapturedTarget.load(locate(Target(model=f"file://{folder}", dtype="float32")), "float32", (2, 3, 4))
    config = DraftConfig(
        hidden_size=32, target_hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=TOKENS, draft_vocab_size=len(DRAFTED), aux_layers=(2, 3, 4), rms_norm_eps=1e-5,
        max_position_embeddings=512, rope_theta=10000.0, rope_scaling=None, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    draft = DraftModel(config)
    draft.set_vocabulary(DraftVocabulary(DRAFTED, np.ones_like(DRAFTED), TOKENS))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.25 * noise if parameter.dim() > 1 else 1 + 0.1 * noise)
    draft.attach_embedding(target.head.embed)
    weights = {name: tensor.detach() for name, tensor in draft.state_dict().items()}
    return World(target, draft, NaiveServer(weights, target.head.embed, config), {})


# -- A server -----------------------------------------------------------------------------------------------------

Rule = Callable[[np.random.Generator, np.ndarray, np.ndarray, int], int | None]
"""Judges a proposal by the target's and the draft's distributions: the token instead of it, or None to accept it."""


def exact(random: np.random.Generator, p: np.ndarray, q: np.ndarray, proposed: int) -> int | None:
    if random.random() < min(1.0, p[proposed] / q[proposed]):
        return None
    rest = np.maximum(p - q, 0)
    return int(random.choice(TOKENS, p=rest / rest.sum()))


def without_residual(random: np.random.Generator, p: np.ndarray, q: np.ndarray, proposed: int) -> int | None:
    return None if random.random() < min(1.0, p[proposed] / q[proposed]) else int(random.choice(TOKENS, p=p))


def greedy_about_it(random: np.random.Generator, p: np.ndarray, q: np.ndarray, proposed: int) -> int | None:
    return None if random.random() < min(1.0, 2 * p[proposed] / q[proposed]) else exact(random, p, q, proposed)


def play(world: World, random: np.random.Generator, rule: Rule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One reply of a server that speculates: its tokens, and how many proposals each round accepted."""
    said: list[int] = [int(random.choice(TOKENS, p=world.read(PROMPT)[0]))]
    rounds: list[int] = []
    while len(said) < NEW_TOKENS:
        verified = (*PROMPT, *said)
        drafted: tuple[int, ...] = ()
        # What would be cut off is not even proposed.
        for _ in range(min(NUM_PROPOSALS, NEW_TOKENS - len(said))):
            drafted = (*drafted, int(random.choice(TOKENS, p=world.guess(verified, drafted))))
        accepted = 0
        for place, proposed in enumerate(drafted):
            p, _ = world.read((*verified, *drafted[:place]))
            instead = rule(random, p, world.guess(verified, drafted[:place]), proposed)
            if instead is not None:
                said.append(instead)
                break
            said.append(proposed)
            accepted += 1
        if accepted == len(drafted) and len(said) < NEW_TOKENS:
            said.append(int(random.choice(TOKENS, p=world.read((*verified, *drafted))[0])))
        rounds.append(accepted)
    return tuple(said), tuple(rounds)


def law(world: World, length: int) -> Mapping[tuple[int, ...], float]:
    """The target's own distribution of the next tokens, added up exactly."""

    def walk(said: tuple[int, ...], share: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(said) == length:
            yield said, share
            return
        p, _ = world.read((*PROMPT, *said))
        for token in range(TOKENS):
            yield from walk((*said, token), share * float(p[token]))

    return dict(walk((), 1.0))


# -- Comparing ----------------------------------------------------------------------------------------------------

EXPECTED_AT_LEAST = 5.0
"""Outcomes that are expected less often are counted as one, as chi-square asks for."""


def bound(degrees: int, sigmas: float = 4.9) -> float:
    """The quantile of chi-square that is exceeded about once in a million times (Wilson and Hilferty)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + sigmas * math.sqrt(spread)) ** 3


def distance(counted: Counter[Any], expected: Mapping[Any, float]) -> tuple[float, float]:
    """Chi-square of counts against probabilities, and its bound."""
    total = counted.total()
    seldom = [outcome for outcome, share in expected.items() if share * total < EXPECTED_AT_LEAST]
    pairs = [(counted[one], share * total) for one, share in expected.items() if share * total >= EXPECTED_AT_LEAST]
    pairs.append((sum(counted[one] for one in seldom), max(sum(expected[one] for one in seldom) * total, 1e-9)))
    if pairs[-1][1] < EXPECTED_AT_LEAST:
        last, before = pairs.pop(), pairs.pop()
        pairs.append((last[0] + before[0], last[1] + before[1]))
    return sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs), bound(len(pairs) - 1)


def two_samples(one: Counter[Any], other: Counter[Any]) -> tuple[float, float]:
    """Chi-square of two samples of one size that may have one distribution, and its bound."""
    outcomes = sorted({*one, *other})
    often = [outcome for outcome in outcomes if one[outcome] + other[outcome] >= 2 * EXPECTED_AT_LEAST]
    pairs = [(one[outcome], other[outcome]) for outcome in often]
    rest = [outcome for outcome in outcomes if outcome not in often]
    pairs.append((sum(one[outcome] for outcome in rest), sum(other[outcome] for outcome in rest)))
    found = sum((left - right) ** 2 / (left + right) for left, right in pairs if left + right)
    return found, bound(len(pairs) - 1)


def served(world: World, rule: Rule, seed: int = 0) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    random = np.random.default_rng(seed)
    return [play(world, random, rule) for _ in range(REPLIES)]


@pytest.fixture(scope="module")
def replies(world: World) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return served(world, exact)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_what_a_server_says_is_what_the_target_says(world, replies, length):
    counted = Counter(said[:length] for said, _ in replies)
    found, allowed = distance(counted, law(world, length))
    assert found < allowed


@pytest.mark.parametrize("rule", [without_residual, greedy_about_it])
def test_a_wrong_rule_is_seen(world, rule):
    counted = Counter(said[:3] for said, _ in served(world, rule))
    found, allowed = distance(counted, law(world, 3))
    assert found > 2 * allowed


# -- Our evaluator ------------------------------------------------------------------------------------------------


def evaluated(
    world: World, chances: Callable[[int, int], np.ndarray] | None = None
) -> list[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """Replies drawn from the target alone, with the rounds that are counted on them afterwards."""
    numbers = np.stack([uniforms(7, "heldOut", place, Draws.REPLY, NEW_TOKENS) for place in range(REPLIES)])
    prompt = np.array(PROMPT)
    said = world.target.sampled([prompt] * REPLIES, (), torch.from_numpy(numbers))
    found = []
    known: dict[tuple[int, ...], np.ndarray] = {}
    for place, reply in enumerate(said):
        key, tokens = tuple(reply.tolist()), np.concatenate([prompt, reply])
        if key not in known:
            (sample,) = world.target.capture([Document(0, tokens, np.array([[len(prompt), len(reply)]]))])
            known[key] = acceptance_shares(world.draft, world.target.head, sample, NUM_PROPOSALS)
        drawn = (chances or own_chances)(place, len(tokens))
        counts = count_rounds(tokens, len(prompt), accept(tokens, known[key], drawn))
        found.append((key, counts.rounds, tuple(counts.per_position.tolist())))
    return found


def own_chances(place: int, count: int) -> np.ndarray:
    return uniforms(7, "heldOut", place, Draws.ACCEPT, count)


def counts_of(rounds: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Rounds of a server as our evaluator tells them."""
    return len(rounds), tuple(sum(accepted > place for accepted in rounds) for place in range(NUM_PROPOSALS))


def test_our_replies_and_rounds_are_distributed_as_a_server_s(world, replies):
    """Together, not each for itself: which reply it is and how many rounds it took."""
    ours = Counter(evaluated(world))
    theirs = Counter((said, *counts_of(rounds)) for said, rounds in replies)
    found, allowed = two_samples(ours, theirs)
    assert found < allowed
    assert len({rounds for _, rounds, _ in ours}) > 1


def test_our_replies_are_the_target_s(world):
    counted = Counter(said[:3] for said, _, _ in evaluated(world))
    found, allowed = distance(counted, law(world, 3))
    assert found < allowed


def test_another_chance_of_acceptance_is_seen(world, replies):
    """As if a proposal were accepted half as often as it should be."""
    ours = Counter(evaluated(world, lambda place, count: np.minimum(2 * own_chances(place, count), 1.0)))
    theirs = Counter((said, *counts_of(rounds)) for said, rounds in replies)
    found, allowed = two_samples(ours, theirs)
    assert found > 2 * allowed


# -- Parts --------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_same_in_any_batch(world):
    numbers = torch.from_numpy(np.stack([uniforms(1, "gsm8k", place, Draws.REPLY, 8) for place in range(5)]))
    prompts = [np.array(PROMPT), np.array([1]), np.array([5, 5, 3, 0, 1, 1]), np.array([0, 2]), np.array([3, 3])]
    together = world.target.sampled(prompts, (2,), numbers)
    alone = [world.target.sampled([prompt], (2,), numbers[[place]])[0] for place, prompt in enumerate(prompts)]
    assert [one.tolist() for one in together] == [one.tolist() for one in alone]
    assert len({tuple(one.tolist()) for one in together}) > 1


def test_numbers_depend_on_the_run_the_prompt_and_their_use():
    base = uniforms(1, "gsm8k", 3, Draws.REPLY, 4)
    assert np.array_equal(base, uniforms(1, "gsm8k", 3, Draws.REPLY, 9)[:4])
    others = [(2, "gsm8k", 3, Draws.REPLY), (1, "file", 3, Draws.REPLY), (1, "gsm8k", 4, Draws.REPLY),
              (1, "gsm8k", 3, Draws.ACCEPT)]  # fmt: skip
    assert all(not np.array_equal(base, uniforms(*other, 4)) for other in others)


def test_a_token_is_drawn_where_the_summed_probability_passes_the_number():
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log().expand(5, -1)
    assert draw(logits, torch.tensor([0.0, 0.24, 0.26, 0.74, 1 - 1e-12], dtype=torch.float64)).tolist() == [
        0,
        0,
        1,
        1,
        2,
    ]
    impossible = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert draw(impossible, torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)).tolist() == [1, 1]


def test_a_token_outside_of_the_draft_vocabulary_is_never_proposed(world):
    logits = torch.zeros(TOKENS, len(DRAFTED))
    found = log_proposed(world.draft, logits, np.arange(TOKENS))
    assert np.isneginf(found[[2, 4, 7]]).all()
    assert np.allclose(found[DRAFTED], math.log(1 / len(DRAFTED)))
