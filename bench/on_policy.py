"""Conversations whose answers are the target's own, with its hidden states: SmolLM2 answers prompts of ShareGPT.

Made once into a folder: answers are kept after every batch, states in one safetensors file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from draftyard_api.names import Stage, train_path
from draftyard_api.spec import Data, DataSource, Draft, Export, FileSource, Target, Train
from draftyard_api.task import PrepareTask
from draftyard_trainer import answers
from draftyard_trainer.answers import Answer, Answers, answer_prompts
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.data.vocabulary import DraftVocabulary, build_vocabulary
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.target.location import TargetFiles, locate

AUX_LAYERS = (2, 15, 27)
LONGEST_PROMPT, REPLY = 128, 128
TRAINED, HELD_OUT = 512, 64
DRAFT_VOCABULARY = 8192
BATCH = 64
"""Prompts that are answered together: these are short enough."""
STATES, WORKSPACE, RUN = "states.safetensors", "workspace", "on-policy"


@dataclass(frozen=True)
class Scale:
    """How much of it there is."""

    trained: int = TRAINED
    held_out: int = HELD_OUT
    reply: int = REPLY
    """Tokens of an answer at most."""


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """Documents with their states: the last `num_held_out` are never trained on."""

    samples: tuple[Sample, ...]
    vocabulary: DraftVocabulary
    head: TargetHead
    num_held_out: int = HELD_OUT

    @property
    def trained(self) -> tuple[Sample, ...]:
        """What drafts learn from."""
        return self.samples[: -self.num_held_out]

    @property
    def held_out(self) -> tuple[Sample, ...]:
        """What they are judged on."""
        return self.samples[-self.num_held_out :]


def make(folder: Path, model: Path, conversations: Path, scale: Scale | None = None) -> None:
    """Answer and capture what is not there yet."""
    if (folder / STATES).exists():
        return
    files = locate(Target(model=f"file://{model.resolve()}"))
    target = CapturedTarget.load(files, "bfloat16", AUX_LAYERS)
    given = answered(folder, target, files, conversations, scale or Scale())
    tensors = {}
    for place, answer in enumerate(given):
        (sample,) = target.capture([answer.document()])
        tensors |= {
            f"tokens.{place}": torch.from_numpy(sample.document.tokens), f"aux.{place}": sample.aux,
            f"spans.{place}": torch.from_numpy(sample.document.spans), f"last.{place}": sample.last,
            f"tok.{place}": sample.tok, f"lse.{place}": sample.lse,
        }  # fmt: skip
    staged = folder / f"{STATES}.tmp"
    save_file(tensors, staged)
    staged.replace(folder / STATES)


def answered(
    folder: Path, target: CapturedTarget, files: TargetFiles, conversations: Path, scale: Scale
) -> tuple[Answer, ...]:
    """Short prompts of real conversations, in their order, and what the target says to them."""
    store = LocalStore(folder / WORKSPACE)
    source = DataSource(file=FileSource(uri=f"file://{conversations.resolve()}"))
    task = PrepareTask(
        run=RUN, uid="bench", workspace=store.uri, mode="Offline", frozen_sha256="0" * 64, evaluates=False,
        target=Target(model=f"file://{files.path.resolve()}"), draft=Draft(vocab_size=DRAFT_VOCABULARY),
        data=Data(source=source, max_samples=4000, max_length=1024, eval_fraction=0.0),
        train=Train(row_tokens=1024, tokens_per_batch=1024), export=Export(),
    )  # fmt: skip
    prepared = prepare(task, Reporter(Stage.PREPARE)).prepared
    assert prepared is not None
    dataset = PreparedDataset.open(store, prepared.prepared)
    prompts = {}
    for doc_id in range(len(dataset.lengths)):
        prompt = dataset.prompt(doc_id)
        if 0 < len(prompt) <= LONGEST_PROMPT and len(prompts) < scale.trained + scale.held_out:
            prompts[doc_id] = prompt
    if len(prompts) < scale.trained + scale.held_out:
        raise SystemExit(f"{conversations}: {len(prompts)} short prompts; {scale.trained + scale.held_out} are needed")
    answers.BATCH = BATCH
    wanted = Answers(target=files.identity, dtype="bfloat16", tokens_sha256=dataset.manifest.tokens_sha256,
                     stop_ids=dataset.manifest.stop_ids, max_new_tokens=scale.reply)  # fmt: skip
    return answer_prompts(store, RUN, wanted, prompts, target, Reporter(Stage.EVALUATE))


def load(folder: Path, model: Path, scale: Scale | None = None) -> OnPolicy:
    """What `make` made."""
    scale = scale or Scale()
    files = locate(Target(model=f"file://{model.resolve()}"))
    head = TargetHead.from_folder(files.path, files.config).to(torch.device("cpu"), torch.float32)
    samples = []
    with safe_open(folder / STATES, "pt") as file:
        for place in range(scale.trained + scale.held_out):
            tokens, spans, *states = (
                file.get_tensor(f"{name}.{place}") for name in ("tokens", "spans", "aux", "last", "tok", "lse")
            )
            samples.append(Sample(Document(place, tokens.numpy(), spans.numpy()), *states))
    counts = np.zeros(len(head.lm_head), dtype=np.int64)
    for sample in samples[: scale.trained]:
        np.add.at(counts, sample.document.tokens[sample.document.mask()], 1)
    return OnPolicy(tuple(samples), build_vocabulary(counts, DRAFT_VOCABULARY, np.array([2])), head, scale.held_out)


def stop_ids(folder: Path) -> list[int]:
    """Tokens that end an answer."""
    found = json.loads((folder / WORKSPACE / train_path(RUN) / answers.ANSWERS).read_text())
    return [int(token) for token in found["stopIds"]]
