"""Drafts of the comparison: our own training, a peer's weights as an export, and what `evaluate` predicts of one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from cases import Shape
from draftyard import Documents
from draftyard_api.spec import Draft, Train
from draftyard_trainer.chain import count_rounds, propose, summarise, unroll_logits
from draftyard_trainer.conformance import check
from draftyard_trainer.conformance_rules import TargetFacts, TextHashes
from draftyard_trainer.draft.config import DraftConfig, derive
from draftyard_trainer.draft.files import assemble_draft, read_draft
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.export import ENGINES, refuse_errors, write_files
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loop import Trainer
from draftyard_trainer.loss import LossConfig, Teacher, ttt_loss
from draftyard_trainer.metrics import MetricSums
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.order import RowPlan, Step, epoch_steps
from draftyard_trainer.parallel import World
from draftyard_trainer.probe import record_probe
from draftyard_trainer.rows import build_row
from draftyard_trainer.ttt import unroll
from on_policy import AUX_LAYERS, OnPolicy
from recipe import TARGET_FILE, Plan, Recipe, plan_file, start_file

DTYPE = "bfloat16"
"""Of every export, as the target's."""
AGREEMENT = 0.99
"""Share of a peer's own choices that its export must make too; the rest may be ties."""
DONE = "trained.json"
THEIR_LAYER, OUR_LAYER = "layers.0.", "midlayer."
"""One peer has a list of layers; the other has the names of an export."""


def config_of(data: OnPolicy) -> DraftConfig:
    """The draft that all train."""
    size = data.vocabulary.size
    return derive(data.head.config, Draft(), size, AUX_LAYERS)


def first_draft(data: OnPolicy, config: DraftConfig, seed: int) -> DraftModel:
    """A draft with the first weights of a seed."""
    draft = DraftModel(config)
    draft.set_vocabulary(data.vocabulary)
    draft.initialise(seed)
    draft.attach_embedding(data.head.embed)
    return draft


def plan_steps(lengths: np.ndarray, recipe: Recipe, seed: int) -> list[Step]:
    """As many steps as wanted, one packed row each, out of as many epochs as it takes."""
    plan = RowPlan(np.arange(len(lengths)), lengths, recipe.row_tokens, seed)
    steps: list[Step] = []
    epoch = 0
    while len(steps) < recipe.steps:
        steps += epoch_steps(plan, epoch, 1, len(steps))
        epoch += 1
    return steps[: recipe.steps]


def write_inputs(folder: Path, data: OnPolicy, states: Path, recipe: Recipe, seeds: Sequence[int]) -> None:
    """What peers start from: the target's tables, and for each seed its first weights and its rows."""
    config = config_of(data)
    tables = {"embedding": data.head.embed, "head": data.head.lm_head, "norm": data.head.norm}
    save_file({name: tensor.float().clone() for name, tensor in tables.items()}, folder / TARGET_FILE)
    lengths = Documents(data.trained).lengths
    for seed in seeds:
        save_file(first_draft(data, config, seed).state_dict(), start_file(folder, seed))
        steps = tuple(step.rows[0] for step in plan_steps(lengths, recipe, seed))
        plan = Plan(recipe, shape_of(config), str(states.resolve()), steps, probe=len(data.trained))
        plan.write(plan_file(folder, seed))


def shape_of(config: DraftConfig) -> Shape:
    """The draft in the words that peers read."""
    return Shape(
        config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size,
        config.vocab_size, config.draft_vocab_size, config.head_dim, config.rms_norm_eps, config.rope_theta,
    )  # fmt: skip


def train(data: OnPolicy, recipe: Recipe, seed: int, objective: str) -> tuple[DraftModel, float]:
    """Our own training: the product's step, optimizer, schedule and order. Returns the draft and processor seconds."""
    draft = first_draft(data, config_of(data), seed)
    documents = Documents(data.trained)
    wanted = Train(
        ttt_steps=recipe.ttt_steps, row_tokens=recipe.row_tokens, tokens_per_batch=recipe.row_tokens, seed=seed,
        learning_rate=recipe.learning_rate, objective=objective,
    )  # fmt: skip
    trainer = Trainer(
        draft, Optimizer(draft.trained_parameters(), wanted, recipe.steps), documents, documents,  # type: ignore[arg-type]
        Teacher.of(data.head, draft.target_ids()), World(0, 1, torch.device("cpu")), wanted,
    )  # fmt: skip
    started = time.process_time()
    for step in track(plan_steps(documents.lengths, recipe, seed), description=f"{objective} {seed}"):
        trainer.step(step)
    return draft, time.process_time() - started


