"""A server that drafts one token at a time, with plain loops: what evaluators are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from draftyard_trainer.chain import RoundCounts
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import tiny_embedding, tiny_sample
from draftyard_trainer.hidden_states.sample import Sample


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
