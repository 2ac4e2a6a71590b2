"""What the target is asked, as token ids: held-out documents up to their first answer, and sets of questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.schema import PromptSet
from draftyard_api.task import EvaluateTask
from draftyard_trainer.answers import Answer, choose_prompts
from draftyard_trainer.data.built_in import known_format
from draftyard_trainer.data.conversation import Conversation, Message
from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.files import BadRow
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.data.questions import Question, QuestionSource, digest, read_question
from draftyard_trainer.data.template import ChatTemplate, RenderError
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.order import splitmix64
from draftyard_trainer.target.location import TargetFiles


@dataclass(frozen=True)
class Limits:
    """What prompts and answers must fit into."""

    max_prompts: int
    """Prompts of a set; a question with several turns is one of them."""
    max_new_tokens: int
    max_positions: int
    """Of the target."""

    def leaves_room(self, prompt: Ids) -> bool:
        """Whether a full answer fits behind a prompt: a shorter one would end where no server would end it."""
        return len(prompt) + self.max_new_tokens <= self.max_positions


@dataclass(frozen=True, eq=False)
class Words:
    """The target's tokenizer and chat template."""

    template: ChatTemplate

    def prompt(self, question: Question, replies: Sequence[Sequence[int]] = ()) -> Ids | None:
        """What the target reads before it answers: the opening, then each reply with the question that follows it.

        None where the template does not take it.
        """
        messages = list(question.opening)
        for reply, asked in zip(replies, question.further, strict=False):
            said = str(self.template.tokenizer.decode(list(reply), skip_special_tokens=True))
            messages += [Message("assistant", said), Message("user", asked)]
        try:
            text = self.template.prompt(Conversation("", tuple(messages), question.tools))
        except RenderError:
            return None
        # The template has written its own bos, if it has one.
        ids = self.template.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of one set, by the id of their answers: the number of the document, or of the row times turns."""

    name: PromptSet
    first: Mapping[int, Ids]
    """What is asked first."""
    skipped: Mapping[str, int]
    """Documents or rows that gave no prompt, by reason."""
    source_sha256: str
    """Of what decides the prompts."""
    limits: Limits
    questions: Mapping[int, Question] = field(default_factory=dict)
    """Those behind whose answers more is asked."""
    words: Words | None = None
    """What makes tokens of what is asked later."""

    def next_turn(self, turn: int, answers: Sequence[Answer]) -> dict[int, Ids]:
        """What is asked after `turn` answers, by the id of the new answer; nothing where nothing fits any more."""
        replies = {answer.doc_id: answer.reply for answer in answers}
        found = {}
        for first, question in self.questions.items():
            before = [replies[first + place] for place in range(turn) if first + place in replies]
            if len(before) < turn or turn > len(question.further):
                continue
            assert self.words is not None
            prompt = self.words.prompt(question, before)
            if prompt is not None and self.limits.leaves_room(prompt):
                found[first + turn] = prompt
        return found


def choose_sets(task: EvaluateTask, dataset: PreparedDataset, files: TargetFiles, limits: Limits) -> list[Prompts]:
    """The prompts of every set, in the order of the task. Raises Failure(BAD_DATA) for a set without a usable one."""
    wanted = task.evaluate
    words: Words | None = None
    chosen = []
    for name in wanted.prompt_sets:
        if name == "heldOut":
            chosen.append(held_out(dataset, limits))
            continue
        words = words or read_words(task, dataset, files)
        chosen.append(ask_questions(QuestionSource(name, wanted.prompt_file), words, limits))
    return chosen


def held_out(dataset: PreparedDataset, limits: Limits) -> Prompts:
    """Held-out documents up to their first answer. Raises Failure(BAD_DATA)."""
    found = choose_prompts(dataset, limits.max_prompts, limits.max_new_tokens, limits.max_positions)
    if not found.doc_ids:
        raise no_prompts(f"none of {len(dataset.held_out_ids)} held-out documents gives a prompt ({found.skipped})")
    prompts = {doc_id: dataset.prompt(doc_id) for doc_id in found.doc_ids}
    return Prompts("heldOut", prompts, found.skipped, dataset.manifest.tokens_sha256, limits)


def ask_questions(source: QuestionSource, words: Words, limits: Limits) -> Prompts:
    """Questions in the order of the hash of their rows, the first `max_prompts` that leave room for an answer."""
    read: dict[int, Question] = {}
    skipped: dict[str, int] = {}

    def skip(reason: str) -> None:
        skipped[reason] = skipped.get(reason, 0) + 1

    for place, row in enumerate(source.rows()):
        found = row.reason if isinstance(row, BadRow) else read_question(row)
        if isinstance(found, Question):
            read[place] = found
        else:
            skip(found)
    rows = np.array(sorted(read), dtype=np.uint64)
    turns = max((len(question.further) + 1 for question in read.values()), default=1)
    prompts: dict[int, Ids] = {}
    for place in rows[np.argsort(splitmix64(rows), kind="stable")].tolist():
        prompt = words.prompt(read[place])
        if prompt is None or not limits.leaves_room(prompt):
            skip("templateError" if prompt is None else "tooLong")
        else:
            prompts[place * turns] = prompt
        # Counting stops here too, as with held-out documents.
        if len(prompts) == limits.max_prompts:
            break
    if not prompts:
        message = f"evaluate.promptSets: no row of {source.name} gives a prompt ({skipped}); accepted: a set with one"
        raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message)
    asked = {first: read[first // turns] for first in prompts if read[first // turns].further}
    said = [repr((first, prompt.tolist(), asked.get(first))) for first, prompt in prompts.items()]
    return Prompts(source.name, prompts, skipped, digest(said), limits, asked, words)


def read_words(task: EvaluateTask, dataset: PreparedDataset, files: TargetFiles) -> Words:
    """Tokenizer and template as `prepare` had them. Raises Failure(STALE_INPUT) when the template has changed."""
    key = dataset.manifest.key
    tokenizer = load_tokenizer(files.path, task.target.model, task.target.trust_remote_code)
    template = ChatTemplate(tokenizer, key.template_kwargs, known_format(task.chat_template))
    if hashlib.sha256(template.text.encode()).hexdigest() != key.template_sha256:
        message = "target.model: its chat template is not the one of the prepared data; prepare has to run again"
        raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message)
    return Words(template)


def no_prompts(what: str) -> Failure:
    """There is nothing to judge the draft on."""
    message = f"data.evalFraction: {what}; accepted: a fraction, or more data, that leaves conversations to ask"
    return Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message)
