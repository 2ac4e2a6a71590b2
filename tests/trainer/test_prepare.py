"""The stage as a whole: real files in, prepared documents, exact counts and clear refusals out."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_STATE_DIR, MANIFEST, RESULT_FILE, Stage, export_path, prepared_path
from draftyard_api.progress import Prepared, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.task import PrepareTask
from draftyard_trainer.data.admission import resolve_aux_layers
from draftyard_trainer.data.conversation import Conversation, read_row
from draftyard_trainer.data.files import BadRow, read_rows
from draftyard_trainer.data.prepared import TOKENS, PreparedDataset
from draftyard_trainer.data.split import is_held_out
from draftyard_trainer.data.vocabulary import build_vocabulary, coverage
from draftyard_trainer.prepare import prepare, warnings_about
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.testing import CHATML, FAMILIES, SHAPE, words, write_conversations, write_tokenizer

FIXTURES = Path(__file__).parents[2] / "build/fixtures"
SMOLLM2, SHAREGPT = FIXTURES / "smollm2-135m-instruct", FIXTURES / "sharegpt.json"
MUTE = CHATML.replace("{{ message['content'] }}", "{{ message['content'] if message['role'] != 'assistant' }}")
MakeTask = Callable[..., PrepareTask]


def write_model(folder: Path, template: str | None = CHATML, **config: Any) -> Path:
    """A model's folder as far as `prepare` reads it: config and tokenizer, no weights."""
    AutoConfig.for_model(**{**SHAPE, **FAMILIES["llama"], **config}).save_pretrained(folder)
    write_tokenizer(folder, template or CHATML)
    if template is None:
        (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "workspace")


@pytest.fixture
def make(tmp_path: Path, model: Path) -> MakeTask:
    """A task for the tiny model and forty conversations; `data`, `draft`, `train` and `export` take what differs."""
    conversations = write_conversations(tmp_path / "data.json")

    def build(source: Path = conversations, model: Path = model, **fields: Any) -> PrepareTask:
        data = {"source": {"file": {"uri": f"file://{source}"}}, "evalFraction": 0.2, "maxLength": 256}
        blocks = {
            "run": "tiny",
            "uid": "u",
            "workspace": f"file://{tmp_path / 'workspace'}",
            "target": {"model": f"file://{model}"},
            "mode": "Online",
            "evaluates": True,
            "frozenSha256": "f" * 64,
            "train": {"rowTokens": 256, "tokensPerBatch": 512, "epochs": 3, **fields.pop("train", {})},
            "data": {**data, **fields.pop("data", {})},
            "draft": {"vocabSize": 256, **fields.pop("draft", {})},
            "export": fields.pop("export", {}),
            **fields,
        }
        return PrepareTask.model_validate_json(json.dumps(blocks))

    return build


def run(task: PrepareTask) -> StageResult:
    return prepare(task, Reporter(Stage.PREPARE))


def prepared(task: PrepareTask) -> Prepared:
    result = run(task).prepared
    assert result is not None
    return result


def refused(task: PrepareTask) -> Failure:
    with pytest.raises(Failure) as caught:
        run(task)
    return caught.value


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat(*said: str, **fields: Any) -> dict[str, Any]:
    """A row of alternating questions and answers."""
    speakers = ("human", "gpt")
    return {
        "conversations": [{"from": speakers[place % 2], "value": text} for place, text in enumerate(said)],
        **fields,
    }


def supervised(dataset: PreparedDataset, decode: Callable[[list[int]], str], doc_id: int) -> list[str]:
    document = dataset.document(doc_id)
    return [decode(document.tokens[start : start + length].tolist()) for start, length in document.spans]


def decoder(folder: Path) -> Callable[[list[int]], str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False)


# -- What comes out --------------------------------------------------------------------------


def test_conversations_become_documents(make: MakeTask, store: LocalStore, model: Path) -> None:
    task = make()
    found = prepared(task)
    dataset = PreparedDataset.open(store, found.prepared)
    decode = decoder(model)
    for number in range(40):
        answers = [f"{words(4 + (number + turn) % 9, seed=number * 31 + turn * 2 + 1)}<|im_end|>" for turn in range(2)]
        assert supervised(dataset, decode, number) == answers
    assert decode(dataset.prompt(0).tolist()).endswith("<|im_start|>assistant\n")


