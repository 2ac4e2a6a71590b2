"""The stage `regenerate`: whose answers they are, what decides them, and that it may die at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_SHARD, MANIFEST, Stage, conversation_shard_path
from draftyard_api.progress import LOW_ON_POLICY, Regenerated, StageResult
from draftyard_api.spec import Data, DataSource, Draft, Export, FileSource, OwnAnswers, Target, Train
from draftyard_api.task import ConversationsRef, PrepareTask, RegenerateTask, TrainTask
from draftyard_trainer import commands, testing
from draftyard_trainer.data.conversations import ConversationManifest, ConversationRows, ConversationShard, decoded
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states.testing import FailingStore, PulledPlugError
from draftyard_trainer.prepare import prepare
from draftyard_trainer.regenerate import dialogues_of, plan_work, regenerate, regenerate_in, shard_number
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.speaker import TargetSpeaker
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate
from draftyard_trainer.train import train

ROWS, PART_ROWS = 11, 4
"""Three parts, the last one smaller."""
LIMIT = 9
STOP = 2


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.speak_plainly(testing.write_target(tmp_path_factory.mktemp("target")))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.write_conversations(tmp_path_factory.mktemp("chat") / "chat.json", ROWS)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "workspace")


@pytest.fixture
def make(target: Path, chat: Path):
    """Builds tasks."""

    def build(
        store: LocalStore, source: Path = chat, model: Path = target, temperature: float = 0.0, **changes: Any
    ) -> RegenerateTask:
        own = OwnAnswers(max_new_tokens=changes.pop("limit", LIMIT), temperature=temperature)
        data = Data(
            source=DataSource(file=FileSource(uri=f"file://{source}")), max_length=changes.pop("max_length", 256),
            max_samples=changes.pop("max_samples", None), regenerate=own,
        )  # fmt: skip
        fields = {"seed": 7, "num_shards": 1, "shard": 0} | changes
        target = Target(model=f"file://{model}", dtype="float32")
        return RegenerateTask(run="tiny", uid="u", workspace=store.uri, target=target, data=data, **fields)

    return build


def run(store: LocalStore, task: RegenerateTask, part_rows: int = PART_ROWS) -> Regenerated:
    return regenerated(regenerate_in(store, task, Reporter(Stage.REGENERATE), part_rows))


def regenerated(result: StageResult) -> Regenerated:
    assert result.regenerated is not None
    return result.regenerated


def rows_of(store: LocalStore, made: Regenerated) -> ConversationRows:
    return ConversationRows.open(store, ConversationsRef(key=made.key, num_shards=made.shards))


def conversations(store: LocalStore, made: Regenerated) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows_of(store, made).lines()]


def answers(line: dict[str, Any]) -> list[str]:
    return [message["content"] for message in line["messages"] if message["role"] == "assistant"]


def shard_of(store: LocalStore, made: Regenerated) -> ConversationShard:
    return ConversationShard(store, conversation_shard_path(made.key, made.shards, made.shard))


def manifest_of(store: LocalStore, made: Regenerated) -> ConversationManifest:
    manifest = shard_of(store, made).manifest()
    assert manifest is not None
    return manifest


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


# -- Whose answers they are --------------------------------------------------------------------------


def test_greedy_answers_are_those_of_a_loop_without_a_cache(make, store, target, chat) -> None:
    """Token by token, every turn after the target's own earlier answers, whole prompts each time."""
    lines = conversations(store, run(store, make(store)))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    given = json.loads(chat.read_text())
    assert [line["id"] for line in lines] == [row["id"] for row in given]
    for line, row in zip(lines[:4], given, strict=False):
        said = []
        for turn in row["conversations"]:
            if turn["from"] == "human":
                said.append({"role": "user", "content": turn["value"]})
                continue
            text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            start = len(ids)
            while len(ids) - start < LIMIT and ids[-1] != STOP:
                with torch.no_grad():
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            said.append(
                {"role": "assistant", "content": tokenizer.decode([token for token in ids[start:] if token != STOP])}
            )
            if ids[-1] != STOP:
                said[-1]["unfinished"] = True
        assert line["messages"] == said