def portable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A peer's tensors under the names of an export."""
    return {
        OUR_LAYER + name.removeprefix(THEIR_LAYER) if name.startswith(THEIR_LAYER) else name: tensor
        for name, tensor in state.items()
    }


def assemble(state: Mapping[str, Tensor], data: OnPolicy, config: DraftConfig) -> DraftModel:
    """A peer's draft as ours. Raises ValueError for a tensor that is missing, unknown, or of another shape."""
    draft = assemble_draft(config, portable(state), torch.float32)
    draft.attach_embedding(data.head.embed)
    if not np.array_equal(draft.target_ids().numpy(), data.vocabulary.ids):
        raise ValueError("d2t: not the draft vocabulary that all were given")
    return draft


def agreement(draft: DraftModel, sample: Sample, choices_TN: Tensor) -> float:
    """Share of a peer's own choices `[T, n - 1]` on the answer's rows that the draft makes too, true tokens fed."""
    tokens, steps = sample.document.num_tokens, len(choices_TN)
    rows = np.arange(int(sample.document.spans[0, 0]) - 1, tokens - 1 - steps)
    own = unroll_logits(draft, sample, rows, steps, forced=True)
    equal = [
        logits.argmax(-1) == theirs[torch.from_numpy(rows)] for logits, theirs in zip(own, choices_TN, strict=True)
    ]
    return float(torch.stack(equal).double().mean())


def export(folder: Path, draft: DraftModel, data: OnPolicy, ttt_steps: int) -> list[str]:
    """Write the portable export. Returns warnings; raises Failure(NOT_CONFORMANT) for a broken rule."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_files(folder, draft, DTYPE)
    probe = record_probe(draft, data.head.embed, data.held_out[0], ttt_steps, DTYPE)
    findings = check(folder, facts_of(data, draft.config), probe)
    refuse_errors(findings)
    return [f"rule {finding.rule}: {finding.message}" for finding in findings]


def facts_of(data: OnPolicy, config: DraftConfig) -> TargetFacts:
    """What the rules hold an export against. Nobody changes the target's tokenizer between training and serving."""
    text = TextHashes("", "")
    return TargetFacts(
        profile="eagle3", vocab_size=len(data.head.embed),
        max_position_embeddings=int(data.head.config["max_position_embeddings"]), rope_theta=config.rope_theta,
        rope_scaling=config.rope_scaling, aux_layers=AUX_LAYERS, marker_ids=(2,), dtype=DTYPE, captured=text,
        served=text, engines=ENGINES["eagle3"],
    )  # fmt: skip


def predict(folder: Path, data: OnPolicy, recipe: Recipe) -> dict[str, Any]:
    """What `evaluate` says of an export: the chain over the target's held-out answers, whoever trained it."""
    draft = read_draft(folder, torch.float32).model
    draft.attach_embedding(data.head.embed)
    counts = [
        count_rounds(
            sample.document.tokens,
            int(sample.document.spans[0, 0]),
            propose(draft, sample, recipe.draft_tokens, forced=False),
        )
        for sample in data.held_out
    ]
    acceptance = summarise(counts)
    return {**asdict(acceptance), "length": acceptance.length, "sampled": sampled(draft, data, recipe)}


@torch.no_grad()
def sampled(draft: DraftModel, data: OnPolicy, recipe: Recipe) -> list[float]:
    """Probability that a proposal of each step is accepted at temperature 1, true tokens fed."""
    sums = MetricSums.zeros(recipe.draft_tokens)
    unit = LossConfig(torch.ones(recipe.draft_tokens, dtype=torch.float64))
    teacher = Teacher.of(data.head, draft.target_ids())
    for sample in data.held_out:
        row = build_row([sample], recipe.draft_tokens)
        sums = sums + ttt_loss(draft, unroll(draft, row), row, teacher, unit).sums
    return [float(share) for share in sums.acceptance()]


def keep(folder: Path, result: Mapping[str, Any]) -> None:
    """Write what is told of a draft beside it: with this file a training is done."""
    staged = folder / f"{DONE}.tmp"
    staged.write_text(json.dumps(result, indent=1))
    staged.replace(folder / DONE)
