"""Worlds for tests of stored states: documents of chosen lengths, equal samples, a store that fails when told to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from draftyard_api.names import MANIFEST, prepared_path
from draftyard_api.progress import DatasetCounts
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.manifest import DataKey, MaskReport, PreparedManifest
from draftyard_trainer.data.prepared import PreparedDataset, PreparedWriter, sealed
from draftyard_trainer.data.tokens import Tokenised
from draftyard_trainer.data.vocabulary import build_vocabulary
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.store import Store

PREPARED = "tiny"


def tiny_document(doc_id: int, length: int, vocab_size: int = 384) -> Document:
    """Seeded tokens, one answer that starts after a third of them and ends one before the end."""
    tokens = np.random.default_rng(doc_id).integers(3, vocab_size, length)
    start = length // 3
    return Document(doc_id, tokens, np.array([[start, max(length - start - 1, 1)]], dtype=np.int64))


def prepare_documents(
    store: Store, documents: Sequence[Document], vocab_size: int = 384, folder: str = PREPARED
) -> PreparedDataset:
    """Write documents as `prepare` does, every fifth held out, and open them."""
    with store.create_folder(prepared_path(folder)) as staged:
        with PreparedWriter(staged, vocab_size) as writer:
            for row, document in enumerate(documents):
                writer.add(row, Tokenised(document.tokens, document.spans, False, 0), row % 5 == 4)
        (staged / MANIFEST).write_bytes(sealed(describe(writer, vocab_size)))
    return PreparedDataset.open(store, folder)


def describe(writer: PreparedWriter, vocab_size: int) -> PreparedManifest:
    """A manifest of what was written; it also writes the draft vocabulary."""
    vocabulary = build_vocabulary(writer.train_counts, vocab_size // 2, np.array([2]))
    return PreparedManifest(
        key=DataKey(
            data_sha256="0" * 64, tokenizer_sha256="1" * 64, template_sha256="2" * 64, template_kwargs={},
            stop_ids=(2,), keep_ids=(), max_length=512, max_samples=None, eval_fraction="0.2", split_turns=False,
            vocab_size=vocabulary.size, target_vocab_size=vocab_size,
        ),
        counts=DatasetCounts(
            rows=writer.documents, documents=writer.documents, held_out_documents=writer.held_out_documents,
            train_documents=writer.documents - writer.held_out_documents, skipped={}, truncated_documents=0,
            tokens=writer.tokens, train_tokens=writer.train_tokens, loss_tokens=writer.loss_tokens,
            label_rows=writer.label_rows,
        ),
        mask=MaskReport(sources={}, turns=0, turns_not_located=0, turns_without_stop=0),
        bos_id=None,
        vocab_size=vocabulary.size,
        vocab_coverage=1.0,
        vocab_filled=vocabulary.num_filled,
        tokens_sha256=writer.tokens_sha256(),
        files_sha256=writer.files_sha256(),
        vocabulary_sha256=writer.write_vocabulary(vocabulary),
        bytes=0,
    )  # fmt: skip


def assert_equal(one: Sample, other: Sample) -> None:
    """Equal in every bit."""
    assert one.document.doc_id == other.document.doc_id
    assert one.document.tokens.tolist() == other.document.tokens.tolist()
    assert one.document.spans.tolist() == other.document.spans.tolist()
    for name in ("aux", "last", "tok", "lse"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


class PulledPlugError(Exception):
    """What a failing store raises: nothing after it may run, as in a process that is gone."""


class FailingStore(LocalStore):
    """A directory whose k-th writing operation does not happen, nor any after it.

    A write has two moments to die in: before it begins, and when all is written but nothing is visible yet.
    """

    def __init__(self, root: Path, survives: int) -> None:
        super().__init__(root)
        self.operations = 0
        self._survives = survives

    def _operate(self) -> None:
        self.operations += 1
        if self.operations > self._survives:
            raise PulledPlugError(f"operation {self.operations}")

    @contextmanager
    def create(self, name: str) -> Any:
        """Write a file, if there is still power before and after its content is written."""
        self._operate()
        with super().create(name) as file:
            sink: BinaryIO = file
            yield sink
            self._operate()

    def delete(self, name: str) -> None:
        """Remove a file, if there is still power."""
        self._operate()
        super().delete(name)