def test_counts_are_exact(make: MakeTask, store: LocalStore) -> None:
    found = prepared(make())
    counts, dataset = found.counts, PreparedDataset.open(store, found.prepared)
    documents = [dataset.document(doc_id) for doc_id in range(len(dataset))]
    assert (counts.rows, counts.documents, counts.skipped, counts.truncated_documents) == (40, 40, {}, 0)
    assert counts.held_out_documents == len(dataset.held_out_ids) > 0
    assert counts.train_documents + counts.held_out_documents == 40
    assert counts.tokens == sum(document.num_tokens for document in documents)
    assert counts.train_tokens == int(dataset.lengths[dataset.train_ids].sum())
    assert counts.loss_tokens == sum(int(document.mask().sum()) for document in documents)
    assert counts.label_rows == sum(len(document.label_rows()) for document in documents)


def test_steps_follow_from_the_training_documents(make: MakeTask) -> None:
    """Rows are packed and kept: at least the tokens' share of full steps, at most one step per row."""
    one, three = prepared(make(train={"epochs": 1})).counts, prepared(make()).counts
    assert one.train_tokens / 512 <= one.steps <= one.train_documents
    assert 0 < one.steps < three.steps <= 3 * one.train_documents


def test_the_result_names_everything_that_later_stages_need(make: MakeTask, store: LocalStore) -> None:
    result = run(make())
    found = result.prepared
    assert found is not None
    manifest = PreparedDataset.open(store, found.prepared).manifest
    assert (result.stage, result.exit_code, found.already_trained) == (Stage.PREPARE, 0, False)
    assert (found.aux_layers, found.vocab_size) == ((2, 4, 5), 256)
    assert (found.tokens_sha256, found.data_sha256) == (manifest.tokens_sha256, manifest.data_sha256)
    assert result.manifest_sha256 is not None
    assert len(result.manifest_sha256) == len(found.target_commit) == 64
    assert (
        result.bytes
        == manifest.bytes
        == sum(
            store.size(name) or 0 for name in store.list(prepared_path(found.prepared)) if not name.endswith(MANIFEST)
        )
    )
    assert found.free_bytes is not None
    assert len(result.model_dump_json(by_alias=True)) < 4096


def test_the_manifest_says_how_answers_were_found(make: MakeTask, store: LocalStore) -> None:
    manifest = PreparedDataset.open(store, prepared(make()).prepared).manifest
    assert manifest.mask.sources == {"diff": 40}
    assert (manifest.mask.turns, manifest.mask.turns_not_located, manifest.mask.turns_without_stop) == (80, 0, 0)
    assert manifest.stop_ids == (2,)
    assert manifest.bos_id == 0


def test_every_row_is_a_document_or_skipped_with_a_reason(make: MakeTask, tmp_path: Path, store: LocalStore) -> None:
    good = [chat("Hi there", f"Fine {number}") for number in range(30)]
    robot, far_away = {"conversations": [{"from": "robot", "value": "x"}]}, chat("x " * 300, "behind the limit")
    path = written(
        tmp_path / "dirty.jsonl",
        [*good, [], {}, {"conversations": []}, chat("only a question"), chat("a", 7), {"text": ["x"]}, robot, far_away],
    )
    with path.open("a") as file:
        file.write('{"odd\n{"cut off')
    found = prepared(make(source=path))
    assert found.counts.rows == 40
    assert found.counts.documents == 30
    assert found.counts.skipped == {
        "badJson": 1,
        "empty": 2,
        "malformed": 2,
        "noAssistant": 1,
        "noLoss": 1,
        "notAnObject": 1,
        "truncated": 1,
        "unknownRole": 1,
    }
    assert PreparedDataset.open(store, found.prepared).rows.tolist() == list(range(30))


def test_long_conversations_are_cut_and_counted(make: MakeTask, tmp_path: Path, store: LocalStore) -> None:
    rows = [chat("Go on", "on and on " * (100 if number < 3 else 1)) for number in range(40)]
    found = prepared(make(source=written(tmp_path / "long.jsonl", rows)))
    lengths = PreparedDataset.open(store, found.prepared).lengths
    assert found.counts.truncated_documents == 3
    assert lengths[:3].tolist() == [256] * 3
    assert lengths[3:].max() < 256