def test_a_shard(make, store) -> None:
    reporter = Reporter(Stage.REGENERATE)
    result = regenerate(make(store), reporter)
    made, manifest = regenerated(result), manifest_of(store, regenerated(result))
    lines = conversations(store, made)
    assert (made.conversations, made.answers, made.skipped) == (ROWS, 2 * ROWS, {})
    assert made.unfinished == sum(message.get("unfinished", False) for line in lines for message in line["messages"])
    assert 0 < made.tokens <= 2 * ROWS * LIMIT
    assert (result.bytes, len(manifest.parts), manifest.counts.respelled) == (manifest.bytes, 1, 0)
    assert (reporter.progress.done, reporter.progress.total, reporter.progress.unit) == (ROWS, ROWS, "conversations")


def test_what_users_and_systems_say_is_kept(make, store, tmp_path) -> None:
    system = {"role": "system", "content": "Be brief."}
    asked = [{"role": "user", "content": "why"}, {"role": "user", "content": "really"}]
    row = {"id": "a", "messages": [system, *asked, {"role": "assistant", "content": "old"}, asked[0]]}
    (line,) = conversations(store, run(store, make(store, written(tmp_path / "rows.json", [row]))))
    assert [message["content"] for message in line["messages"] if message["role"] != "assistant"] == [
        "Be brief.", "why", "really", "why",
    ]  # fmt: skip
    assert len(answers(line)) == 1
    assert answers(line) != ["old"]


def test_rows_that_cannot_be_answered_keep_their_place_and_their_reason(make, store, tmp_path) -> None:
    good = {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "old"}]}
    long = {"messages": [{"role": "user", "content": "Z" * 300}, {"role": "assistant", "content": "old"}]}
    rows = [good, {"messages": []}, {"text": "<|im_start|>user\nwhy<|im_end|>\n"}, long, 3, good]
    made = run(store, make(store, written(tmp_path / "rows.json", rows)))
    reasons = [line.get("skipped", "") for line in conversations(store, made)]
    assert reasons == ["", "empty", "rendered", "tooLong", "notAnObject", ""]
    assert made.skipped == {"empty": 1, "notAnObject": 1, "rendered": 1, "tooLong": 1}
    assert made.conversations == 2


