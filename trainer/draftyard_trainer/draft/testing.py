"""Tiny drafts with seeded weights, for tests of everything that reads or writes one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftyard_trainer.data.document import Document
from draftyard_trainer.data.vocabulary import DraftVocabulary
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.manifest import (
    Conventions,
    DataIdentity,
    Provenance,
    Schedule,
    Selected,
    TargetIdentity,
    TextIdentity,
    VocabularyIdentity,
)
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.target.head import TargetHead

TINY = DraftConfig(
    hidden_size=32,
    target_hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=96,
    draft_vocab_size=40,
    aux_layers=(2, 4, 5),
    rms_norm_eps=1e-5,
    max_position_embeddings=512,
    rope_theta=10000.0,
    rope_scaling=None,
    bos_token_id=0,
    eos_token_id=2,
)


def tiny_config(**changes: Any) -> DraftConfig:
    """`TINY` with some fields changed."""
    return replace(TINY, **changes)


def tiny_vocabulary(config: DraftConfig = TINY, seed: int = 0) -> DraftVocabulary:
    """D ids out of V, with the stop token 2 among them."""
    # The stop token must be a member, or a rule warns.
    others = np.delete(np.arange(config.vocab_size), 2)
    chosen = np.random.default_rng(seed).choice(others, size=config.draft_vocab_size - 1, replace=False)
    ids = np.sort(np.append(chosen, 2)).astype(np.int64)
    return DraftVocabulary(ids, np.ones_like(ids), config.vocab_size)


def tiny_embedding(config: DraftConfig = TINY, seed: int = 0) -> Tensor:
    """The target's table `[V, H]`."""
    return torch.randn(config.vocab_size, config.hidden_size, generator=torch.Generator().manual_seed(seed))


def tiny_draft(config: DraftConfig = TINY, seed: int = 0, scale: float = 0.2) -> DraftModel:
    """A draft whose proposals differ from row to row, with `tiny_embedding` attached."""
    draft = DraftModel(config)
    draft.set_vocabulary(tiny_vocabulary(config, seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Far from the usual 0.02: proposals of a fresh draft would be the same in every row.
            parameter.copy_(scale * noise if parameter.dim() > 1 else 1 + 0.1 * noise)
    draft.attach_embedding(tiny_embedding(config, seed))
    return draft


def tiny_sample(config: DraftConfig = TINY, num_tokens: int = 24, prompt_length: int = 5, seed: int = 0) -> Sample:
    """A document of random tokens and states whose answer follows the prompt; it has no labels."""
    generator = torch.Generator().manual_seed(seed + 2)
    tokens = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator).numpy()
    spans = np.array([[prompt_length, num_tokens - prompt_length]])
    aux = torch.randn(num_tokens, config.num_aux * config.target_hidden_size, generator=generator)
    none = torch.zeros(0)
    return Sample(Document(seed, tokens, spans), aux, none, none, none)


def tiny_provenance(run: str, fingerprint: str = "f1") -> Provenance:
    """Where a tiny draft claims to come from."""
    return Provenance(
        run=run,
        fingerprint=fingerprint,
        profile="eagle3",
        target=TargetIdentity(model="org/target", commit="c" * 40, dtype="bfloat16"),
        text=TextIdentity(tokenizer_sha256="2" * 64, template_sha256="3" * 64, template_kwargs={}),
        data=DataIdentity(revision="1" * 64, tokens_sha256="4" * 64, documents=10, tokens=1000),
        conventions=Conventions(
            alignment="runtime", normalise="tokens", objective="kl", out_of_vocab="mask", ttt_steps=4, decay=0.8
        ),
        vocabulary=VocabularyIdentity(size=40, sha256="5" * 64, coverage="0.98"),
        schedule=Schedule(steps=7, epochs=1, seed=42, plan_hash="6" * 64, optimizer={"learningRate": 1e-4}),
        checkpoint=Selected(step=7, why="highest tau_sim of 1"),
        metrics={"tau_sim": "1.5"},
    )


def tiny_head(config: DraftConfig = TINY, seed: int = 0, **text_config: Any) -> TargetHead:
    """The target's head in fp64, sharp enough that its choices differ; `text_config` may cap or scale its logits."""
    generator = torch.Generator().manual_seed(seed + 3)
    lm_head = 0.5 * torch.randn(config.vocab_size, config.target_hidden_size, generator=generator)
    norm = torch.ones(config.target_hidden_size, dtype=torch.float64)
    return TargetHead(lm_head.double(), tiny_embedding(config, seed).double(), norm, text_config)


def supervised_sample(
    head: TargetHead, num_aux: int, num_tokens: int, spans: list[tuple[int, int]], seed: int = 0
) -> Sample:
    """A document of random tokens with turns `spans` (start, length), random fp64 states and the head's labels."""
    generator = torch.Generator().manual_seed(seed + 4)
    size, width = head.lm_head.shape
    tokens = torch.randint(0, size, (num_tokens,), generator=generator).numpy()
    document = Document(seed, tokens, np.array(spans, dtype=np.int64).reshape(-1, 2))
    aux = torch.randn(num_tokens, num_aux * width, generator=generator).double()
    last = torch.randn(num_tokens, width, generator=generator).double()[torch.from_numpy(document.label_rows())]
    logits = head.logits(last)
    return Sample(document, aux, last, logits.argmax(-1).to(torch.int32), torch.logsumexp(logits, -1).float())