def test_turns_apart(make: MakeTask, tmp_path: Path, store: LocalStore, model: Path) -> None:
    rows = [chat("1?", "one", "2?", "two", "3?", "three", id=f"row {number}") for number in range(40)]
    found = prepared(make(source=written(tmp_path / "turns.jsonl", [*rows, {}]), data={"splitTurns": True}))
    dataset = PreparedDataset.open(store, found.prepared)
    decode = decoder(model)
    assert (found.counts.rows, found.counts.documents, found.counts.skipped) == (41, 120, {"empty": 1})
    assert [supervised(dataset, decode, doc_id) for doc_id in range(3)] == [
        ["one<|im_end|>"],
        ["two<|im_end|>"],
        ["three<|im_end|>"],
    ]
    assert dataset.rows.tolist() == [row for row in range(40) for _ in range(3)]
    # turns of one conversation know each other's text: they are held out together
    assert all(len(set(dataset.held_out[3 * row : 3 * row + 3].tolist())) == 1 for row in range(40))


def test_only_so_many_rows_are_read(make: MakeTask) -> None:
    counts = prepared(make(data={"maxSamples": 25})).counts
    assert (counts.rows, counts.documents) == (25, 25)


def test_a_sample_is_held_out_whatever_else_is_in_the_file(make: MakeTask, tmp_path: Path, store: LocalStore) -> None:
    rows = [chat("Hi", f"answer {number}", id=f"sample {number}") for number in range(40)]
    held_out = []
    for name, part in (("all", rows), ("backwards", rows[::-1]), ("half", rows[:20])):
        found = prepared(make(source=written(tmp_path / f"{name}.jsonl", part)))
        dataset = PreparedDataset.open(store, found.prepared)
        held_out.append({part[row]["id"] for row in dataset.rows[dataset.held_out_ids].tolist()})
    assert held_out[0] == held_out[1] >= held_out[2]


def test_settings_reach_the_documents(make: MakeTask, tmp_path: Path, store: LocalStore) -> None:
    rows = [chat("Hi", f"the end {number}") for number in range(40)]
    source = written(tmp_path / "settings.jsonl", rows)
    base = PreparedDataset.open(store, prepared(make(source=source)).prepared)
    kept = make(source=source, draft={"keepTokens": ["<|endoftext|>", "the"]}, data={"stopTokens": ["<|endoftext|>"]})
    dataset = PreparedDataset.open(store, prepared(kept).prepared)
    assert dataset.manifest.stop_ids == (0, 2)
    assert 0 in dataset.vocabulary.ids
    named = PreparedDataset.open(store, prepared(make(source=source, data={"chatTemplate": "llama3"})).prepared)
    assert named.manifest.mask.sources == {"headers": 40}
    assert named.manifest.key.template_sha256 != base.manifest.key.template_sha256


