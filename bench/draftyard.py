"""Draftyard itself: the training loop's own step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cases import LEARNING_RATE, TTT_STEPS, Case
from draftyard_api.spec import Train
from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loop import Trainer
from draftyard_trainer.loss import Teacher
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.order import Step
from draftyard_trainer.parallel import World
from draftyard_trainer.target.head import TargetHead
from inputs import draft_config


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents with their states, in memory: data set and source at once."""

    all: tuple[Sample, ...]

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`."""
        return np.array([sample.document.num_tokens for sample in self.all])

    def document(self, doc_id: int) -> Document:
        """One document."""
        return self.all[doc_id].document

    def samples(self, doc_ids: Sequence[int]) -> list[Sample]:
        """Those asked for."""
        return [self.all[doc_id] for doc_id in doc_ids]

    def stream(self, rows: Sequence[Sequence[int]]) -> Generator[list[Sample], None, None]:
        """Nothing is read: they are there."""
        return (self.samples(row) for row in rows)


@dataclass(frozen=True, eq=False)
class Bench:
    """A step over all documents as one packed row, or a row for each."""

    trainer: Trainer
    rows: tuple[tuple[int, ...], ...]

    def step(self, index: int) -> dict[str, list[float]]:
        """One optimizer step. Returns means per unroll step, in both forms that peers tell."""
        report = self.trainer.step(Step(index=index, epoch=0, first_row=0, rows=self.rows, num_rows=len(self.rows)))
        ce, kl = report.sums.ce / report.sums.in_vocab, report.sums.divergence()
        return {"ce": ce.tolist(), "kl": kl.tolist()}


def read(tensors: dict[str, Tensor], head: TargetHead) -> tuple[Sample, ...]:
    """Documents with what is stored of them: final states on label rows only, and their `tok` and `lse`."""
    count = sum(name.startswith("tokens.") for name in tensors)
    found = []
    for number in range(count):
        document = Document(number, tensors[f"tokens.{number}"].numpy(), tensors[f"spans.{number}"].numpy())
        last = tensors[f"last.{number}"]
        last = last[torch.from_numpy(document.label_rows()).to(last.device)]
        made = head.tok_lse(last)
        found.append(Sample(document, tensors[f"aux.{number}"], last, made.tok, made.lse))
    return tuple(found)


def build(case: Case, tensors: dict[str, Tensor], packed: bool = True) -> Bench:
    """A trainer of the case, on the device and in the dtype of the tensors."""
    like = tensors["head"]
    draft = DraftModel(draft_config(case.shape))
    draft.load_state_dict({name[7:]: tensor for name, tensor in tensors.items() if name.startswith("weight.")})
    draft.to(like.device, like.dtype)
    draft.attach_embedding(tensors["embedding"])
    head = TargetHead(like, tensors["embedding"], like.new_ones(case.shape.hidden_size), {})
    documents = Documents(read(tensors, head))
    tokens = int(documents.lengths.sum())
    config = Train(
        ttt_steps=TTT_STEPS, row_tokens=max(tokens, 16), tokens_per_batch=max(tokens, 16),
        loss_mask_alignment="specforge", learning_rate=LEARNING_RATE,
    )  # fmt: skip
    optimizer = Optimizer(draft.trained_parameters(), config, 1000)
    teacher = Teacher.of(head, draft.target_ids())
    trainer = Trainer(draft, optimizer, documents, documents, teacher, World(0, 1, like.device), config)  # type: ignore[arg-type]
    ids = range(len(documents.all))
    return Bench(trainer, (tuple(ids),) if packed else tuple((doc_id,) for doc_id in ids))
