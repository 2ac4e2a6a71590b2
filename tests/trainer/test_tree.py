"""Trees of proposals against a tree that is grown node by node, and against the chain that a narrow tree is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from naive_server import NaiveServer, sample_of, server_of

from draftyard_api.spec import Tree
from draftyard_trainer.chain import RoundCounts, count_rounds, propose
from draftyard_trainer.draft.testing import tiny_draft
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.tree import Level, accepted_depth, propose_tree

PROMPT = 6


@dataclass
class Node:
    """A proposal: the tokens on the path to it, what the draft made of them, and how likely it is."""

    path: tuple[int, ...]
    score: float
    hidden: torch.Tensor
    cache: list[tuple[torch.Tensor, torch.Tensor]]


def likely(server: NaiveServer, hidden: torch.Tensor, count: int) -> list[tuple[int, float]]:
    """The draft's most likely tokens behind a state, with the logarithms of their probabilities."""
    logp = torch.log_softmax(server.weights["lm_head.weight"] @ server.norm("norm", hidden), dim=0)
    best = logp.topk(count)
    ids = [int(one) + int(server.weights["d2t"][one]) for one in best.indices]
    return list(zip(ids, best.values.tolist(), strict=True))


def naive_tree(server: NaiveServer, x: list[int], aux: torch.Tensor, verified: int, tree: Tree) -> set[tuple[int, ...]]:
    """The paths of all verified nodes: every node is run alone, with a cache of its own ancestors."""
    cache: list[tuple[torch.Tensor, torch.Tensor]] = []
    hidden = torch.zeros(0)
    for t in range(verified):
        hidden = server.run(x[t + 1], server.weights["fc.weight"] @ aux[t], t, cache)
    level = [Node((token,), logp, hidden, cache) for token, logp in likely(server, hidden, tree.top_k)]
    every, beam = list(level), level
    for step in range(1, tree.steps):
        level = []
        for node in beam:
            own = list(node.cache)
            state = server.run(node.path[-1], node.hidden, verified - 1 + step, own)
            level += [
                Node((*node.path, token), node.score + logp, state, own)
                for token, logp in likely(server, state, tree.top_k)
            ]
        every += level
        beam = sorted(level, key=lambda node: -node.score)[: tree.top_k]
    best = sorted(every, key=lambda node: -node.score)[: tree.draft_tokens - 1]
    return {node.path for node in best}


def serve_tree(server: NaiveServer, sample: Sample, prompt_length: int, tree: Tree) -> RoundCounts:
    """Grow a tree, follow the reply through it as deep as it goes, go on behind that."""
    x = sample.document.tokens.tolist()
    per_position, rounds, verified = [0] * tree.steps, 0, prompt_length
    while verified < len(x) - 1:
        paths = naive_tree(server, x, sample.aux, verified, tree)
        truth = tuple(x[verified + 1 :])
        accepted = max((depth for depth in range(tree.steps + 1) if not depth or truth[:depth] in paths), default=0)
        accepted = min(accepted, len(truth))
        for depth in range(accepted):
            per_position[depth] += 1
        rounds += 1
        verified += accepted + 1
    return RoundCounts(rounds, np.array(per_position))


SHAPES = {
    "wide": Tree(steps=3, top_k=4, draft_tokens=12),
    "deep": Tree(steps=5, top_k=2, draft_tokens=9),
    "every node is verified": Tree(steps=3, top_k=3, draft_tokens=1 + 3 + 2 * 9),
    "few of many nodes": Tree(steps=4, top_k=4, draft_tokens=5),
    "one step": Tree(steps=1, top_k=5, draft_tokens=4),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("tree", SHAPES.values(), ids=SHAPES.keys())
def test_trees_equal_trees_that_are_grown_node_by_node(tree, seed):
    draft = tiny_draft(seed=seed)
    sample = sample_of(draft, PROMPT, n=22, seed=seed)
    played = serve_tree(server_of(draft, seed), sample, PROMPT, tree)
    counted = count_rounds(sample.document.tokens, PROMPT, propose_tree(draft, sample, tree))
    assert (counted.rounds, counted.per_position.tolist()) == (played.rounds, played.per_position.tolist())
    assert played.accepted > 0


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_tree_with_one_branch_is_the_chain(steps):
    draft = tiny_draft(seed=4)
    sample = sample_of(draft, PROMPT, n=40, seed=4)
    tree = Tree(steps=steps, top_k=1, draft_tokens=steps + 1)
    narrow = count_rounds(sample.document.tokens, PROMPT, propose_tree(draft, sample, tree))
    chain = count_rounds(sample.document.tokens, PROMPT, propose(draft, sample, steps, forced=False))
    assert (narrow.rounds, narrow.per_position.tolist()) == (chain.rounds, chain.per_position.tolist())
    assert narrow.accepted > 0


def test_a_tree_accepts_at_least_what_its_chain_accepts():
    draft = tiny_draft(seed=5)
    sample = sample_of(draft, PROMPT, n=60, seed=5)
    everything = Tree(steps=3, top_k=4, draft_tokens=1 + 4 + 2 * 16)
    wide = count_rounds(sample.document.tokens, PROMPT, propose_tree(draft, sample, everything))
    chain = count_rounds(sample.document.tokens, PROMPT, propose(draft, sample, 3, forced=False))
    assert wide.rounds < chain.rounds


def test_blocks_of_rows_change_nothing(monkeypatch):
    draft = tiny_draft(seed=6)
    sample = sample_of(draft, PROMPT, n=30, seed=6)
    at_once = propose_tree(draft, sample, SHAPES["wide"])
    monkeypatch.setattr("draftyard_trainer.tree.ROWS_AT_ONCE", 7)
    assert np.array_equal(propose_tree(draft, sample, SHAPES["wide"]), at_once)


def test_a_child_that_is_certain_does_not_go_before_its_parent():
    one = torch.tensor([[0.0, -3.0]])
    first = Level(one, torch.tensor([[5, 6]]), torch.tensor([[0, 0]]))
    second = Level(torch.tensor([[0.0, -9.0]]), torch.tensor([[7, 8]]), torch.tensor([[0, 0]]))
    truth = torch.tensor([[5, 7]])
    assert [accepted_depth([first, second], count, truth).tolist() for count in (1, 2)] == [[1], [2]]


def test_a_token_counts_only_below_its_own_parent():
    first = Level(torch.tensor([[-1.0, -1.1]]), torch.tensor([[5, 6]]), torch.tensor([[0, 0]]))
    second = Level(torch.tensor([[-1.2, -1.3]]), torch.tensor([[7, 8]]), torch.tensor([[1, 0]]))
    assert accepted_depth([first, second], 4, torch.tensor([[5, 7]])).tolist() == [1]
    assert accepted_depth([first, second], 4, torch.tensor([[6, 7]])).tolist() == [2]