def test_the_vocabulary_is_filled_and_that_is_said(
    make: MakeTask, store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(make(draft={"vocabSize": 1000}))
    assert result.prepared is not None
    dataset = PreparedDataset.open(store, result.prepared.prepared)
    assert (result.prepared.vocab_size, result.prepared.vocab_coverage) == (384, "1.0000")
    assert dataset.manifest.vocab_filled == 384 - np.count_nonzero(dataset.vocabulary.counts) > 0
    assert "filled up with the lowest unused ids" in dataset.manifest.warnings[0]
    assert dataset.manifest.warnings[0] in result.message
    assert "filled up" in caplog.text


def test_low_coverage_is_said() -> None:
    counts = np.ones(1000, dtype=np.int64)
    vocabulary = build_vocabulary(counts, 960, np.zeros(0, dtype=np.int64))
    (warning,) = warnings_about(vocabulary, coverage(vocabulary, counts))
    assert "draft.vocabSize: 960 tokens cover 96.0% of the supervised ones" in warning
    assert warnings_about(vocabulary, 0.97) == ()


# -- Once is enough ----------------------------------------------------------------------------


def test_a_second_time_finds_the_first(make: MakeTask, store: LocalStore, tmp_path: Path) -> None:
    first = run(make())
    assert first.prepared is not None
    manifest = tmp_path / "workspace" / prepared_path(first.prepared.prepared) / MANIFEST
    made = manifest.stat().st_mtime_ns
    second = run(make(train={"epochs": 1}))
    assert second.prepared is not None
    assert (second.prepared.prepared, second.manifest_sha256) == (first.prepared.prepared, first.manifest_sha256)
    assert manifest.stat().st_mtime_ns == made
    # what depends on training alone is counted anew
    assert second.prepared.counts.steps < first.prepared.counts.steps


@pytest.mark.parametrize("damage", ["cut", "changed", "absent"])
def test_broken_documents_are_made_again(make: MakeTask, store: LocalStore, tmp_path: Path, damage: str) -> None:
    first = prepared(make())
    tokens = tmp_path / "workspace" / prepared_path(first.prepared) / TOKENS
    whole = tokens.read_bytes()
    match damage:
        case "cut":
            tokens.write_bytes(whole[:-4])
        case "changed":
            tokens.write_bytes(b"\x07" + whole[1:])
        case _:
            tokens.unlink()
    assert prepared(make()).tokens_sha256 == first.tokens_sha256
    assert tokens.read_bytes() == whole


def test_equal_conversations_give_equal_documents(make: MakeTask, tmp_path: Path) -> None:
    array = make().data.source.file
    assert array is not None
    rows = json.loads(Path(array.uri.removeprefix("file://")).read_text())
    lines = prepared(make(source=written(tmp_path / "same.jsonl", rows)))
    whole = prepared(make())
    assert lines.tokens_sha256 == whole.tokens_sha256
    assert lines.prepared != whole.prepared  # another file: another key
    assert lines.fingerprint != whole.fingerprint


def test_a_stop_leaves_nothing_behind(make: MakeTask, store: LocalStore) -> None:
    reporter = Reporter(Stage.PREPARE)
    reporter.stop_requested = True
    with pytest.raises(Failure) as caught:
        prepare(make(), reporter)
    assert caught.value.code is ExitCode.INTERRUPTED
    assert store.list("prepare") == []
    assert prepared(make()).counts.documents == 40


def test_progress_counts_rows(make: MakeTask) -> None:
    reporter = Reporter(Stage.PREPARE)
    prepare(make(data={"maxSamples": 30}), reporter)
    assert (reporter.progress.unit, reporter.progress.done, reporter.progress.total) == ("rows", 30, 30)


# -- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "reason", "words_of_it"),
    [
        pytest.param(
            {"data": {"source": {"preset": {"name": "shargpt"}}}},
            ExitCode.NOT_FOUND,
            Reason.DATA_NOT_FOUND,
            ["data.source.preset.name", 'given "shargpt"', "accepted: sharegpt, ultrachat"],
            id="an unknown preset",
        ),
        pytest.param(
            {"data": {"source": {"file": {"uri": "pvc://claim/x.json"}}}},
            ExitCode.UNSUPPORTED,
            Reason.TASK_REJECTED,
            ["data.source.file.uri", "given pvc://claim/x.json", "that the pod can open"],
            id="a claim that is not mounted",
        ),
        pytest.param(
            {"source": Path("/nowhere/x.json")},
            ExitCode.NOT_FOUND,
            Reason.DATA_NOT_FOUND,
            ["/nowhere/x.json", "does not exist"],
            id="no data",
        ),
        pytest.param(
            {"model": Path("/nowhere/model")},
            ExitCode.NOT_FOUND,
            Reason.MODEL_NOT_FOUND,
            ["target.model", "/nowhere/model"],
            id="no model",
        ),
        pytest.param(
            {"draft": {"auxLayers": [2, 4, 40]}},
            ExitCode.UNSUPPORTED,
            Reason.TARGET_UNSUPPORTED,
            ["draft.auxLayers: given 40; accepted: 1 to 7 for file://", "(8 layers)"],
            id="a layer that the target has not",
        ),
        pytest.param(
            {"data": {"chatTemplate": "klingon"}},
            ExitCode.BAD_TASK,
            Reason.TASK_REJECTED,
            ['data.chatTemplate: given "klingon"', "accepted: auto", "llama3"],
            id="an unknown chat format",
        ),
        pytest.param(
            {"data": {"stopTokens": ["no single token"]}},
            ExitCode.BAD_TASK,
            Reason.TASK_REJECTED,
            ["data.stopTokens: given 'no single token'", "one token"],
            id="stop text of several tokens",
        ),
        pytest.param(
            {"draft": {"keepTokens": ["no single token"]}},
            ExitCode.BAD_TASK,
            Reason.TASK_REJECTED,
            ["draft.keepTokens"],
            id="kept text of several tokens",
        ),
        pytest.param(
            {"data": {"evalFraction": 1e-9}},
            ExitCode.BAD_DATA,
            Reason.DATA_REJECTED,
            ["data.evalFraction: given 1e-09", "none of 40 documents"],
            id="nothing held out",
        ),
    ],
)
def test_refusals(
    make: MakeTask,
    store: LocalStore,
    fields: dict[str, Any],
    code: ExitCode,
    reason: Reason,
    words_of_it: list[str],
) -> None:
    failure = refused(make(**fields))
    assert (failure.code, failure.reason) == (code, reason)
    assert all(part in failure.message for part in words_of_it), failure.message
    assert len(failure.message) <= 1024


