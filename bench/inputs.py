"""Weights, documents and target states of a case, as one safetensors file that every trainer reads.

The target's states are random. Lengths and masks are made up, or those of real conversations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cases import NUM_AUX, Case, Shape
from draftyard_api.spec import Target
from draftyard_trainer.data.building import Recipe, render_rows
from draftyard_trainer.data.files import read_rows
from draftyard_trainer.data.tally import Tally
from draftyard_trainer.data.template import ChatTemplate
from draftyard_trainer.data.tokenizer import load_tokenizer, stop_ids
from draftyard_trainer.data.tokens import TokenRules, tokenise
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.target.location import locate

CONVERSATIONS = 2000
"""Real conversations that lengths are taken from."""
DRAWS = 2000
"""Batches among which the most typical one is looked for."""
TURN = 100
"""Tokens of a question with its answer in made-up documents."""
LEAD = 8
"""Tokens at the start and one at the end that are never supervised: there the peers' alignments differ."""


@dataclass(frozen=True, eq=False)
class Lengths:
    """Tokens of a document, and where its answers are, `[s, 2]` of (start, length)."""

    num_tokens: int
    spans: np.ndarray

    @property
    def supervised(self) -> int:
        """Supervised tokens."""
        return int(self.spans[:, 1].sum())


def draft_config(shape: Shape) -> DraftConfig:
    """The draft of a shape."""
    return DraftConfig(
        hidden_size=shape.hidden_size, target_hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.vocab_size, draft_vocab_size=shape.draft_vocab_size, aux_layers=tuple(range(NUM_AUX)),
        rms_norm_eps=shape.rms_norm_eps, max_position_embeddings=16384, rope_theta=shape.rope_theta, rope_scaling=None,
    )  # fmt: skip


def write(case: Case, model: Path, conversations: Path, path: Path) -> list[Lengths]:
    """Write the inputs of a case; the same every time. Returns what its documents are."""
    documents = typical_batch(real_lengths(model, conversations, case.length), case) if case.is_real else made_up(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(make(case.shape, documents), path)
    return documents


def make(shape: Shape, documents: list[Lengths], device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a case by name; tokens and spans stay on the CPU."""
    generator = torch.Generator(device).manual_seed(5)
    tensors = weights(shape, generator)
    for number, document in enumerate(documents):
        length, width = document.num_tokens, shape.hidden_size
        last = torch.randn(length, width, generator=generator, device=device)
        tensors |= {
            f"tokens.{number}": torch.randint(0, shape.vocab_size, (length,), generator=generator, device=device).cpu(),
            f"spans.{number}": torch.from_numpy(document.spans),
            f"aux.{number}": torch.randn(length, NUM_AUX * width, generator=generator, device=device),
            # Of unit size: a peer that norms them again gets the same.
            f"last.{number}": last * last.square().mean(-1, keepdim=True).rsqrt(),
        }
    return tensors


def weights(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """A fresh draft and a target head. The target's choices are all in the draft vocabulary: peers differ beyond."""
    device = generator.device
    draft = DraftModel(draft_config(shape))
    draft.initialise(seed=0)
    draft.to(device)
    ids = torch.randperm(shape.vocab_size, generator=generator, device=device)[: shape.draft_vocab_size].sort().values
    head = 0.05 * torch.randn(shape.vocab_size, shape.hidden_size, generator=generator, device=device)
    head[ids] *= 3
    draft.d2t.copy_(ids - torch.arange(len(ids), device=device))
    draft.t2d[ids] = True
    embedding = 0.02 * torch.randn(shape.vocab_size, shape.hidden_size, generator=generator, device=device)
    return {
        **{f"weight.{name}": tensor.detach() for name, tensor in draft.state_dict().items()},
        "embedding": embedding,
        "head": head,
    }


def made_up(case: Case) -> list[Lengths]:
    """`batch` documents of full length with the wanted share of supervised tokens, in turns."""
    assert case.loss_share is not None
    usable = case.length - LEAD - 1
    if case.loss_share == 1.0:
        spans = [(LEAD, usable)]
    else:
        answer = round(TURN * case.loss_share)
        spans = [(LEAD + start + TURN - answer, answer) for start in range(0, usable - TURN + 1, TURN)]
    return [Lengths(case.length, np.array(spans, dtype=np.int64)) for _ in range(case.batch)]


def real_lengths(model: Path, conversations: Path, longest: int) -> list[Lengths]:
    """Lengths and masks of real conversations, cut at `longest` tokens, as `prepare` makes them."""
    tokenizer = load_tokenizer(model, str(model), trust_remote_code=False)
    config = locate(Target(model=f"file://{model.resolve()}"), weights=False).config
    stops = frozenset(stop_ids(model, config, tokenizer, ()))
    rules = TokenRules(stops, longest)
    recipe = Recipe(ChatTemplate(tokenizer, {}, None), tokenizer.backend_tokenizer, rules, False, 0.0)
    rows = itertools.islice(render_rows(read_rows(conversations), recipe, Tally()), CONVERSATIONS)
    found = []
    for row in rows:
        for text in tokenise(recipe.tokenizer, row.texts, rules):
            spans = inside(np.asarray(text.spans, dtype=np.int64).reshape(-1, 2), len(text.tokens))
            if len(spans):
                found.append(Lengths(len(text.tokens), spans))
    return found


def inside(spans: np.ndarray, num_tokens: int) -> np.ndarray:
    """Answers without the first and the last tokens of their document."""
    starts = np.maximum(spans[:, 0], LEAD)
    ends = np.minimum(spans.sum(axis=1), num_tokens - 1)
    return np.stack([starts, ends - starts], axis=1)[ends > starts]


def typical_batch(documents: list[Lengths], case: Case) -> list[Lengths]:
    """Of many random batches the one nearest to all of them in tokens and in supervised tokens."""
    draws = np.random.default_rng(0).integers(0, len(documents), (DRAWS, case.batch))
    tokens = np.array([document.num_tokens for document in documents])[draws].sum(axis=1)
    supervised = np.array([document.supervised for document in documents])[draws].sum(axis=1)
    distance = np.abs(tokens / tokens.mean() - 1) + np.abs(supervised / supervised.mean() - 1)
    return [documents[place] for place in draws[int(distance.argmin())]]
