"""The stage `prepare`: conversations in; tokens, loss masks, the draft vocabulary and exact counts out."""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
from dataclasses import dataclass

import numpy as np

from draftyard_api import plan
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, prepared_path
from draftyard_api.progress import Counts, DatasetCounts, Prepared, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.targets import TargetShape
from draftyard_api.task import PrepareTask
from draftyard_trainer import order, process, warm_start
from draftyard_trainer.data.admission import check_split, is_already_trained, resolve_aux_layers
from draftyard_trainer.data.building import Recipe, build_documents, require_known_ids
from draftyard_trainer.data.built_in import known_format
from draftyard_trainer.data.conversations import ConversationRows
from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.manifest import DataKey, PreparedManifest
from draftyard_trainer.data.prepared import PreparedDataset, PreparedWriter, sealed
from draftyard_trainer.data.questions import QuestionSource, require_questions
from draftyard_trainer.data.source import RowSource, open_rows
from draftyard_trainer.data.tally import Tally
from draftyard_trainer.data.template import ChatTemplate
from draftyard_trainer.data.tokenizer import load_tokenizer, stop_ids, token_ids, tokenizer_sha256
from draftyard_trainer.data.tokens import TokenRules
from draftyard_trainer.data.vocabulary import DraftVocabulary, build_vocabulary, coverage
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.location import TargetFiles, locate, require_one_gpu
from draftyard_trainer.warm_start import InitialDraft

LOG = logging.getLogger(__name__)
LOW_COVERAGE = 0.97
"""Share of supervised tokens inside the draft vocabulary below which it limits the acceptance length."""


@dataclass(frozen=True)
class Inputs:
    """What the task's names stand for: everything that is read before the first row."""

    source: RowSource
    key: DataKey
    recipe: Recipe
    bos_id: int | None
    initial: InitialDraft | None = None
    """The draft to start from."""


def prepare(task: PrepareTask, reporter: Reporter) -> StageResult:
    """Make `prepare/<hash>` unless it is there, and say what training from it takes.

    Raises Failure: NOT_FOUND without the model or the data, UNSUPPORTED for a target, layers or a source that this
    version cannot use, EXISTS for another export in the way, BAD_DATA for conversations that nothing can be learned
    from, INTERRUPTED when a stop was asked for. Nothing half-written is ever visible.
    """
    store = open_store(task.workspace, task.workspace_s3)
    # from cheap to dear: what is wrong with the task is said before anything is downloaded or hashed
    own = ConversationRows.open(store, task.conversations) if task.conversations else None
    source: RowSource = own or open_rows(task.data.source)
    # said here, before a GPU is used
    if task.mode == "Online":
        require_one_gpu(task.target, "with mode Online")
    if task.evaluates:
        require_one_gpu(task.target, "with an evaluate block")
    if task.other_prompts is not None:
        for name in task.other_prompts.sets:
            require_questions(QuestionSource(name, task.other_prompts.file))
    # a CPU pod: tokenizer and config are a few MB, the weights may be hundreds of GB
    target = locate(task.target, weights=False)
    initial = warm_start.find(task, target)
    wanted_layers = task.draft.aux_layers or (initial.config.aux_layers if initial else None)
    aux_layers = resolve_aux_layers(wanted_layers, int(target.config["num_hidden_layers"]), task.target.model)
    data_sha256 = source.sha256()
    # of own answers what decided them: said again on another machine, a word in a million may be another
    decided_by = own.key_sha256 if own else data_sha256
    initial_sha256 = initial.sha256 if initial else None
    fingerprint = plan.fingerprint(task.frozen_sha256, target.identity, decided_by, aux_layers, initial_sha256)
    # decided before tokenising, on a CPU: a re-created object costs minutes, no GPU
    already_trained = is_already_trained(store, task, fingerprint)
    inputs = read_inputs(task, target, source, data_sha256, initial)
    if initial is not None:
        warm_start.require_fit(initial, task.draft, aux_layers, inputs.key.keep_ids)
    dataset = open_or_build(store, inputs, reporter)
    check_split(dataset.manifest.counts, task)
    prepared = Prepared(
        prepared=inputs.key.folder(),
        counts=counts(dataset, task),
        vocab_size=dataset.manifest.vocab_size,
        vocab_coverage=f"{dataset.manifest.vocab_coverage:.4f}",
        aux_layers=aux_layers,
        target_commit=target.identity,
        data_sha256=data_sha256,
        tokens_sha256=dataset.manifest.tokens_sha256,
        fingerprint=fingerprint,
        free_bytes=store.free_bytes(),
        already_trained=already_trained,
        target_shape=TargetShape.from_config(target.config),
    )
    manifest_name = f"{prepared_path(prepared.prepared)}/{MANIFEST}"
    return StageResult(
        stage=task.stage,
        message=summary(dataset.manifest),
        manifest_sha256=hashlib.sha256(store.read(manifest_name)).hexdigest(),
        bytes=dataset.manifest.bytes,
        prepared=prepared,
    )