def test_without_evaluate_nothing_has_to_be_held_out(make: MakeTask) -> None:
    counts = prepared(make(data={"evalFraction": 0.0}, evaluates=False)).counts
    assert (counts.held_out_documents, counts.train_documents) == (0, 40)


def test_prompts_that_are_not_there_are_said_before_the_data_is_read(make: MakeTask, tmp_path: Path) -> None:
    """They are needed hours later, by evaluate."""
    asked = {"sets": ["file"], "file": {"uri": f"file://{tmp_path}/mine.jsonl"}}
    failure = refused(make(otherPrompts=asked))
    assert (failure.code, failure.reason) == (ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND)
    assert failure.message.startswith("evaluate.promptFile.uri: given file://")
    written(tmp_path / "mine.jsonl", [{"prompt": "Why?"}])
    assert prepared(make(otherPrompts=asked)).counts.documents == 40


def test_something_has_to_be_left_for_training(make: MakeTask, tmp_path: Path) -> None:
    held_out = [f"sample {number}" for number in range(40) if is_held_out(f"sample {number}", 0.5)]
    source = written(tmp_path / "few.jsonl", [chat("Hi", "Ho", id=name) for name in held_out])
    found = [
        refused(make(source=source, data={"evalFraction": 0.5}, evaluates=evaluates)) for evaluates in (True, False)
    ]
    texts = {failure.message for failure in found}
    assert all(failure.code is ExitCode.BAD_DATA for failure in found)
    assert all("data.evalFraction: given 0.5, which holds out" in text for text in texts)


@pytest.mark.parametrize(
    ("given", "num_layers", "layers"),
    [
        pytest.param(None, 32, (2, 16, 29), id="the default for 32 layers"),
        pytest.param(None, 30, (2, 15, 27), id="the default for 30 layers"),
        pytest.param(None, 7, (2, 3, 4), id="the default for the fewest layers"),
        pytest.param((2,), 4, (2,), id="one"),
        pytest.param((2, 5, 31), 32, (2, 5, 31), id="up to the input of the last block"),
    ],
)
def test_layers(given: tuple[int, ...] | None, num_layers: int, layers: tuple[int, ...]) -> None:
    assert resolve_aux_layers(given, num_layers, "org/model") == layers


@pytest.mark.parametrize(
    ("given", "num_layers", "message"),
    [
        pytest.param(
            (2, 16, 40),
            32,
            "draft.auxLayers: given 40; accepted: 1 to 31 for org/model (32 layers)",
            id="beyond the last block",
        ),
        pytest.param(
            (2, 32), 32, "draft.auxLayers: given 32; accepted: 1 to 31 for org/model (32 layers)", id="output"
        ),
        pytest.param((2, 33, 40), 32, "draft.auxLayers: given 33, 40; accepted: 1 to 31", id="several"),
        pytest.param((2, 9, 5), 32, "given [2, 9, 5]; accepted: distinct layers in ascending order", id="descending"),
        pytest.param((2, 2, 5), 32, "given [2, 2, 5]; accepted: distinct layers in ascending order", id="twice"),
        pytest.param((3, 5), 32, "draft.auxLayers: given 3 first; accepted: 2 first", id="first is not 2"),
        pytest.param(None, 6, "given none, and org/model has 6 layers; accepted: the default for at least 7", id="few"),
    ],
)
def test_layers_that_are_refused(given: tuple[int, ...] | None, num_layers: int, message: str) -> None:
    with pytest.raises(Failure) as caught:
        resolve_aux_layers(given, num_layers, "org/model")
    assert caught.value.code is ExitCode.UNSUPPORTED
    assert message in caught.value.message


