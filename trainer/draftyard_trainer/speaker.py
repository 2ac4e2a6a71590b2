"""The target that answers by itself: questions in batches, replies as messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from draftyard_trainer.data.conversation import Message
from draftyard_trainer.data.document import Ids
from draftyard_trainer.dialogue import Question, Reply
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.sampling import Choice, draw_keys

BATCH = {"cpu": 16, "cuda": 64}
"""Questions that are answered together at most."""
BATCH_TOKENS = {"cpu": 32768, "cuda": 131072}
"""Prompts, padded, and answers of a batch at most: what keys and values need room for."""
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, eq=False)
class TargetSpeaker:
    """The target in this process."""

    target: CapturedTarget
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    temperature: float
    seed: int
    look: Callable[[], None]
    """Called before every token; may end the stage."""
    batch: int | None = None
    """Questions that are answered together; by default as many as the device likes."""

    @property
    def device(self) -> str:
        """The GPU's name, or `cpu`."""
        device = self.target.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def answer(self, questions: Sequence[Question]) -> list[Reply | None]:
        """A reply to each question; None where logits are not finite."""
        replies: dict[int, Reply | None] = {}
        kind = self.target.device.type
        for places in batches(questions, self.batch or BATCH[kind], BATCH_TOKENS[kind]):
            chosen = [questions[place] for place in places]
            said = self._say(chosen)
            for place, question, tokens in zip(places, chosen, said, strict=True):
                replies[place] = self._reply(tokens, question.limit)
        return [replies[place] for place in range(len(questions))]

    def _say(self, questions: Sequence[Question]) -> list[Ids]:
        """Tokens of the replies; out of GPU memory, one half after the other."""
        keys = draw_keys(self.seed, [each.row for each in questions], [each.turn for each in questions])
        try:
            return self.target.say(
                [question.prompt for question in questions],
                [question.limit for question in questions],
                self.stop_ids,
                Choice(self.temperature, keys),
                self.look,
            )
        except torch.OutOfMemoryError:
            if len(questions) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(questions) // 2
        return self._say(questions[:half]) + self._say(questions[half:])

    def _reply(self, tokens: Ids, limit: int) -> Reply | None:
        """What was said as a message, without the stop token: the chat template writes that again."""
        if len(tokens) and tokens[-1] < 0:
            return None
        is_unfinished = len(tokens) == limit and tokens[-1] not in self.stop_ids
        own = tokens if is_unfinished else tokens[:-1]
        text = str(self.tokenizer.decode(own.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if is_unfinished:
            # the limit may cut a character in two
            text = text.rstrip(REPLACEMENT)
        again = self.tokenizer.encode(text, add_special_tokens=False)
        message = Message("assistant", text, is_unfinished=is_unfinished)
        return Reply(message, len(tokens), is_respelled=not np.array_equal(again, own))


def batches(questions: Sequence[Question], most: int, tokens: int) -> Iterator[list[int]]:
    """Places of questions of similar length, longest first: the largest batch comes first, and shows what fits."""
    order = sorted(range(len(questions)), key=lambda place: (-len(questions[place].prompt), place))
    batch: list[int] = []
    width = 0
    for place in order:
        needed = len(questions[place].prompt) + questions[place].limit
        if batch and (len(batch) == most or (len(batch) + 1) * max(width, needed) > tokens):
            yield batch
            batch, width = [], 0
        width = max(width, needed)
        batch.append(place)
    if batch:
        yield batch
