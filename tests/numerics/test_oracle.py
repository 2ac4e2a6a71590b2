"""The unroll against a draft that is run as a server runs it: one token at a time, with a key-value cache.

The oracle reads the weights by their exported names and shares no code with the draft: plain loops, its own norm,
rotary embedding and softmax. Every (row, step) inside a document must agree, and so must the gradients.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import supervised_sample, tiny_config, tiny_draft, tiny_head, tiny_vocabulary
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loss import LossConfig, Teacher, step_scales, ttt_loss
from draftyard_trainer.rows import build_row
from draftyard_trainer.ttt import unroll

STEPS = 4
# The rotary tables are fp32 by contract; everything else here is fp64. Angles of position 20 round to 1e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 5e-6}


class Server:
    """A draft as an engine holds it: weights by name, the target's embedding, one cache per request."""

    def __init__(self, weights: dict[str, Tensor], embedding: Tensor, config: DraftConfig) -> None:
        self.weights, self.embedding, self.config = weights, embedding, config
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x * x).mean() + self.config.rms_norm_eps) * self.weights[f"{name}.weight"]

    def fuse(self, aux: Tensor) -> Tensor:
        if self.config.norm_before_fc:
            aux = self.norm(aux, "input_norm")
        if self.config.fc_norm:
            chunks = aux.split(self.config.target_hidden_size)
            aux = torch.cat([self.norm(chunk, f"fc_norm.{index}") for index, chunk in enumerate(chunks)])
        return self.weights["fc.weight"] @ aux

    def run(self, token: int, hidden: Tensor, position: int) -> Tensor:
        """One token through the layer: its key and value join the cache, its output is not normed."""
        layer = "midlayer"
        normed = self.norm(hidden, f"{layer}.hidden_norm")
        x = torch.cat([self.norm(self.embedding[token], f"{layer}.input_layernorm"), normed])
        query, key, value = (
            (self.weights[f"{layer}.self_attn.{name}_proj.weight"] @ x).view(-1, self.config.head_dim) for name in "qkv"
        )
        self.keys.append(turn(key, position, self.config))
        self.values.append(value)
        seen = self.attend(turn(query, position, self.config))
        residual = normed if self.config.norm_before_residual else hidden
        hidden = residual + self.weights[f"{layer}.self_attn.o_proj.weight"] @ seen
        y = self.norm(hidden, f"{layer}.post_attention_layernorm")
        gate, up, down = (self.weights[f"{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        gated = gate @ y
        return hidden + down @ (gated * torch.sigmoid(gated) * (up @ y))

    def attend(self, query: Tensor) -> Tensor:
        """Each query head over the whole cache of its key head."""
        sharing = self.config.num_attention_heads // self.config.num_key_value_heads
        outputs = []
        for head in range(self.config.num_attention_heads):
            scores = torch.stack([query[head] @ key[head // sharing] for key in self.keys])
            powers = (scores / math.sqrt(self.config.head_dim)).exp()
            weights = powers / powers.sum()
            outputs.append(
                sum(weight * value[head // sharing] for weight, value in zip(weights, self.values, strict=True))
            )
        return torch.cat(outputs)

    def feedback(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden, "norm") if self.config.feed_normed_hidden else hidden

    def draft(self, sample: Sample, row: int, steps: int) -> list[Tensor]:
        """Prefill rows 0..row, then draft: hidden states of the steps whose input token is inside the document."""
        tokens = sample.document.tokens
        self.keys, self.values = [], []
        for position in range(row + 1):
            hidden = self.run(int(tokens[position + 1]), self.fuse(sample.aux[position]), position)
        outputs = [hidden]
        for step in range(1, min(steps, len(tokens) - 1 - row)):
            hidden = self.run(int(tokens[row + 1 + step]), self.feedback(hidden), row + step)
            outputs.append(hidden)
        return outputs


def turn(heads: Tensor, position: int, config: DraftConfig) -> Tensor:
    """Rotate-half by the angles of one position."""
    frequencies, factor = rope_frequencies(config)
    angles = torch.tensor([position * frequency for frequency in frequencies], dtype=torch.float64)
    cos, sin = angles.cos() * factor, angles.sin() * factor
    half = config.head_dim // 2
    low, high = heads[:, :half], heads[:, half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=1)


def rope_frequencies(config: DraftConfig) -> tuple[list[float], float]:
    """Radians per position of each pair, and the factor of the embedding, by the papers' formulas."""
    size, theta = config.head_dim, config.rope_theta
    plain = [theta ** (-2 * pair / size) for pair in range(size // 2)]
    scaling = config.rope_scaling or {"rope_type": "default"}
    factor = scaling.get("factor", 1.0)
    original = scaling.get("original_max_position_embeddings", config.max_position_embeddings)
    match scaling["rope_type"]:
        case "default" | "dynamic":  # dynamic changes nothing up to the length that the target was trained on
            return plain, 1.0
        case "linear":
            return [frequency / factor for frequency in plain], 1.0
        case "llama3":
            return [llama3(frequency, scaling) for frequency in plain], 1.0
        case "yarn":
            return yarn(plain, theta, scaling), 0.1 * math.log(factor) + 1.0
        case "longrope":
            stretch = config.max_position_embeddings / original
            attention = math.sqrt(1 + math.log(stretch) / math.log(original))
            # by the context length, not by the request: cached keys could not follow a change of mind
            divisors = scaling["long_factor" if stretch > 1 else "short_factor"]
            return [frequency / divisor for frequency, divisor in zip(plain, divisors, strict=True)], attention
    raise AssertionError(scaling)


def llama3(frequency: float, scaling: dict[str, Any]) -> float:
    """Low frequencies are slowed by the factor, high ones are kept, those between are blended."""
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return kept * frequency + (1 - kept) * frequency / scaling["factor"]


def yarn(plain: list[float], theta: float, scaling: dict[str, Any]) -> list[float]:
    """Pairs that turn more than 32 times over the original length are kept, fewer than once slowed, a ramp between."""
    size = 2 * len(plain)

    def pair_of(turns: float) -> float:
        length = scaling["original_max_position_embeddings"]
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_of(32)), 0), min(math.ceil(pair_of(1)), size - 1)
    slowed = [min(1.0, max(0.0, (pair - low) / (high - low or 0.001))) for pair in range(len(plain))]
    return [f * (1 - s) + f / scaling["factor"] * s for f, s in zip(plain, slowed, strict=True)]


def make_server(draft: DraftModel, embedding: Tensor) -> Server:
    """Shares the leaves of the draft, so that gradients of the oracle land in the same places."""
    weights = dict(draft.named_parameters())
    assert set(weights) == set(draft.state_dict()) - {"d2t", "t2d"}
    return Server(weights, embedding, draft.config)


ROPES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 6.0, 8.0],
                 "original_max_position_embeddings": 128},
}  # fmt: skip
FLAGS = ("fc_norm", "feed_normed_hidden", "norm_before_fc", "norm_before_residual")
CASES: dict[str, dict[str, Any]] = {
    "the default profile": {},
    **{f"flag {flag}": {flag: True} for flag in FLAGS},
    "profile eagle3.1": {"fc_norm": True, "feed_normed_hidden": True},
    "all flags at once": dict.fromkeys(FLAGS, True),
    **{f"{name} rope": {"rope_scaling": scaling} for name, scaling in ROPES.items() if scaling},
    "longrope rope at its first length": {"rope_scaling": ROPES["longrope"], "max_position_embeddings": 128},
    "another base of the rope": {"rope_theta": 500.0},
    "a key head per query head": {"num_key_value_heads": 4},
    "one key head for all query heads": {"num_key_value_heads": 1},
    "heads wider than the model": {"head_dim": 16, "num_attention_heads": 4},
    "one captured layer": {"aux_layers": (2,)},
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def config(request: pytest.FixtureRequest) -> DraftConfig:
    return tiny_config(**request.param)


def make_samples(config: DraftConfig) -> list[Sample]:
    """A document with two turns, one that is all answer from token 1 on, and a prompt without an answer."""
    head = tiny_head(config)
    shapes = ((14, [(3, 4), (9, 5)]), (7, [(1, 6)]), (3, []))
    return [supervised_sample(head, config.num_aux, n, spans, seed) for seed, (n, spans) in enumerate(shapes)]


def rows_of(sample: Sample) -> range:
    """Rows that a server can draft from: those with a next token to embed."""
    return range(sample.document.num_tokens - 1)


def fully_supervised(sample: Sample) -> Sample:
    """The same states with every token an answer, so that the unroll computes every row."""
    document = sample.document
    whole = Document(document.doc_id, document.tokens, torch.tensor([[0, document.num_tokens]]).numpy())
    rows = torch.zeros(document.num_tokens, sample.last.shape[1], dtype=torch.float64)
    return Sample(whole, sample.aux, rows, rows[:, 0].to(torch.int32), rows[:, 0].float())


def test_every_step_of_every_row_is_what_a_server_computes(config: DraftConfig):
    head = tiny_head(config)
    draft = tiny_draft(config).double()
    server = make_server(draft, head.embed)
    samples = [fully_supervised(sample) for sample in make_samples(config)]
    with torch.no_grad():
        guesses = unroll(draft, build_row(samples, STEPS, "specforge"))
        compared, start = 0, 0
        for sample in samples:
            for row in rows_of(sample):
                for step, hidden in enumerate(server.draft(sample, row, STEPS)):
                    (place,) = (guesses[step].rows == start + row).nonzero()[0].tolist()
                    torch.testing.assert_close(guesses[step].hidden[place], hidden, **TOLERANCE)
                    compared += 1
            start += sample.document.num_tokens
    # n-1 rows at step 0, and one fewer at each later step, of documents of 14, 7 and 3 tokens
    assert compared == (13 + 12 + 11 + 10) + (6 + 5 + 4 + 3) + (2 + 1)


@pytest.mark.parametrize("alignment", ["runtime", "specforge"])
def test_loss_and_gradients_are_those_of_the_server(config: DraftConfig, alignment: Any):
    """The gates are spelled out token by token; loss and gradients of the oracle come from autograd."""
    head, draft = tiny_head(config), tiny_draft(config).double()
    samples = make_samples(config)
    row = build_row(samples, STEPS, alignment)
    scales = step_scales(row.gates_TN.sum(1))
    loss = ttt_loss(draft, unroll(draft, row), row, Teacher.of(head, draft.target_ids()), LossConfig(scales)).total
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in draft.named_parameters()}
    draft.zero_grad()

    server = make_server(draft, head.embed)
    expected = sum(oracle_loss(server, sample, head.lm_head, scales, alignment) for sample in samples)
    expected.backward()
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    for name, parameter in draft.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
        torch.testing.assert_close(
            ours[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}", **TOLERANCE
        )


def oracle_loss(server: Server, sample: Sample, lm_head: Tensor, scales: Tensor, alignment: str) -> Tensor:
    """Cross-entropy of every supervised (row, step) of one document, weighted per step."""
    mask = sample.document.mask()
    places = {int(position): place for place, position in enumerate(sample.document.label_rows())}
    ids = torch.from_numpy(tiny_vocabulary(server.config).ids)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows_of(sample):
        for step, hidden in enumerate(server.draft(sample, row, STEPS)):
            if not asked(mask, row, step, alignment):
                continue
            z = lm_head @ sample.last[places[row + 1 + step]]
            if int(z.argmax()) not in ids:
                continue
            p = z[ids].softmax(0)
            q = (server.weights["lm_head.weight"] @ server.norm(hidden, "norm")).softmax(0)
            total = total - scales[step] * (p * q.log()).sum()
    return total


def asked(mask: Any, row: int, step: int, alignment: str) -> bool:
    """Whether (row, step) is supervised: the newest token and all drafted ones are in one turn, or the parity rule."""
    if alignment == "specforge":
        return row + step < len(mask) and bool(mask[row + step])
    return row + 2 + step < len(mask) and bool(mask[row + 1 : row + 3 + step].all())