TAGS_NOTHING = CHATML + "{% generation %}{% endgeneration %}"
FORGETS = (  # shows an answer only when the conversation has one question
    "{% for message in messages %}{% if message.role == 'user' or messages | length < 3 %}"
    "<|said|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
RAISES = "{{ raise_exception('System role not supported') }}"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        pytest.param(MUTE, "80 of 80 answers cannot be found", id="answers are not rendered"),
        pytest.param(FORGETS, "78 of 79 answers cannot be found", id="more than one in a hundred is not"),
        pytest.param(TAGS_NOTHING, "generation tags, but they mark nothing", id="tags around nothing"),
        pytest.param(RAISES, "TemplateError: System role not supported", id="refuses every conversation"),
        pytest.param(None, "chat_template is not set", id="no template"),
    ],
)
def test_a_template_that_gives_no_mask_fails_loudly(
    make: MakeTask,
    tmp_path: Path,
    store: LocalStore,
    template: str | None,
    what: str,
) -> None:
    source = tmp_path / "data.json"
    if template == FORGETS:
        two_turns = json.loads(source.read_text())[:39]
        source = written(tmp_path / "one.jsonl", [*two_turns, chat("Hi", "Ho")])
    failure = refused(make(source=source, model=write_model(tmp_path / "model", template)))
    assert (failure.code, failure.reason) == (ExitCode.BAD_DATA, Reason.DATA_REJECTED)
    assert what in failure.message
    assert "data.chatTemplate" in failure.message
    assert len(failure.message) <= 1024
    assert store.list("") == []


