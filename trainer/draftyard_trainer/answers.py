"""The target's own answers to prompts: made once per target and data, whatever draft is judged.

`train/<run>/answers.json`, and `answers-<set>.json` for other sets than the held-out documents, is written after every
batch, so a killed `evaluate` loses one batch; a check that serves the draft in a real engine asks the same prompts by
their token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ValidationError

from draftyard_api.names import train_path
from draftyard_api.schema import Model, PromptSet
from draftyard_trainer.data.document import Document, Ids
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.order import splitmix64
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.sampled import Draws, uniforms
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import CapturedTarget

ANSWERS = "answers.json"
BATCH = 16
"""Prompts that are answered together: on two CPU cores six times as fast as one by one."""


@dataclass(frozen=True)
class Prompts:
    """Held-out documents whose beginnings are asked, and how many could not be."""

    doc_ids: tuple[int, ...]
    skipped: dict[str, int]


class Answer(Model):
    """One prompt, and what the target says to it."""

    doc_id: int
    """Held-out document that begins with the prompt; of other sets the row, times their turns, plus the turn."""
    prompt: tuple[int, ...]
    """Token ids up to the answer."""
    reply: tuple[int, ...]
    """Token ids, with the stop token unless the limit came first."""

    def document(self) -> Document:
        """Prompt and reply as a document whose supervised span is the reply."""
        tokens = np.array(self.prompt + self.reply, dtype=np.int64)
        return Document(self.doc_id, tokens, np.array([[len(self.prompt), len(self.reply)]], dtype=np.int64))


class Answers(Model):
    """The file: answers, and everything that decides them."""

    target: str
    """Commit or content hash of the target."""
    dtype: str
    """Its precision."""
    tokens_sha256: str
    """Of the prepared documents, or of what decides the prompts of another set."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    max_new_tokens: int
    """Tokens of an answer at most."""
    prompt_set: PromptSet = "heldOut"
    """What is asked."""
    temperature: int = 0
    """0: the most likely answers. 1: drawn ones."""
    seed: int = 0
    """With temperature 1."""
    answers: tuple[Answer, ...] = ()
    """In the order in which prompts were chosen."""

    @property
    def file_name(self) -> str:
        """Where they are kept: each set has a file of its own."""
        return ANSWERS if self.prompt_set == "heldOut" else f"answers-{self.prompt_set}.json"

    def decided_alike(self, other: Answers) -> bool:
        """Whether both files would hold the same answer to the same prompt."""
        return self.model_copy(update={"answers": ()}) == other.model_copy(update={"answers": ()})


def choose_prompts(dataset: PreparedDataset, max_prompts: int, max_new_tokens: int, max_positions: int) -> Prompts:
    """Held-out documents in the order of the hash of their ids, the first `max_prompts` that leave room for an answer.

    A prompt is skipped when it is empty, or when prompt and a full answer would not fit into the target's positions:
    a shorter limit for some prompts would make their replies end where no server would end them.
    """
    held_out = dataset.held_out_ids
    order = held_out[np.argsort(splitmix64(held_out.astype(np.uint64)), kind="stable")]
    chosen: list[int] = []
    skipped = {"emptyPrompt": 0, "tooLong": 0}
    for doc_id in order.tolist():
        length = len(dataset.prompt(doc_id))
        if length == 0:
            skipped["emptyPrompt"] += 1
        elif length + max_new_tokens > max_positions:
            skipped["tooLong"] += 1
        else:
            chosen.append(doc_id)
        # Counting stops here too: later documents were not looked at.
        if len(chosen) == max_prompts:
            break
    return Prompts(tuple(chosen), {reason: count for reason, count in skipped.items() if count})


def answer_prompts(
    store: Store, run: str, wanted: Answers, prompts: Mapping[int, Ids], target: CapturedTarget, reporter: Reporter
) -> tuple[Answer, ...]:
    """The target's reply to every prompt, in the order of `prompts`, which is by document id; known ones are kept."""
    name = f"{train_path(run)}/{wanted.file_name}"
    known = {
        answer.doc_id: answer
        for answer in read_answers(store, name, wanted)
        # A second question holds the answer to the first one.
        if answer.doc_id in prompts and answer.prompt == tuple(prompts[answer.doc_id].tolist())
    }
    # Neighbours in length share a batch, so that little of it is padding.
    open_ids = sorted(set(prompts) - set(known), key=lambda doc_id: (len(prompts[doc_id]), doc_id))
    reporter.begin("answering", "prompts", total=len(prompts), done=len(known))
    for start in range(0, len(open_ids), BATCH):
        batch = open_ids[start : start + BATCH]
        # In a near-tie of two tokens the batch can decide which one is said: either is an answer of the target, and the
        # one that is kept is used for everything.
        replies = ask(target, wanted, {doc_id: prompts[doc_id] for doc_id in batch})
        for doc_id, reply in zip(batch, replies, strict=True):
            known[doc_id] = Answer(doc_id=doc_id, prompt=tuple(prompts[doc_id].tolist()), reply=tuple(reply.tolist()))
        # Before the stop is looked at: what was answered is kept.
        write_answers(store, name, wanted, [known[doc_id] for doc_id in prompts if doc_id in known])
        reporter.advance(len(batch))
    return tuple(known[doc_id] for doc_id in prompts)


def ask(target: CapturedTarget, wanted: Answers, prompts: Mapping[int, Ids]) -> list[Ids]:
    """One batch of replies: the most likely ones, or drawn ones that are the same in any batch."""
    asked = list(prompts.values())
    if wanted.temperature == 0:
        return target.greedy(asked, wanted.max_new_tokens, wanted.stop_ids)
    numbers = [
        uniforms(wanted.seed, wanted.prompt_set, doc_id, Draws.REPLY, wanted.max_new_tokens) for doc_id in prompts
    ]
    return target.sampled(asked, wanted.stop_ids, torch.from_numpy(np.stack(numbers)))


def read_answers(store: Store, name: str, wanted: Answers) -> tuple[Answer, ...]:
    """Answers of an earlier attempt; none when there are none, or when something else decided them."""
    try:
        found = Answers.model_validate_json(store.read(name))
    except (FileNotFoundError, ValidationError):
        return ()
    # Another dtype or limit gives other replies, and mixing both would be seen by nobody.
    return found.answers if found.decided_alike(wanted) else ()


def write_answers(store: Store, name: str, wanted: Answers, answers: Sequence[Answer]) -> None:
    """Replace the file."""
    content = wanted.model_copy(update={"answers": tuple(answers)}).model_dump_json(by_alias=True)
    store.publish(name, content.encode())