# -- What is read first ---------------------------------------------------------------------


def read_inputs(
    task: PrepareTask, target: TargetFiles, source: RowSource, data_sha256: str, initial: InitialDraft | None = None
) -> Inputs:
    """Load the tokenizer, and collect everything that decides the documents. Raises Failure."""
    data, folder = task.data, target.path
    tokenizer = load_tokenizer(folder, task.target.model, task.target.trust_remote_code)
    template = ChatTemplate(tokenizer, data.template_kwargs, known_format(data.chat_template))
    stops = stop_ids(folder, target.config, tokenizer, data.stop_tokens)
    keep = token_ids(tokenizer, task.draft.keep_tokens, "draft.keepTokens")
    vocab_size = int(target.config["vocab_size"])
    require_known_ids(max((*stops, *keep), default=0), vocab_size)
    # everything below, and nothing else, may change a token, a mask, the split or the vocabulary
    key = DataKey(
        data_sha256=data_sha256,
        tokenizer_sha256=tokenizer_sha256(folder),
        template_sha256=hashlib.sha256(template.text.encode()).hexdigest(),
        template_kwargs=data.template_kwargs,
        stop_ids=stops,
        keep_ids=keep,
        max_length=data.max_length,
        max_samples=data.max_samples,
        # `0.010` and `1e-2` are one fraction
        eval_fraction=repr(float(data.eval_fraction)),
        split_turns=data.split_turns,
        vocab_size=len(initial.ids) if initial else task.draft.vocab_size,
        target_vocab_size=vocab_size,
        initial_draft=initial.sha256 if initial else None,
    )
    rules = TokenRules(frozenset(stops), data.max_length)
    return Inputs(
        source=source,
        key=key,
        recipe=Recipe(template, tokenizer.backend_tokenizer, rules, data.split_turns, data.eval_fraction),
        bos_id=tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) else None,
        initial=initial,
    )


# -- The documents -------------------------------------------------------------------------


def open_or_build(store: Store, inputs: Inputs, reporter: Reporter) -> PreparedDataset:
    """The documents of the inputs' key: those that are there and whole, else new ones."""
    folder = inputs.key.folder()
    try:
        dataset = PreparedDataset.open(store, folder)
    except Failure as failure:
        if failure.code is not ExitCode.STALE_INPUT:
            raise
    # found: then it is as good as new, unless it was damaged since
    else:
        # a later stage may have sent us back, since it found them broken
        is_whole = dataset.tokens_sha256() == dataset.manifest.tokens_sha256
        if is_whole and warm_start.is_kept(store, folder, inputs.key.initial_draft):
            return dataset
    build(store, inputs, reporter)
    return PreparedDataset.open(store, folder)


def build(store: Store, inputs: Inputs, reporter: Reporter) -> None:
    """Write the folder of the inputs' key; it appears whole, or not at all."""
    key = inputs.key
    reporter.begin("tokenising", "rows", total=key.max_samples)
    # skipped rows count too: which rows are read must not depend on the template
    rows = itertools.islice(inputs.source.rows(), key.max_samples)
    with store.create_folder(prepared_path(key.folder())) as staged:
        with PreparedWriter(staged, key.target_vocab_size) as writer:
            tally = build_documents(rows, inputs.recipe, writer, reporter)
        # inside of the block: a rejected data set leaves no folder
        tally.check()
        if inputs.initial is None:
            vocabulary = choose_vocabulary(writer.train_counts, key)
        else:
            vocabulary = inputs.initial.vocabulary(writer.train_counts)
            inputs.initial.copy_to(staged)
        share = coverage(vocabulary, writer.train_counts)
        manifest = PreparedManifest(
            key=key,
            counts=dataset_counts(tally, writer),
            mask=tally.mask_report(),
            bos_id=inputs.bos_id,
            vocab_size=vocabulary.size,
            vocab_coverage=share,
            vocab_filled=vocabulary.num_filled,
            tokens_sha256=writer.tokens_sha256(),
            files_sha256=writer.files_sha256(),
            vocabulary_sha256=writer.write_vocabulary(vocabulary),
            bytes=sum(path.stat().st_size for path in staged.rglob("*") if path.is_file()),
            warnings=(
                warnings_about_kept(key, vocabulary, share) if inputs.initial else warnings_about(vocabulary, share)
            ),
        )
        (staged / MANIFEST).write_bytes(sealed(manifest))
    # once, when made; the manifest and the result keep them
    for warning in manifest.warnings:
        LOG.warning(warning)