def test_a_conversation_ends_where_a_tool_answered_somebody_else(make, store, tmp_path) -> None:
    call = {"function": {"name": "look", "arguments": "{}"}}
    row = {"messages": [
        {"role": "user", "content": "why"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42"}, {"role": "assistant", "content": "42"},
    ]}  # fmt: skip
    (line,) = conversations(store, run(store, make(store, written(tmp_path / "rows.json", [row]))))
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
    assert "tool_calls" not in line["messages"][1]


def test_a_conversation_ends_where_nothing_more_fits(make, store) -> None:
    """No answer goes beyond data.maxLength, where nothing would be learned from it."""
    short, whole = run(store, make(store, max_length=40)), run(store, make(store))
    assert short.answers < whole.answers
    tokenizer = plan_work(store, make(store)).tokenizer
    for line in conversations(store, short):
        text = tokenizer.apply_chat_template(line["messages"], tokenize=False)
        assert len(tokenizer(text.removesuffix("<|im_end|>\n"), add_special_tokens=False)["input_ids"]) <= 40


def test_max_samples_are_read(make, store) -> None:
    assert len(conversations(store, run(store, make(store, max_samples=3)))) == 3


# -- What decides them -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_any_number_of_shards_gives_the_same_conversations(make, store, temperature) -> None:
    one = run(store, make(store, temperature=temperature))
    three = [run(store, make(store, temperature=temperature, num_shards=3, shard=shard)) for shard in range(3)]
    assert rows_of(store, three[0]).sha256() == rows_of(store, one).sha256()
    assert sum(made.answers for made in three) == one.answers


def test_drawn_answers_do_not_depend_on_what_else_is_in_the_batch(make, store) -> None:
    work = plan_work(store, make(store, temperature=1.0))
    captured = CapturedTarget.load(work.files, "float32", ())
    said = []
    for batch in (1, 3, 16):
        speaker = TargetSpeaker(captured, work.tokenizer, work.key.stop_ids, 1.0, 7, lambda: None, batch)
        questions = [
            question for part in dialogues_of(work) for dialogue in part if (question := dialogue.ask(work.manner))
        ]
        said.append([reply.message.content for reply in speaker.answer(questions) if reply])
    assert said[0] == said[1] == said[2]
    assert len(set(said[0])) == ROWS


def test_another_seed_draws_other_answers_and_changes_no_greedy_ones(make, store) -> None:
    drawn = [run(store, make(store, temperature=1.0, seed=seed)) for seed in (1, 2)]
    assert drawn[0].key != drawn[1].key
    assert rows_of(store, drawn[0]).sha256() != rows_of(store, drawn[1]).sha256()
    assert run(store, make(store, seed=1)).key == run(store, make(store, seed=2)).key


def test_everything_that_decides_them_names_their_folder(make, store, tmp_path) -> None:
    other = testing.speak_plainly(testing.write_target(tmp_path / "other", seed=1))
    rows = testing.write_conversations(tmp_path / "rows.json", 3)
    tasks = [
        make(store), make(store, rows), make(store, model=other), make(store, temperature=0.5), make(store, limit=8),
        make(store, max_length=64), make(store, max_samples=5),
    ]  # fmt: skip
    keys = [plan_work(store, task).key for task in tasks]
    assert len({key.name() for key in keys}) == len(tasks)
    assert plan_work(store, make(store, num_shards=5, shard=3)).key == keys[0]


# -- It may die at any moment ------------------------------------------------------------------------


def files(store: LocalStore, made: Regenerated) -> dict[str, bytes]:
    """Everything of a shard but the times in its manifest."""
    folder = shard_of(store, made).folder
    found = {name: store.read(name) for name in store.list(folder) if not name.endswith(MANIFEST)}
    manifest = manifest_of(store, made).model_dump(exclude={"seconds", "tokens_per_second"})
    return found | {MANIFEST: json.dumps(manifest).encode()}


def test_the_plug_is_pulled_after_every_operation(make, tmp_path) -> None:
    """Killed after k writing operations, for every k: a restart gives the same shard, byte for byte."""
    whole = LocalStore(tmp_path / "whole")
    expected = files(whole, run(whole, make(whole)))
    assert len(expected) == 4
    survived = 0
    while True:
        failing = FailingStore(tmp_path / f"k{survived}", survived)
        try:
            run(failing, make(failing))
        except PulledPlugError:
            again = LocalStore(failing.root)
            assert files(again, run(again, make(again))) == expected
        else:
            break
        survived += 1
    # key, three parts, manifest: two moments each
    assert survived == 2 * 5


class Stopping(Reporter):
    """Asks for a stop, as SIGTERM does, in the middle of a part."""

    def __init__(self, looks: int) -> None:
        super().__init__(Stage.REGENERATE)
        self.looks = looks

    def advance(self, amount: int = 1) -> None:
        self.looks -= 1
        self.stop_requested = self.looks < 0
        super().advance(amount)


def test_a_stop_is_heard_between_two_tokens_and_keeps_finished_parts(make, store) -> None:
    with pytest.raises(Failure) as caught:
        regenerate_in(store, make(store), Stopping(2 * LIMIT + 4), PART_ROWS)
    assert caught.value.code is ExitCode.INTERRUPTED
    (part,) = [name for name in store.list("conversations") if name.endswith(".jsonl")]
    before = store.fetch(part).stat().st_mtime_ns
    made = run(store, make(store))
    assert made.conversations == ROWS
    assert store.fetch(part).stat().st_mtime_ns == before


def test_a_second_run_changes_nothing_and_loads_no_target(make, store, monkeypatch) -> None:
    first = run(store, make(store))
    before = {name: store.fetch(name).stat().st_mtime_ns for name in store.list("")}
    monkeypatch.setattr(CapturedTarget, "load", None)
    assert run(store, make(store)) == first
    assert {name: store.fetch(name).stat().st_mtime_ns for name in store.list("")} == before


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_part_is_found_and_made_again_alone(make, store, damage) -> None:
    made = run(store, make(store))
    expected = files(store, made)
    name = f"{shard_of(store, made).folder}/{manifest_of(store, made).parts[1].file}"
    content = bytearray(store.read(name))
    content[40] ^= 1
    store.delete(name)
    if damage == "flipped":
        store.publish(name, bytes(content))
    rows = rows_of(store, made)
    with pytest.raises(Failure, match="regenerate has to run again") as caught:
        rows.sha256()
    assert caught.value.code is ExitCode.STALE_INPUT
    with pytest.raises(Failure, match="the shard is not complete"):
        rows_of(store, made)
    kept = {file: store.fetch(file).stat().st_mtime_ns for file in store.list("conversations") if "part-" in file}
    assert len(kept) == 2
    assert files(store, run(store, make(store))) == expected
    assert {file: store.fetch(file).stat().st_mtime_ns for file in kept} == kept


def test_what_another_writer_left_is_tidied(make, store) -> None:
    made = run(store, make(store))
    stray = f"{shard_of(store, made).folder}/part-001.0123456789abcdef.jsonl"
    store.publish(stray, b"{}\n")
    run(store, make(store))
    assert not store.exists(stray)


def test_the_shard_comes_from_the_pod(make, store, monkeypatch) -> None:
    monkeypatch.setenv(ENV_SHARD, "2")
    assert shard_number(make(store, num_shards=3, shard=None)) == 2
    with pytest.raises(Failure, match="given 3; accepted: 0 to 2"):
        shard_number(make(store, num_shards=3, shard=3))


# -- What cannot be answered -------------------------------------------------------------------------


def test_numbers_that_are_not_finite_end_the_stage(make, store, target, tmp_path) -> None:
    folder = testing.write_target(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Failure, match=r"target\.dtype: given float32; no logits") as caught:
        run(store, make(store, model=folder))
    assert caught.value.code is ExitCode.BAD_DATA


# -- What prepare makes of them ----------------------------------------------------------------------


def prepare_task(store: LocalStore, task: RegenerateTask, made: Regenerated | None) -> PrepareTask:
    ref = ConversationsRef(key=made.key, num_shards=made.shards) if made else None
    return PrepareTask(
        run="tiny", uid="u", workspace=store.uri, target=task.target, mode="Online",
        draft=Draft(vocab_size=256, aux_layers=(2, 4, 5)), data=task.data.model_copy(update={"eval_fraction": 0.2}),
        conversations=ref, train=Train(row_tokens=256, tokens_per_batch=256, epochs=1, ttt_steps=2), evaluates=False,
        export=Export(), frozen_sha256="0" * 64,
    )  # fmt: skip


def prepared(store: LocalStore, task: RegenerateTask, made: Regenerated | None) -> Any:
    return prepare(prepare_task(store, task, made), Reporter(Stage.PREPARE)).prepared


def supervised(dataset: PreparedDataset, doc_id: int) -> Iterator[list[int]]:
    document = dataset.document(doc_id)
    for start, length in document.spans:
        yield document.tokens[start : start + length].tolist()


def test_masks_cover_what_was_said_and_no_end_that_was_not(make, store, target) -> None:
    task = make(store)
    made = run(store, task)
    dataset = PreparedDataset.open(store, prepared(store, task, made).prepared)
    lines, tokenizer = conversations(store, made), AutoTokenizer.from_pretrained(target)
    assert {bool(message.get("unfinished")) for line in lines for message in line["messages"][1::2]} == {True, False}
    assert sum(dataset.document(number).mask().sum() for number in range(len(dataset))) == made.tokens
    for number, line in enumerate(lines):
        expected = [
            tokenizer(message["content"], add_special_tokens=False)["input_ids"]
            + ([] if message.get("unfinished") else [STOP])
            for message in line["messages"]
            if message["role"] == "assistant"
        ]
        assert list(supervised(dataset, number)) == expected


def test_the_split_is_that_of_the_rows(make, store) -> None:
    task = make(store)
    own = PreparedDataset.open(store, prepared(store, task, run(store, task)).prepared)
    given = PreparedDataset.open(store, prepared(store, task, None).prepared)
    assert own.held_out_ids.tolist() == given.held_out_ids.tolist()
    assert own.manifest.key.folder() != given.manifest.key.folder()


def test_rows_without_an_answer_are_counted_as_they_would_have_been(make, store, tmp_path) -> None:
    good = json.loads(testing.write_conversations(tmp_path / "good.json", 8).read_text())
    task = make(store, written(tmp_path / "rows.json", [*good, {"messages": []}, 3]))
    counts = prepared(store, task, run(store, task)).counts
    assert (counts.rows, counts.documents, counts.skipped) == (10, 8, {"empty": 1, "notAnObject": 1})


def test_the_fingerprint_is_that_of_what_decides_them(make, store, tmp_path) -> None:
    """Deleted and made again the run is found, and any number of shards shares the tokens."""
    one, two = prepared(store, make(store), run(store, make(store))), None
    for shard in range(2):
        made = run(store, make(store, num_shards=2, shard=shard))
    two = prepared(store, make(store), made)
    assert (two.fingerprint, two.prepared) == (one.fingerprint, one.prepared)
    drawn = run(store, make(store, temperature=0.7))
    assert prepared(store, make(store), drawn).fingerprint != one.fingerprint


def test_without_all_shards_regenerate_runs_again(make, store) -> None:
    made = run(store, make(store, num_shards=2, shard=1))
    with pytest.raises(Failure, match="shard-00000: the shard is not complete; regenerate has to run again") as caught:
        prepared(store, make(store), made)
    assert caught.value.code is ExitCode.STALE_INPUT


def test_training_finds_its_own_text_on_policy(make, store) -> None:
    """And the text that somebody else wrote not."""
    task = make(store, limit=64)
    shares = []
    for name, made in (("own", run(store, task)), ("given", None)):
        found = prepared(store, task, made)
        wanted = prepare_task(store, task, made)
        trained = train(
            TrainTask(
                run=name, uid="u", workspace=store.uri, mode="Online", target=task.target, draft=wanted.draft,
                aux_layers=(2, 4, 5), prepared=found.prepared, train=wanted.train, publishes=False, export=Export(),
                fingerprint=found.fingerprint,
            ),
            Reporter(Stage.TRAIN),
        ).trained  # fmt: skip
        assert trained is not None
        assert trained.on_policy is not None
        shares.append(float(trained.on_policy))
    # two rows of every answer ask for what the template writes behind it
    assert shares[0] > LOW_ON_POLICY
    assert shares[1] < 0.2


def test_stored_lines_are_read_as_they_were_written(make, store) -> None:
    made = run(store, make(store))
    shard, manifest = shard_of(store, made), manifest_of(store, made)
    contents = [shard.content(part) for part in manifest.parts]
    assert np.array([len(decoded(content)) for content in contents if content]).tolist() == [4, 4, 3]
    assert locate(make(store).target).identity == made.target_commit


# -- Looking and checking ----------------------------------------------------------------------------


def test_what_was_said_is_shown(make, store, capsys) -> None:
    made = run(store, make(store, num_shards=2, shard=1))
    assert commands.inspect([str(store.root)]) == ExitCode.OK
    said = capsys.readouterr().out
    for words in (f"conversations/{made.key}/s2", "1 of 2 complete", f"{made.answers} of {made.tokens} tokens"):
        assert words in said


@pytest.mark.parametrize("damage", ["part", "manifest"])
def test_verify_finds_what_is_damaged_and_takes_it_back(make, store, damage) -> None:
    made = run(store, make(store))
    assert commands.verify([str(store.root)]) == ExitCode.OK
    part = manifest_of(store, made).parts[1].file
    name = f"{shard_of(store, made).folder}/{part if damage == 'part' else MANIFEST}"
    content = bytearray(store.read(name))
    content[-3] ^= 1
    store.publish(name, bytes(content))
    assert commands.verify([str(store.root)]) == ExitCode.STALE_INPUT
    assert commands.verify([str(store.root), "--take-back"]) == ExitCode.STALE_INPUT
    run(store, make(store))
    assert commands.verify([str(store.root)]) == ExitCode.OK
