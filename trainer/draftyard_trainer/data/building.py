"""Rows in, documents out: the stream from the source to the files, three batches in memory at most."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.data.conversation import Conversation, SkipReason, read_row
from draftyard_trainer.data.files import BadRow
from draftyard_trainer.data.prepared import PreparedWriter
from draftyard_trainer.data.split import is_held_out
from draftyard_trainer.data.tally import Tally
from draftyard_trainer.data.template import ChatTemplate, Rendered, RenderError
from draftyard_trainer.data.tokens import TokenRules, encode, supervised
from draftyard_trainer.reporting import Reporter

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenised at once: enough for all cores, and with what the tokenizer keeps per token about 100 MB."""


@dataclass(frozen=True)
class Recipe:
    """How a row becomes documents."""

    template: ChatTemplate
    tokenizer: Tokenizer
    rules: TokenRules
    split_turns: bool
    eval_fraction: float


@dataclass(frozen=True)
class RenderedRow:
    """The texts of one row: one, or one per answer with splitTurns."""

    row: int
    sample_id: str
    texts: tuple[Rendered, ...]


Batch = list[RenderedRow]


def build_documents(rows: Iterable[object], recipe: Recipe, writer: PreparedWriter, reporter: Reporter) -> Tally:
    """Write every row's documents, and account for every row.

    Raises Failure: BAD_DATA when the template's tags mark nothing, UNSUPPORTED when the tokenizer has ids that the
    target has not, INTERRUPTED when a stop was asked for.
    """
    tally = Tally()
    # the tokenizer leaves Python alone while it works, so this batch is tokenised while the next one is rendered
    # closed: an error here, too, waits for the thread
    with closing(ahead(batches(render_rows(rows, recipe, tally)), recipe.tokenizer)) as ready:
        for batch, encodings in ready:
            write_batch(batch, encodings, recipe, writer, tally)
            reporter.advance(batch[-1].row + 1 - reporter.progress.done)
    reporter.advance(tally.rows - reporter.progress.done)
    return tally


def ahead(source: Iterable[Batch], tokenizer: Tokenizer) -> Generator[tuple[Batch, list[Encoding]], None, None]:
    """Yield each batch with its tokens, in order; one batch is taken from the source before its turn."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise") as thread:
        waiting: tuple[Batch, Future[list[Encoding]]] | None = None
        for batch in source:
            following = batch, thread.submit(encode, tokenizer, texts_of(batch))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def texts_of(batch: Batch) -> list[Rendered]:
    """All texts of a batch."""
    return [text for row in batch for text in row.texts]


def render_rows(rows: Iterable[object], recipe: Recipe, tally: Tally) -> Iterator[RenderedRow]:
    """Yield what can be rendered; what cannot is counted with its reason."""
    for place, row in enumerate(rows):
        tally.rows += 1
        read = row.reason if isinstance(row, BadRow) else read_row(row)
        if isinstance(read, SkipReason):
            tally.skip(read)
            if isinstance(row, Mapping):
                tally.columns = tally.columns or tuple(sorted(map(str, row)))
            continue
        try:
            texts = render(read, recipe)
        except RenderError as error:
            tally.skip(SkipReason.TEMPLATE_ERROR)
            tally.template_error = tally.template_error or str(error)
            continue
        # before tokenising: a wrong template ends the stage in the first second
        for text in texts:
            tally.saw(text)
        yield RenderedRow(place, read.id, texts)


def render(conversation: Conversation, recipe: Recipe) -> tuple[Rendered, ...]:
    """The texts of one conversation. Raises RenderError."""
    if recipe.split_turns:
        return tuple(recipe.template.render_turns(conversation))
    return (recipe.template.render(conversation),)


def batches(rows: Iterable[RenderedRow]) -> Iterator[Batch]:
    """Group rows up to `BATCH_CHARACTERS`; a longer row is a batch of its own size."""
    # by characters, not rows: one conversation of ShareGPT has 394,565 of them
    batch: Batch = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(rendered.text) for rendered in row.texts)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def write_batch(batch: Batch, encodings: list[Encoding], recipe: Recipe, writer: PreparedWriter, tally: Tally) -> None:
    """Append each text of a batch that has something to learn."""
    tokenised = iter(supervised(texts_of(batch), encodings, recipe.rules))
    for row in batch:
        # by row, so that with splitTurns all turns of a conversation are on one side
        held_out = is_held_out(row.sample_id, recipe.eval_fraction)
        documents = [document for document in (next(tokenised) for _ in row.texts) if len(document.spans)]
        for document in documents:
            require_known_ids(int(document.tokens.max()), len(writer.train_counts))
            writer.add(row.row, document, held_out)
            tally.wrote(document)
        if documents:
            tally.rows_used += 1
        else:
            tally.skip(SkipReason.NO_LOSS)


def require_known_ids(largest: int, target_vocab_size: int) -> None:
    """Raises Failure(UNSUPPORTED) for an id that the target has no embedding for."""
    if largest >= target_vocab_size:
        raise Failure(
            ExitCode.UNSUPPORTED,
            Reason.TARGET_UNSUPPORTED,
            f"target.model: the tokenizer gives id {largest}; accepted: ids below {target_vocab_size}, the vocab_size "
            "of its config.json; use the tokenizer that belongs to the model",
        )
