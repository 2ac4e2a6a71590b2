"""The stage `evaluate`, end to end on a tiny target: answers, chain, report, gate; killed and started again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import EVALUATION, PUBLISHED, Stage, export_path, train_path
from draftyard_api.progress import Prepared
from draftyard_api.reasons import Reason
from draftyard_api.spec import (
    Data,
    DataSource,
    Draft,
    Engine,
    Evaluate,
    Export,
    FileSource,
    PromptFile,
    Target,
    Train,
    Tree,
)
from draftyard_api.task import EvaluateTask, PrepareTask
from draftyard_trainer import testing
from draftyard_trainer.answers import ANSWERS, BATCH, Answer, Answers, choose_prompts
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.draft.config import derive
from draftyard_trainer.draft.manifest import Evaluation, Published, Seconds, Settings, TeacherForced
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import tiny_provenance
from draftyard_trainer.engine import Asked, Identity, ServedAnswer
from draftyard_trainer.evaluate import batches, evaluate, explain
from draftyard_trainer.export import Evidence, export_draft, target_facts
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.samples import SAMPLES, pieces
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate

RUN = "tiny"
FEW = Evaluate(draft_tokens=3, max_prompts=6, max_new_tokens=10)


@dataclass(frozen=True)
class World:
    """A workspace in which everything before `evaluate` is done."""

    store: LocalStore
    task: EvaluateTask

    def path(self, name: str) -> Path:
        return self.store.root / name

    @property
    def report(self) -> Path:
        return self.path(f"{export_path(RUN)}/{EVALUATION}")

    @property
    def published(self) -> Path:
        return self.path(f"{export_path(RUN)}/{PUBLISHED}")

    @property
    def answers(self) -> Path:
        return self.path(f"{train_path(RUN)}/{ANSWERS}")

    def asking(self, **changes: Any) -> EvaluateTask:
        return self.task.model_copy(update={"evaluate": FEW.model_copy(update=changes)})

    def without_target(self) -> EvaluateTask:
        """A task that fails as soon as anybody opens the target."""
        return self.task.model_copy(update={"target": Target(model="file:///nowhere", dtype="float32")})


def build_world(folder: Path, family: str = "llama") -> World:
    """Prepare conversations for a tiny target, and export a random draft for it."""
    target = Target(model=f"file://{testing.write_target(folder / 'target', family)}", dtype="float32")
    source = DataSource(file=FileSource(uri=f"file://{testing.write_conversations(folder / 'chat.json', count=60)}"))
    draft_spec = Draft(vocab_size=256, aux_layers=(2, 4, 5))
    common = {"run": RUN, "uid": "u", "workspace": f"file://{folder / 'workspace'}", "target": target}
    task = PrepareTask(
        **common,
        mode="Online",
        draft=draft_spec,
        data=Data(source=source, max_length=64, eval_fraction=0.4),
        train=Train(row_tokens=64, tokens_per_batch=64),
        evaluates=True,
        export=Export(),
        frozen_sha256="0" * 64,
    )
    prepared = prepare(task, Reporter(Stage.PREPARE)).prepared
    assert prepared is not None
    store = LocalStore(folder / "workspace")
    export_random(store, target, draft_spec, prepared)
    judged = EvaluateTask(
        **common, prepared=prepared.prepared, evaluate=FEW, export=Export(), fingerprint=prepared.fingerprint
    )
    return World(store, judged)


def export_random(store: LocalStore, target: Target, spec: Draft, prepared: Prepared, seed: int = 0) -> str:
    """An export of a draft that was never trained."""
    dataset, files = PreparedDataset.open(store, prepared.prepared), locate(target)
    captured = CapturedTarget.load(files, target.dtype, prepared.aux_layers)
    config = derive(files.config, spec, dataset.vocabulary.size, prepared.aux_layers)
    draft = DraftModel(config)
    draft.set_vocabulary(dataset.vocabulary)
    draft.initialise(seed)
    (sample,) = captured.capture([dataset.document(0)])
    facts = target_facts(config, files.config, dataset.manifest.key, target.dtype)
    evidence = Evidence(facts, sample, captured.head.embed, ttt_steps=3)
    provenance = tiny_provenance(RUN, prepared.fingerprint)
    return export_draft(store, export_path(RUN), draft, provenance, evidence)


@pytest.fixture
def world(tmp_path) -> World:
    return build_world(tmp_path)


def reporter() -> Reporter:
    return Reporter(Stage.EVALUATE)


def test_a_random_draft_is_measured_and_published_without_a_gate(world):
    result = evaluate(world.task, reporter())
    report = Evaluation.model_validate_json(world.report.read_bytes())
    assert result.exit_code == ExitCode.OK
    assert result.acceptance is not None
    assert (result.acceptance.source, result.acceptance.prompts, result.acceptance.draft_tokens) == ("Measured", 6, 3)
    # 256 proposals, one of them right: a random draft is almost never accepted.
    assert 1.0 <= report.length < 1.1
    assert result.acceptance.length == f"{report.length:.2f}"
    assert report.length == 1 + report.accepted / report.rounds
    assert report.length == pytest.approx(1 + sum(report.per_position))
    assert report.interval[0] <= report.length <= report.interval[1]
    assert report.rounds + report.accepted == pytest.approx(report.reply_tokens - report.prompts, abs=report.prompts)
    assert report.manifest_sha256 == result.manifest_sha256
    published = Published.model_validate_json(world.published.read_bytes())
    assert (published.manifest_sha256, published.acceptance) == (result.manifest_sha256, result.acceptance)
    assert result.published == f"file://{world.path(export_path(RUN))}"


def test_a_few_replies_are_kept_in_words_with_what_was_accepted(world):
    evaluate(world.task, reporter())
    report = Evaluation.model_validate_json(world.report.read_bytes())
    answers = {answer.doc_id: answer for answer in Answers.model_validate_json(world.answers.read_bytes()).answers}
    tokenizer = load_tokenizer(locate(world.task.target).path, "tiny", trust_remote_code=False)
    assert 0 < len(report.samples) <= min(SAMPLES, report.prompts)
    for sample in report.samples:
        reply = answers[sample.doc_id].reply
        assert len(sample.pieces) == len(reply)
        assert "".join(sample.pieces) == tokenizer.decode(list(reply))
        assert tokenizer.decode(list(answers[sample.doc_id].prompt)).endswith(sample.prompt)
        # The first token comes from prefill, and the last round may end with an accepted one.
        assert sum(sample.accepted) + len(sample.accepted) in (len(reply) - 1, len(reply))
    assert sum(map(len, (sample.accepted for sample in report.samples))) <= report.rounds


def test_characters_of_several_tokens_are_in_the_last_of_them():
    tokens = [bytes([byte]) for byte in "añ€ b\N{SMILING FACE WITH OPEN MOUTH}".encode()]

    def decode(ids):
        return b"".join(tokens[each] for each in ids).decode(errors="replace")

    found = pieces(range(len(tokens)), decode)
    assert found == ("a", "", "ñ", "", "", "€", " ", "b", "", "", "", "\N{SMILING FACE WITH OPEN MOUTH}")
    cut = pieces(range(len(tokens) - 1), decode)
    assert (cut[:11], cut[11:]) == ((*found[:10], "\N{REPLACEMENT CHARACTER}"), ())


@pytest.mark.parametrize("family", sorted(set(testing.FAMILIES) - {"llama"}))
def test_every_family_of_targets_is_judged(tmp_path, family):
    world = build_world(tmp_path, family)
    result = evaluate(world.asking(max_prompts=2, max_new_tokens=6), reporter())
    assert result.acceptance is not None
    assert result.acceptance.prompts == 2
    assert world.published.exists()


def test_answers_are_greedy_and_end_at_the_stop_token_or_the_limit(world):
    evaluate(world.task, reporter())
    answers = Answers.model_validate_json(world.answers.read_bytes())
    dataset = PreparedDataset.open(world.store, world.task.prepared)
    assert len(answers.answers) == 6
    for answer in answers.answers:
        assert dataset.held_out[answer.doc_id]
        assert list(answer.prompt) == dataset.prompt(answer.doc_id).tolist()
        stops = [token in answers.stop_ids for token in answer.reply]
        assert not any(stops[:-1])
        assert stops[-1] or len(answer.reply) == 10
    captured = CapturedTarget.load(locate(world.task.target), "float32", (2, 4, 5))
    (sample,) = captured.capture([answers.answers[0].document()])
    # The label at a row is the target's most likely next token, and rows run from the last prompt token on.
    assert sample.tok[: len(answers.answers[0].reply)].tolist() == list(answers.answers[0].reply)


def test_a_missed_gate_keeps_the_export_unpublished(world):
    with pytest.raises(Failure) as caught:
        evaluate(world.asking(min_acceptance_length=2.5), reporter())
    assert (caught.value.code, caught.value.reason) == (ExitCode.GATE_MISSED, Reason.ACCEPTANCE_TOO_LOW)
    assert caught.value.message.startswith("acceptance length 1.0")
    assert "required 2.5 (6 prompts, 3 draft tokens)" in caught.value.message
    assert caught.value.message.endswith("; the export is kept, unpublished")
    assert world.report.exists()
    assert not world.published.exists()


def test_finished_work_is_not_done_twice(world):
    first = evaluate(world.task, reporter())
    report = world.report.read_bytes()
    again = evaluate(world.without_target(), reporter())
    assert (again.acceptance, again.manifest_sha256) == (first.acceptance, first.manifest_sha256)
    assert world.report.read_bytes() == report


def test_a_report_of_another_gate_is_still_the_measurement(world):
    evaluate(world.task, reporter())
    judged = FEW.model_copy(update={"min_acceptance_length": 3.0})
    gated = world.without_target().model_copy(update={"evaluate": judged})
    with pytest.raises(Failure, match="required 3"):
        evaluate(gated, reporter())


@pytest.mark.parametrize("changes", [{"draft_tokens": 2}, {"max_prompts": 5}, {"max_new_tokens": 9}], ids=str)
def test_other_settings_are_measured_anew(world, changes):
    evaluate(world.task, reporter())
    evaluate(world.asking(**changes), reporter())
    settings = Evaluation.model_validate_json(world.report.read_bytes()).settings
    assert {name: getattr(settings, name) for name in changes} == changes


def test_a_stop_keeps_finished_answers_and_the_next_attempt_goes_on(world, tmp_path):
    wanted = world.asking(max_prompts=100)
    stopping = reporter()
    stopping.stop_requested = True
    with pytest.raises(Failure) as caught:
        evaluate(wanted, stopping)
    assert caught.value.code == ExitCode.INTERRUPTED
    assert not world.report.exists()
    kept = Answers.model_validate_json(world.answers.read_bytes()).answers
    held_out = len(PreparedDataset.open(world.store, world.task.prepared).held_out_ids)
    assert len(kept) == BATCH < held_out
    # What was kept is used, not asked again: a spoilt answer stays spoilt.
    spoilt = kept[0].model_copy(update={"reply": (5, 6, 7)})
    file = Answers.model_validate_json(world.answers.read_bytes())
    world.answers.write_text(file.model_copy(update={"answers": (spoilt, *kept[1:])}).model_dump_json(by_alias=True))
    evaluate(wanted, reporter())
    found = {answer.doc_id: answer for answer in Answers.model_validate_json(world.answers.read_bytes()).answers}
    assert found[spoilt.doc_id].reply == (5, 6, 7)
    assert len(found) == held_out


def test_answers_under_other_conditions_are_asked_again(world):
    evaluate(world.task, reporter())
    file = json.loads(world.answers.read_text())
    file["dtype"] = "bfloat16"
    for answer in file["answers"]:
        answer["reply"] = [5]
    world.answers.write_text(json.dumps(file))
    world.report.unlink()
    evaluate(world.task, reporter())
    assert all(len(answer["reply"]) > 1 for answer in json.loads(world.answers.read_text())["answers"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda world: world.store.delete_folder(export_path(RUN)), "no MANIFEST.json; train must run again"),
        (lambda world: world.path(f"{export_path(RUN)}/config.json").write_text("{}"), "is not what its manifest says"),
    ],
    ids=["gone", "changed"],
)
def test_without_a_whole_export_train_must_run_again(world, spoil: Callable[[World], Any], message):
    spoil(world)
    with pytest.raises(Failure, match=message) as caught:
        evaluate(world.task, reporter())
    assert caught.value.code == ExitCode.STALE_INPUT


# -- What is asked, and how ----------------------------------------------------------------------------------------


def prompt_file(folder: Path) -> PromptFile:
    """Three questions of which one has two turns, and a row that asks nothing."""
    rows = [
        {"prompt": testing.words(5, seed=1)},
        {"turns": [testing.words(6, seed=2), testing.words(4, seed=3)]},
        {"answer": "nobody asked"},
        {"messages": [{"role": "user", "content": testing.words(7, seed=4)}, {"role": "assistant", "content": "no"}]},
    ]
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptFile(uri=f"file://{path}")


def report_of(world: World) -> Evaluation:
    return Evaluation.model_validate_json(world.report.read_bytes())


def test_sets_are_told_apart_and_together_and_the_first_one_is_judged(world, tmp_path):
    task = world.asking(prompt_sets=("file", "heldOut"), prompt_file=prompt_file(tmp_path))
    result = evaluate(task, reporter())
    report = report_of(world)
    assert [one.name for one in report.sets] == ["file", "heldOut"]
    own, held_out = report.sets
    # Three questions, and a second one behind the answer to the first.
    assert (own.prompts, own.skipped_prompts, held_out.prompts) == (4, {"empty": 1}, 6)
    assert (report.length, report.prompts, report.skipped_prompts) == (own.length, 4, {"empty": 1})
    assert report.together is not None
    assert report.together.rounds == own.rounds + held_out.rounds
    assert report.together.prompts == 10
    for one in (*report.sets, report.together):
        assert one.interval[0] <= one.length <= one.interval[1]
        assert len(one.per_position_intervals) == len(one.per_position) == 3
        pairs = zip(one.per_position, one.per_position_intervals, strict=True)
        assert all(low <= share <= high for share, (low, high) in pairs)
    assert f"heldOut {held_out.length:.2f} (6 prompts)" in result.message
    assert result.acceptance is not None
    assert result.acceptance.prompts == 4


def test_a_second_question_holds_the_answer_to_the_first(world, tmp_path):
    evaluate(world.asking(prompt_sets=("file",), prompt_file=prompt_file(tmp_path)), reporter())
    file = Answers.model_validate_json(world.answers.with_name("answers-file.json").read_bytes())
    answers = {answer.doc_id: answer for answer in file.answers}
    assert (file.prompt_set, sorted(answers)) == ("file", [0, 2, 3, 6])
    tokenizer = load_tokenizer(locate(world.task.target).path, "tiny", trust_remote_code=False)
    first, second = answers[2], answers[3]
    said = tokenizer.decode(list(first.reply), skip_special_tokens=True)
    asked = [tokenizer.decode(list(one.prompt)) for one in (first, second)]
    question = f"<|im_end|>\n<|im_start|>user\n{testing.words(4, seed=3)}<|im_end|>\n<|im_start|>assistant\n"
    assert asked[1] == f"{asked[0]}{said}{question}"


def test_other_prompts_in_the_file_are_measured_anew(world, tmp_path):
    task = world.asking(prompt_sets=("file",), prompt_file=prompt_file(tmp_path))
    evaluate(task, reporter())
    before = report_of(world)
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": testing.words(9, seed=8)}) + "\n")
    evaluate(task, reporter())
    assert report_of(world).settings.prompt_file_sha256 != before.settings.prompt_file_sha256
    assert report_of(world).prompts == 1


def test_another_template_than_the_data_s_sends_back_to_prepare(world, tmp_path):
    task = world.asking(prompt_sets=("file",), prompt_file=prompt_file(tmp_path))
    with pytest.raises(Failure, match="its chat template is not the one of the prepared data") as caught:
        evaluate(task.model_copy(update={"chat_template": "llama3"}), reporter())
    assert caught.value.code == ExitCode.STALE_INPUT


def test_a_set_without_room_for_an_answer_is_bad_data(world, tmp_path):
    task = world.asking(prompt_sets=("file",), prompt_file=prompt_file(tmp_path), max_new_tokens=505)
    with pytest.raises(Failure, match=r"no row of file gives a prompt .*'tooLong': 3") as caught:
        evaluate(task, reporter())
    assert caught.value.code == ExitCode.BAD_DATA


def test_sampled_answers_are_drawn_by_the_seed(world):
    task = world.asking(temperature=1)
    evaluate(task, reporter())
    first, report = world.answers.read_bytes(), report_of(world)
    assert (report.settings.temperature, report.settings.seed) == (1.0, 42)
    world.answers.unlink()
    world.report.unlink()
    evaluate(task, reporter())
    assert world.answers.read_bytes() == first
    assert (report_of(world).rounds, report_of(world).per_position) == (report.rounds, report.per_position)
    evaluate(task.model_copy(update={"seed": 7}), reporter())
    assert world.answers.read_bytes() != first


def test_a_tree_is_judged_by_its_depth(world):
    tree = Tree(steps=4, top_k=3, draft_tokens=16)
    result = evaluate(world.asking(proposal="tree", tree=tree), reporter())
    report = report_of(world)
    assert (report.settings.draft_tokens, report.settings.tree, len(report.per_position)) == (4, tree, 4)
    assert result.message.startswith(f"acceptance length {report.length:.2f} (6 prompts, a tree of 16 tokens); ")
    published = Published.model_validate_json(world.published.read_bytes())
    assert "--speculative-eagle-topk 3 --speculative-num-draft-tokens 16" in published.serve.sglang
    assert '"num_speculative_tokens":4' in published.serve.vllm


def test_the_speed_up_follows_from_its_terms(world):
    result = evaluate(world.task, reporter())
    report = report_of(world)
    terms = report.speedup
    assert terms is not None
    assert (terms.verified_tokens, terms.draft_steps, terms.batch_size) == (4, 3, 1)
    seconds = 3 * terms.draft_seconds + terms.verify_seconds
    assert terms.value == pytest.approx(report.length * terms.target_seconds / seconds)
    assert min(terms.target_seconds, terms.verify_seconds, terms.draft_seconds) > 0
    assert f"predicted speed-up {terms.value:.2f} for one user" in result.message


def test_a_report_of_an_earlier_version_is_still_the_measurement(world):
    """Before there were sets, temperatures and trees, reports said nothing of them."""
    evaluate(world.task, reporter())
    report = json.loads(world.report.read_text())
    old = {name: value for name, value in report.items() if name not in ("sets", "together", "speedup", "engine")}
    old["settings"] = {
        name: value for name, value in report["settings"].items() if name not in ("promptSets", "tree", "seed")
    }
    world.report.write_text(json.dumps(old))
    assert evaluate(world.without_target(), reporter()).acceptance is not None


# -- An engine -----------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """An engine that answers what the target answers, and counts as if every round accepted one proposal."""

    replies: dict[tuple[int, ...], tuple[int, ...]]
    asked: list[tuple[int, ...]]
    identity: Identity
    wrong: bool = False

    def first_token(self, prompt: Sequence[int]) -> int:
        return self.replies[tuple(prompt)][0] + self.wrong

    def answer(self, prompt: Sequence[int], asked: Asked) -> ServedAnswer:
        assert (asked.max_new_tokens, asked.temperature) == (10, 0)
        self.asked.append(tuple(prompt))
        reply = self.replies[tuple(prompt)]
        rounds = len(reply) // 2
        return ServedAnswer(reply, len(reply), rounds, rounds, (rounds, 0, 0), 0.5)


@pytest.fixture
def engine(world, monkeypatch) -> Played:
    """A world whose target has answered, and an engine that is found at any address."""
    evaluate(world.task, reporter())
    world.report.unlink()
    answers = Answers.model_validate_json(world.answers.read_bytes()).answers
    played = Played({answer.prompt: answer.reply for answer in answers}, [], Identity("vllm", "0.32.0", "target", 3))
    monkeypatch.setattr("draftyard_trainer.served.connect", lambda *_: played)
    return played


ENGINE = Engine(url="http://vllm:8000")


def test_an_engine_is_measured_beside_our_prediction(world, engine):
    result = evaluate(world.asking(engine=ENGINE), reporter())
    report = report_of(world)
    assert (report.length, report.per_position, report.settings.evaluator) == (2.0, (1.0, 0.0, 0.0), "engine")
    told = report.engine
    assert told is not None
    assert (told.name, told.version, told.equal_replies) == ("vllm", "0.32.0", 1.0)
    assert told.predicted_length < 1.1
    assert told.difference == pytest.approx(2.0 / told.predicted_length - 1)
    assert told.tokens_per_second == pytest.approx(report.reply_tokens / 3.0, abs=0.1)
    # So far apart that it runs another draft: said, and left to the reader.
    assert "measured in vllm 0.32.0, +" in result.message
    assert "does it serve this draft?" in result.message
    assert len(engine.asked) == 6


def test_an_engine_of_another_model_is_refused_before_it_is_measured(world, engine):
    engine.wrong = True
    with pytest.raises(Failure, match="begins 0 of 6 answers as the target does") as caught:
        evaluate(world.asking(engine=ENGINE), reporter())
    assert caught.value.code == ExitCode.BAD_TASK
    assert engine.asked == []


def test_an_engine_that_looks_further_ahead_is_refused_before_the_target_is_loaded(world, engine):
    engine.identity = Identity("vllm", "0.32.0", "target", 5)
    with pytest.raises(Failure, match="proposes 5 steps, topK 1; accepted: 3 steps"):
        evaluate(world.asking(engine=ENGINE), reporter())


def test_no_room_for_an_answer_is_bad_data(world):
    with pytest.raises(Failure, match=r"data\.evalFraction: none of \d+ held-out documents") as caught:
        evaluate(world.asking(max_new_tokens=600), reporter())
    assert (caught.value.code, caught.value.reason) == (ExitCode.BAD_DATA, Reason.DATA_REJECTED)
    assert "'tooLong'" in caught.value.message


def test_prompts_are_chosen_by_hash_and_skipped_with_a_reason(world):
    dataset = PreparedDataset.open(world.store, world.task.prepared)
    everything = choose_prompts(dataset, 1000, 10, 512)
    assert sorted(everything.doc_ids) == dataset.held_out_ids.tolist()
    assert everything.skipped == {}
    assert choose_prompts(dataset, 4, 10, 512).doc_ids == everything.doc_ids[:4]
    lengths = {doc_id: len(dataset.prompt(doc_id)) for doc_id in everything.doc_ids}
    middle = int(np.median(list(lengths.values())))
    fitting = choose_prompts(dataset, 1000, 10, middle + 10)
    assert fitting.doc_ids == tuple(doc_id for doc_id in everything.doc_ids if lengths[doc_id] <= middle)
    assert fitting.skipped == {"tooLong": len(lengths) - len(fitting.doc_ids)}


REPORT = Evaluation(
    manifest_sha256="0" * 64,
    settings=Settings(draft_tokens=3, max_prompts=256, max_new_tokens=512),
    length=2.31,
    interval=(2.2, 2.4),
    per_position=(0.7, 0.4, 0.21),
    rounds=1000,
    accepted=1310,
    prompts=256,
    skipped_prompts={},
    reply_tokens=2400,
    teacher_forced=TeacherForced(length=2.4, per_position=(0.7, 0.45, 0.25)),
    seconds=Seconds(answering=1.0, drafting=1.0),
)

BEHIND = "(256 prompts, 3 draft tokens)"
INSIDE = "the gate lies inside the 95 % interval 2.20 to 2.40"


@pytest.mark.parametrize(
    ("length", "required", "line"),
    [
        (2.31, 2.5, f"acceptance length 2.31, required 2.5 {BEHIND}"),
        (2.31, 2.3, f"acceptance length 2.31, required 2.3 {BEHIND}; {INSIDE}"),
        (2.31, None, f"acceptance length 2.31 {BEHIND}"),
        (2.4996, 2.5, f"acceptance length 2.4996, required 2.5 {BEHIND}"),
    ],
    ids=["missed", "decided inside the interval", "no gate", "just missed, and not rounded up"],
)  # fmt: skip
def test_the_verdict_in_words(length, required, line):
    assert explain(REPORT.model_copy(update={"length": length}), required) == line


def test_batches_keep_order_and_a_long_answer_goes_alone():
    sizes = [3000, 3000, 3000, 9000, 100]
    answers = [Answer(doc_id=index, prompt=(0,), reply=(0,) * (size - 1)) for index, size in enumerate(sizes)]
    assert [[answer.doc_id for answer in batch] for batch in batches(answers)] == [[0, 1], [2], [3], [4]]
    assert list(batches([])) == []
