"""One optimizer step, and one look at the held-out documents: what is computed, in which order, on which process."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from draftyard_api.spec import Train
from draftyard_trainer.checkpoint import Score
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loss import LossConfig, Teacher, step_scales, ttt_loss
from draftyard_trainer.metrics import MetricSums
from draftyard_trainer.on_path import OnPath, PathRule, draws
from draftyard_trainer.optim import Optimizer, Update
from draftyard_trainer.order import RowPlan, Step, splitmix64
from draftyard_trainer.parallel import World
from draftyard_trainer.rows import PackedRow, build_row, gate_counts
from draftyard_trainer.ttt import unroll

if TYPE_CHECKING:
    from draftyard_trainer.hidden_states.source import Source

HELD_OUT_DOCUMENTS = 512
"""Enough for two digits of the acceptance length."""


@dataclass(frozen=True)
class Consumed:
    """Documents that processes trained on, as each of them counts what it was handed: not what was planned."""

    documents: int = 0
    hash: int = 0
    """Sum of 32 bits of `splitmix64(doc_id)`: other documents, or one twice, and it is another number."""

    @classmethod
    def of(cls, doc_ids: Sequence[int]) -> Consumed:
        """Of some documents."""
        hashes = splitmix64(np.array(doc_ids, dtype=np.uint64)) >> np.uint64(32)
        return cls(len(doc_ids), int(hashes.sum()))

    def __add__(self, other: Consumed) -> Consumed:
        return Consumed(self.documents + other.documents, self.hash + other.hash)

    def flat(self) -> torch.Tensor:
        """`[2]`, fp64: exact up to two million documents per step."""
        return torch.tensor([self.documents, self.hash], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class StepReport:
    """What one optimizer step was, over all processes."""

    update: Update
    sums: MetricSums
    trained: Consumed
    tokens: int
    waited: float
    """Seconds in which this process waited for hidden states."""


@dataclass(frozen=True, eq=False)
class Trainer:
    """The parts of one training, for as long as it lasts."""

    draft: DraftModel
    optimizer: Optimizer
    source: Source
    dataset: PreparedDataset
    teacher: Teacher
    world: World
    config: Train
    path: PathRule = field(default_factory=PathRule)
    """Of an unroll along the path."""

    def step(self, step: Step, read: Iterator[list[Sample]] | None = None) -> StepReport:
        """Gradients of this process's rows, summed over all processes, then one update.

        The normalisers come from the masks of all rows of the step, which every process knows: nothing is sent.
        `read` yields the samples of this and later steps; without it nothing is read ahead of the step.
        """
        share = self.share(step)
        config = LossConfig(
            step_scales(self.count_supervised(step)),
            objective=self.config.objective,
            keeps_out_of_vocab=self.config.out_of_vocab == "keep",
        )
        sums, trained = MetricSums.zeros(self.config.ttt_steps), Consumed()
        waited = 0.0
        arriving = self.source.stream(share) if read is None else read
        for _ in share:
            started = time.perf_counter()
            samples = next(arriving)
            waited += time.perf_counter() - started
            row = build_row(samples, self.config.ttt_steps, self.config.loss_mask_alignment).to(self.world.device)
            guesses = unroll(self.draft, row, self.goes_on(step, samples, row))
            loss = ttt_loss(self.draft, guesses, row, self.teacher, config)
            loss.total.backward()
            self.optimizer.collect()
            sums = sums + loss.sums.to("cpu")
            trained = trained + Consumed.of([sample.document.doc_id for sample in samples])
        self.world.sum_gradients(self.optimizer.gradients())
        update = self.optimizer.step(step.index)
        tokens = int(self.dataset.lengths[[doc_id for row in step.rows for doc_id in row]].sum())
        total = self.world.sum(torch.cat([sums.flat(), trained.flat()]))
        documents, hashed = total[-2:].tolist()
        return StepReport(update, sums.from_flat(total[:-2]), Consumed(int(documents), int(hashed)), tokens, waited)

    def goes_on(self, step: Step, samples: Sequence[Sample], row: PackedRow) -> OnPath | None:
        """What leaves the unroll early: nothing, unless the spec asks for the path of a server."""
        if self.config.unroll == "full":
            return None
        documents = [sample.document for sample in samples]
        draws_TN = draws(documents, self.config.seed, step.epoch, self.config.ttt_steps).to(self.world.device)
        return OnPath(self.draft, row, self.teacher, draws_TN, self.path)

    def share(self, step: Step) -> tuple[tuple[int, ...], ...]:
        """Rows of a step that are up to this process."""
        return step.share(self.world.rank, self.world.size)

    def read_ahead(self, steps: Sequence[Step]) -> Generator[list[Sample], None, None]:
        """Samples of this process's rows of all `steps`: with a row per step, only reading across steps is ahead."""
        return self.source.stream([row for step in steps for row in self.share(step)])

    def count_supervised(self, step: Step) -> torch.Tensor:
        """`[T]`: supervised pairs of the whole optimizer step."""
        counts = torch.zeros(self.config.ttt_steps, dtype=torch.int64)
        for row in step.rows:
            for doc_id in row:
                document = self.dataset.document(doc_id)
                counts += gate_counts(document, self.config.ttt_steps, self.config.loss_mask_alignment)
        return counts

    @torch.no_grad()
    def score(self, step: int, draft_tokens: int, row_tokens: int) -> Score:
        """Simulated acceptance on held-out documents; it leaves the weights and the mode as they were."""
        doc_ids = self.source.available(self.dataset.held_out_ids)[:HELD_OUT_DOCUMENTS]
        plan = RowPlan(doc_ids, self.dataset.lengths[doc_ids], row_tokens, seed=0)
        sums = MetricSums.zeros(self.config.ttt_steps)
        unit = LossConfig(torch.ones(self.config.ttt_steps, dtype=torch.float64))
        for samples in self.source.stream(plan.rows(epoch=0)[self.world.rank :: self.world.size]):
            row = build_row(samples, self.config.ttt_steps, self.config.loss_mask_alignment).to(self.world.device)
            sums = sums + ttt_loss(self.draft, unroll(self.draft, row), row, self.teacher, unit).sums.to("cpu")
        total = sums.from_flat(self.world.sum(sums.flat()))
        positions = tuple(total.prefix_accuracy()[:draft_tokens].tolist())
        return Score(step=step, tau_sim=total.tau_sim(draft_tokens), per_position=positions, documents=len(doc_ids))