def test_the_conversation_at_fault_is_shown_with_its_mask(
    make: MakeTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last_only = MUTE.replace("!= 'assistant'", "!= 'assistant' or loop.last")
    headless = last_only.replace("<|im_start|>", "<|said|>")
    source = written(tmp_path / "two.jsonl", [chat("1?", "one", "2?", "two")] * 5)
    failure = refused(make(source=source, model=write_model(tmp_path / "model", headless)))
    shown = "<|said|>assistant\n⟦two⟧<|im_end|>"
    assert "5 of 10 answers" in failure.message
    assert shown in failure.message
    assert shown in caplog.text


def test_no_rows(make: MakeTask, tmp_path: Path) -> None:
    failure = refused(make(source=written(tmp_path / "empty.jsonl", [])))
    assert failure.code is ExitCode.BAD_DATA
    assert "rows 0, skipped: none" in failure.message


def test_a_tokenizer_larger_than_the_target_is_refused(make: MakeTask, tmp_path: Path) -> None:
    failure = refused(make(model=write_model(tmp_path / "model", vocab_size=300)))
    assert failure.code is ExitCode.UNSUPPORTED
    assert "vocab_size" in failure.message
    assert "300" in failure.message


def test_a_model_without_a_tokenizer_is_refused(make: MakeTask, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    failure = refused(make(model=folder))
    assert (failure.code, failure.reason) == (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED)
    assert "tokenizer" in failure.message


# -- A draft that is already there -------------------------------------------------------------


def publish(store: LocalStore, fingerprint: str | None) -> None:
    manifest: Mapping[str, str] = {} if fingerprint is None else {"fingerprint": fingerprint}
    store.publish(f"{export_path('tiny')}/{MANIFEST}", json.dumps(manifest).encode())
    store.publish(f"{export_path('tiny')}/PUBLISHED.json", b"{}")


@pytest.mark.parametrize(
    ("if_exists", "is_same", "ends"),
    [
        pytest.param("Skip", True, "already trained", id="Skip, the same"),
        pytest.param("Skip", False, "refused", id="Skip, another"),
        pytest.param("Fail", True, "refused", id="Fail, the same"),
        pytest.param("Fail", False, "refused", id="Fail, another"),
        pytest.param("Overwrite", True, "trains", id="Overwrite, the same"),
        pytest.param("Overwrite", False, "trains", id="Overwrite, another"),
    ],
)
def test_a_published_draft(make: MakeTask, store: LocalStore, if_exists: str, is_same: bool, ends: str) -> None:
    task = make(export={"ifExists": if_exists})
    publish(store, prepared(make()).fingerprint if is_same else "0" * 64)
    if ends == "refused":
        failure = refused(task)
        assert (failure.code, failure.reason) == (ExitCode.EXISTS, Reason.OUTPUT_EXISTS)
        assert f"export.ifExists: given {if_exists}" in failure.message
        assert "export/tiny" in failure.message
    else:
        assert prepared(task).already_trained is (ends == "already trained")


def test_an_unpublished_draft_is_in_nobody_s_way(make: MakeTask, store: LocalStore) -> None:
    store.publish(f"{export_path('tiny')}/{MANIFEST}", b'{"fingerprint": "0"}')
    assert prepared(make(export={"ifExists": "Fail"})).already_trained is False


@pytest.mark.parametrize("manifest", [b"[]", b"no json", b"{}"])
def test_a_published_draft_with_an_unreadable_manifest_is_another_one(
    make: MakeTask, store: LocalStore, manifest: bytes
) -> None:
    publish(store, None)
    store.publish(f"{export_path('tiny')}/{MANIFEST}", manifest)
    assert refused(make()).code is ExitCode.EXISTS


# -- Real conversations --------------------------------------------------------------------------


def require_fixtures() -> None:
    for path in (SMOLLM2, SHAREGPT):
        if not path.exists():
            pytest.skip(f"make fixtures: {path.name} is missing")


@pytest.mark.real
def test_real_conversations_are_supervised_exactly(make: MakeTask, store: LocalStore) -> None:
    """The first 2,000 rows of ShareGPT: what is supervised is what the assistant said, word for word."""
    require_fixtures()
    rows = 2000
    fields = {"maxSamples": rows, "maxLength": 8192, "evalFraction": 0.01}
    task = make(source=SHAREGPT, model=SMOLLM2, data=fields, train={"rowTokens": 8192, "tokensPerBatch": 65536})
    found = prepared(task)
    assert found.counts.rows == rows == found.counts.documents + sum(found.counts.skipped.values())
    dataset = PreparedDataset.open(store, found.prepared)
    assert dataset.manifest.mask.turns_not_located == dataset.manifest.mask.turns_without_stop == 0
    decode = decoder(SMOLLM2)
    source = [row for row, _ in zip(read_rows(SHAREGPT), range(rows), strict=False)]
    checked = 0
    for doc_id, row in enumerate(dataset.rows.tolist()):
        conversation = read_row(source[row])
        assert isinstance(conversation, Conversation)
        said = [f"{conversation.messages[turn].content}<|im_end|>" for turn in conversation.assistant_turns()]
        if dataset.lengths[doc_id] == 8192:
            continue
        assert supervised(dataset, decode, doc_id) == said
        checked += len(said)
    assert checked > 6000


STARTER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.real
def test_the_whole_of_sharegpt_fits_into_memory(make: MakeTask, tmp_path: Path) -> None:
    """125 MB, cut off in its last row, in a process of its own: peak memory, and every row accounted for."""
    require_fixtures()
    task = make(
        source=SHAREGPT,
        model=SMOLLM2,
        data={"maxLength": 4096, "evalFraction": 0.01},
        draft={"vocabSize": 8192},
        train={"rowTokens": 8192, "tokensPerBatch": 65536},
    )
    file = tmp_path / "task.json"
    file.write_text(task.model_dump_json(by_alias=True))
    stage = [sys.executable, "-m", "draftyard_trainer.prepare", "--task", str(file)]
    environment = {**os.environ, ENV_STATE_DIR: str(tmp_path / "state")}
    # started by a small process: the kernel counts what the starter holds as the peak of what it starts
    starter = [sys.executable, "-c", STARTER, *stage]
    ended = subprocess.run(starter, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    result = StageResult.model_validate_json((tmp_path / "state" / RESULT_FILE).read_bytes())
    assert ended.returncode == 0, result.message
    assert result.prepared is not None
    counts = result.prepared.counts
    assert counts.rows == 17_672
    assert counts.skipped["truncated"] == 1
    assert counts.documents + sum(counts.skipped.values()) == counts.rows
    peak_kib = int(ended.stdout.splitlines()[-1])
    assert 0.2e9 < peak_kib * 1024 < 1.5e9


@pytest.mark.real
def test_the_cut_off_end_of_sharegpt_is_one_row() -> None:
    require_fixtures()
    rows = sum(1 for row in read_rows(SHAREGPT) if not isinstance(row, BadRow))
    assert rows == 17_671