def choose_vocabulary(train_counts: Ids, key: DataKey) -> DraftVocabulary:
    """The draft vocabulary of the training documents, stop ids and kept tokens in it. Raises Failure(BAD_TASK)."""
    always = np.array(sorted({*key.stop_ids, *key.keep_ids}), dtype=np.int64)
    try:
        return build_vocabulary(train_counts, key.vocab_size, always)
    except ValueError as error:
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"draft.keepTokens: {error}") from error


def dataset_counts(tally: Tally, writer: PreparedWriter) -> DatasetCounts:
    """What was read and what was written."""
    return DatasetCounts(
        rows=tally.rows,
        documents=writer.documents,
        train_documents=writer.documents - writer.held_out_documents,
        held_out_documents=writer.held_out_documents,
        skipped=dict(sorted(tally.skipped.items())),
        truncated_documents=tally.truncated,
        tokens=writer.tokens,
        train_tokens=writer.train_tokens,
        loss_tokens=writer.loss_tokens,
        label_rows=writer.label_rows,
    )


def warnings_about(vocabulary: DraftVocabulary, share: float) -> tuple[str, ...]:
    """What limits the draft, though it can be trained."""
    warnings = []
    if vocabulary.num_filled:
        warnings.append(
            f"draft.vocabSize: given {vocabulary.size}; the training documents have {vocabulary.num_used} distinct "
            f"supervised tokens, so {vocabulary.num_filled} members are filled up with the lowest unused ids; "
            "use more conversations, or a smaller draft.vocabSize"
        )
    if share < LOW_COVERAGE:
        warnings.append(
            f"draft.vocabSize: {vocabulary.size} tokens cover {share:.1%} of the supervised ones, and the others are "
            f"never drafted; {LOW_COVERAGE:.0%} or more is usual: use a larger draft.vocabSize"
        )
    return tuple(warnings)


def warnings_about_kept(key: DataKey, vocabulary: DraftVocabulary, share: float) -> tuple[str, ...]:
    """The same of a vocabulary that came with the draft to start from."""
    warnings = []
    missing = sorted(set(key.stop_ids) - set(vocabulary.ids.tolist()))
    if missing:
        warnings.append(
            f"draft.initFrom: stop tokens {missing} are not in the kept draft vocabulary, so every end of an answer is "
            "a rejection; start without it to have them"
        )
    if share < LOW_COVERAGE:
        warnings.append(
            f"draft.initFrom: the kept draft vocabulary covers {share:.1%} of the supervised tokens, and the others "
            f"are never drafted; {LOW_COVERAGE:.0%} or more is usual: start without it to have another one"
        )
    return tuple(warnings)


# -- What comes out ------------------------------------------------------------------------


def counts(dataset: PreparedDataset, task: PrepareTask) -> Counts:
    """The counts of the data, with the steps that this run makes of them."""
    train, train_ids = task.train, dataset.train_ids
    # the plan that training follows, not an estimate: schedules and progress are exact from the first step
    steps = order.num_steps(
        dataset.lengths[train_ids], train_ids, train.row_tokens, train.tokens_per_batch, train.seed, train.epochs
    )
    return Counts(**dataset.manifest.counts.model_dump(), steps=steps)


def summary(manifest: PreparedManifest) -> str:
    """The result in a sentence, with what a person should know."""
    counted = manifest.counts
    skipped = sum(counted.skipped.values())
    sentence = (
        f"{counted.documents} documents ({counted.held_out_documents} held out) of {counted.rows} rows, {skipped} "
        f"skipped; {counted.tokens} tokens, {counted.loss_tokens} supervised; {manifest.vocab_size} draft tokens cover "
        f"{manifest.vocab_coverage:.2%}"
    )
    return "; ".join((sentence, *manifest.warnings))


if __name__ == "__main__":
    sys.exit(process.main(PrepareTask, prepare))
