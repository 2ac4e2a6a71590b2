"""What a report says of runs in every state, and that looking costs little."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from report_runs import OFFLINE, ONLINE, UNJUDGED
from workshops import Workshop

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import EVALUATION, MANIFEST, METRICS, PUBLISHED, checkpoint_path, export_path, train_path
from draftyard_api.spec import Tree
from draftyard_trainer import commands
from draftyard_trainer.draft.manifest import Evaluation, SampleReply, Served
from draftyard_trainer.hidden_states.rounding import NUM_BINS, Fidelity
from draftyard_trainer.report import comparison, figures, page
from draftyard_trainer.report.costs import costs
from draftyard_trainer.report.curve import MAX_POINTS, read_curve, smooth, thin
from draftyard_trainer.report.record import Record, choose_run, read_record
from draftyard_trainer.report.rounds import replay
from draftyard_trainer.report.states import Key, ShardOf, States
from draftyard_trainer.report.verdict import judge
from draftyard_trainer.storage.local import LocalStore


@pytest.fixture
def store(workshop: Workshop, tmp_path: Path) -> LocalStore:
    """A copy of the workspace, to break."""
    shutil.copytree(workshop.store.root, tmp_path / "copy")
    return LocalStore(tmp_path / "copy")


def shown(store: LocalStore, run: str) -> str:
    """The text of a report, without scripts, styles and tags."""
    html = page.report(read_record(store, run))
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


# -- A whole run ----------------------------------------------------------------------------------------


def test_the_top_says_how_good_the_draft_is_and_how_to_serve_it(workshop: Workshop) -> None:
    report = Evaluation.model_validate_json(workshop.path(f"{export_path(OFFLINE)}/{EVALUATION}").read_bytes())
    text = shown(workshop.store, OFFLINE)
    top = text[: text.index("A dotted line")]
    low, high = report.interval
    assert f"{report.length:.2f} tokens a pass of the target 95 % interval {low:.2f} to {high:.2f}" in top
    for share in report.per_position:
        assert f"{share:.1%}" in top
    assert "Published" in top
    assert "vllm serve " in top
    assert "sglang.launch_server" in top
    assert "Measured: K = 3, 6 prompts, greedy." in top


def test_everything_that_was_recorded_is_shown(workshop: Workshop) -> None:
    text, manifest = shown(workshop.store, OFFLINE), workshop.manifest(OFFLINE)
    counts = workshop.prepared.counts
    assert f"{counts.documents} from {counts.rows} rows" in text
    assert f"{counts.train_tokens:,} tokens" in text
    assert "2 of 2 complete" in text
    assert "none, layers" in text
    assert [rule["text"] for rule in manifest["rules"] if rule["text"] not in unescape(text)] == []
    assert f"{len(manifest['rules'])} rules" in text
    names = [figure.name for figure in figures.training_figures(read_record(workshop.store, OFFLINE))]
    assert names == ["loss", "acceptance", "positions", "divergence", "rate", "speed", "gradient"]


def test_samples_are_replayed_round_by_round(workshop: Workshop) -> None:
    record = read_record(workshop.store, OFFLINE)
    assert record.evaluation is not None
    assert record.evaluation.samples
    for sample in record.evaluation.samples:
        reply = replay(sample, 3)
        assert reply.first + "".join(each.accepted + each.own for each in reply.rounds) == "".join(sample.pieces)
        assert [each.count for each in reply.rounds] == list(sample.accepted)


def test_rounds_have_a_tint_for_how_much_was_accepted() -> None:
    sample = SampleReply(doc_id=1, prompt="", pieces=("a", "b", "c", "d", "e", "f", "g"), accepted=(2, 0, 1))
    found = [(each.accepted, each.own, each.level) for each in replay(sample, 2).rounds]
    assert found == [("bc", "d", 4), ("", "e", 0), ("f", "g", 2)]


def test_costs_are_those_of_all_processes(workshop: Workshop) -> None:
    record = read_record(workshop.store, OFFLINE)
    found = {cost.stage: cost for cost in costs(record)}
    assert list(found) == ["prepare", "generate", "train", "export", "evaluate"]
    assert (found["train"].processes, found["train"].seconds) == (2, 10.0)
    assert found["train"].tokens == sum(line["tokens"] for line in workshop.metrics(OFFLINE))
    assert found["export"].bytes == sum(
        path.stat().st_size for path in workshop.path(export_path(OFFLINE)).rglob("*") if path.is_file()
    )
    assert found["prepare"].seconds is None
    assert found["generate"].note == "the last attempt of each shard"


def test_a_step_at_which_training_went_on_has_a_line(workshop: Workshop) -> None:
    assert {tuple(figure.lines) for figure in figures.training_figures(read_record(workshop.store, OFFLINE))} == {
        (4.0,)
    }


def test_the_speed_up_is_that_of_costs_that_were_measured(workshop: Workshop) -> None:
    record = read_record(workshop.store, OFFLINE)
    assert record.evaluation is not None
    costs, verdict = record.evaluation.speedup, judge(record)
    assert costs is not None
    assert verdict.speed_up is not None
    assert (verdict.speed_up.factor, verdict.speed_up.measured_on) == (costs.value, costs.device)
    assert f"of costs measured on {costs.device}" in shown(workshop.store, OFFLINE)


def test_further_sets_a_tree_and_an_engine_are_told(store: LocalStore) -> None:
    name = f"{export_path(OFFLINE)}/{EVALUATION}"
    found = Evaluation.model_validate_json(store.read(name))
    sets = tuple(
        found.sets[0].model_copy(update={"name": label, "length": length, "interval": (1.0, 3.0)})
        for label, length in (("heldOut", 1.5), ("humaneval", 2.25))
    )
    served = Served(
        name="vllm", version="0.32.0", model="m", predicted_length=1.48, difference=0.0135, seconds=1.0,
        tokens_per_second=5.0,
    )  # fmt: skip
    tree = found.settings.model_copy(update={"proposal": "tree", "tree": Tree(steps=5, top_k=2, draft_tokens=12)})
    changed = found.model_copy(update={"sets": sets, "engine": served, "settings": tree})
    store.publish(name, changed.model_dump_json(by_alias=True).encode())
    text = shown(store, OFFLINE)
    assert f"{found.prompts} prompts, a tree of 12 tokens, greedy, in vllm 0.32.0." in text
    assert "humaneval 2.250 1.000 to 3.000" in text
    assert "Our own evaluator predicts 1.480; the engine is +1.4 % from it." in text


def test_the_estimate_counts_what_proposals_cost(workshop: Workshop) -> None:
    """A tiny draft is as large as its tiny target: no gain, however much is accepted."""
    record = read_record(workshop.store, OFFLINE)
    assert record.evaluation is not None
    verdict = judge(replace(record, evaluation=record.evaluation.model_copy(update={"speedup": None})))
    assert verdict.reach is not None
    assert verdict.speed_up is not None
    assert verdict.speed_up.factor == pytest.approx(verdict.reach.length / (1 + 3 * verdict.speed_up.draft_share))
    assert verdict.speed_up.factor < 1
    assert verdict.speed_up.text.startswith("No gain to expect")


# -- Runs with less -------------------------------------------------------------------------------------


def unfinished(store: LocalStore) -> str:
    store.delete_folder(export_path(OFFLINE))
    return OFFLINE


def without_samples(store: LocalStore) -> str:
    name = f"{export_path(OFFLINE)}/{EVALUATION}"
    report = json.loads(store.read(name))
    del report["samples"]
    store.publish(name, json.dumps(report).encode())
    return OFFLINE


def missed(store: LocalStore) -> str:
    store.delete(f"{export_path(OFFLINE)}/{PUBLISHED}")
    return OFFLINE


def only_prepared(store: LocalStore) -> str:
    store.publish("runs/new-run/prepare/task.json", b"{}")
    return "new-run"


def without_checkpoints(store: LocalStore) -> str:
    unfinished(store)
    for step in store.list(train_path(OFFLINE)):
        if "/step-" in step:
            store.delete(step)
    return OFFLINE


def with_torn_lines(store: LocalStore) -> str:
    name = f"{train_path(OFFLINE)}/{METRICS}"
    store.publish(name, store.read(name) + b'{"step": 99, "lo\n[]\n')
    return OFFLINE


def of_another_version(store: LocalStore) -> str:
    for step in store.list(train_path(UNJUDGED)):
        if step.endswith(MANIFEST):
            store.publish(step, store.read(step).replace(b'"step"', b'"newField": 1, "step"', 1))
    return UNJUDGED


def without_data(store: LocalStore) -> str:
    store.delete_folder("prepare")
    store.delete_folder("hidden-states")
    return OFFLINE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(unfinished, ["Unfinished", "Training stands at step", "There is no export yet"], id="no export"),
        pytest.param(without_samples, ["Published", "by a version that kept no samples"], id="an older evaluation"),
        pytest.param(missed, ["Not published: the measured acceptance length is", "serve it to try it out"], id="gate"),
        pytest.param(lambda _: ONLINE, ["Published without a measurement", "Online run makes them in every step",
                                        "Simulated", "No samples"], id="Online and ungated"),
        pytest.param(lambda _: UNJUDGED, ["Exported and conformant, but not evaluated", "Simulated"], id="not judged"),
        pytest.param(only_prepared, ["Nothing is prepared yet", "No acceptance length yet", "No step is recorded",
                                     "No stage has left anything"], id="nothing yet"),
        pytest.param(without_checkpoints, ["no checkpoint is saved yet", "No acceptance length yet"], id="soon killed"),
        pytest.param(with_torn_lines, ["2 lines of metrics.jsonl could not be read"], id="torn lines"),
        pytest.param(of_another_version, ["Simulated"], id="a checkpoint with fields of another version"),
        pytest.param(without_data, ["Published", "prepared documents of this run are not in this workspace",
                                    "No stored hidden states of this run"], id="only the draft is left"),
    ],
)  # fmt: skip
def test_a_run_with_less_says_what_is_missing(
    store: LocalStore, change: Callable[[LocalStore], str], says: list[str]
) -> None:
    text = shown(store, change(store))
    assert [words for words in says if words not in text] == []


def test_an_evaluation_of_an_earlier_export_is_not_shown(store: LocalStore) -> None:
    name = f"{export_path(OFFLINE)}/{MANIFEST}"
    store.publish(name, store.read(name) + b"\n")
    record = read_record(store, OFFLINE)
    assert (record.evaluation, record.published) == (None, None)


def test_all_that_comes_from_data_is_escaped(store: LocalStore) -> None:
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    name = f"{export_path(OFFLINE)}/{EVALUATION}"
    report = json.loads(store.read(name))
    report["samples"][0].update(prompt=attack, pieces=[attack] * len(report["samples"][0]["pieces"]))
    store.publish(name, json.dumps(report).encode())
    html = page.report(read_record(store, OFFLINE))
    assert "<script>alert" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    record = read_record(store, OFFLINE)
    columns = comparison.columns([record, replace(record, run=attack)])
    assert "<script>alert" not in comparison.page(columns)


# -- Curves ---------------------------------------------------------------------------------------------


def lines(count: int, **changes: object) -> str:
    return "\n".join(
        json.dumps({"step": step, "loss": 1.0, "skipped": False, **changes}) for step in range(1, count + 1)
    )


def test_a_skipped_step_is_a_gap_and_a_mark() -> None:
    text = (
        lines(20)
        + "\n"
        + json.dumps({"step": 21, "loss": "nan", "skipped": True})
        + "\n"
        + json.dumps({"step": 22, "loss": 3.0, "spike": True})
    )
    figure = figures.loss(read_curve(text))
    by_name = {trace["name"]: trace for trace in figure.traces}
    assert by_name["loss"]["y"][20] is None
    assert by_name["skipped"]["x"] == [21.0]
    assert (by_name["spike"]["x"], by_name["spike"]["y"]) == ([22.0], [3.0])
    assert "1 of them skipped" in figure.caption
    assert "NaN" not in json.dumps(figure.traces)


def test_long_curves_are_thinned_and_keep_their_peaks() -> None:
    steps = np.arange(1, 50_001, dtype=np.float64)
    values = np.sin(steps / 900)
    values[33_333], values[777] = 9.0, math.nan
    x, y = thin(steps, values)
    assert len(x) <= MAX_POINTS
    assert x == sorted(x)
    assert y[x.index(33_334.0)] == 9.0


def test_a_mean_over_a_window_passes_over_gaps() -> None:
    values = np.ones(400)
    values[100:103] = math.nan
    assert smooth(values).tolist() == [1.0] * 400
    assert np.isnan(smooth(np.full(400, math.nan))).all()
    assert smooth(np.arange(400.0))[200] == pytest.approx(200, abs=1)


def test_an_empty_curve_draws_nothing() -> None:
    assert len(read_curve("")) == 0
    assert read_curve("no\n[1]\n{}\n").broken_lines == 3


def test_fidelity_is_drawn_of_codecs_that_round(workshop: Workshop) -> None:
    record = read_record(workshop.store, OFFLINE)
    assert figures.fidelity_figure(record) is None
    histogram = [0] * NUM_BINS
    histogram[40:43] = [5, 80, 15]
    measured = Fidelity(
        rows=100, agreeing=99, histogram=tuple(histogram), errors=(1e-4,), sizes=(1.0,), divergence=0.01
    )
    key = Key(codec="balanced", dtype="bfloat16", aux_layers=(2, 4, 5), tokens_sha256="")
    shard = ShardOf(documents=1, tokens=10, bytes=100, seconds=1.0, fidelity=measured)
    rounded = replace(record, states=States(1, key, (shard,), None))
    figure = figures.fidelity_figure(rounded)
    assert figure is not None
    assert figure.traces[0]["y"] == [5, 80, 15]
    assert "99.00% of the most likely tokens stay" in page.report(rounded)


# -- The commands ---------------------------------------------------------------------------------------


def test_the_page_lands_in_the_current_folder(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert commands.report([str(workshop.store.root), "--run", ONLINE]) == ExitCode.OK
    assert capsys.readouterr().out == f"report: report-{ONLINE}.html\n"
    content = (tmp_path / f"report-{ONLINE}.html").read_text()
    assert content.startswith("<!doctype html>")
    assert len(content) < 2.5e6


def test_looking_loads_no_torch(workshop: Workshop, tmp_path: Path) -> None:
    program = (
        "import sys; from draftyard_trainer import commands; "
        f"code = commands.report([{str(workshop.store.root)!r}, '--run', {OFFLINE!r}, '--out', sys.argv[1]]); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.html")], capture_output=True, text=True, check=False,
        env=dict(os.environ),
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


def test_a_run_must_be_named_where_there_are_several(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=rf"--run: given none; accepted: {OFFLINE}, {ONLINE}, .*{UNJUDGED}"):
        choose_run(workshop.store, None)
    with pytest.raises(Failure, match=r"--run: given gone; accepted: "):
        choose_run(workshop.store, "gone")
    with pytest.raises(Failure, match=r"given none; accepted: a workspace with a run; there is none in file://"):
        choose_run(LocalStore(tmp_path), None)


def test_a_page_that_cannot_be_written(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gone" / "report.html"
    assert commands.report([str(workshop.store.root), "--run", ONLINE, "--out", str(out)]) == ExitCode.DENIED
    assert "No such file or directory" in capsys.readouterr().err


def test_runs_are_put_side_by_side(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "160")
    root = workshop.store.root
    out = tmp_path / "compared.html"
    assert commands.compare([f"{root}:{OFFLINE}", f"{root}:{ONLINE}", "--html", str(out)]) == ExitCode.OK
    said = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:4]] for line in said.splitlines()
            if line.count("│") >= 4}  # fmt: skip
    assert rows["mode"] == ["Offline", "Online"]
    assert rows["learningRate"] == ["0.003", "0.001"]
    assert "epochs" not in rows
    assert rows["known from"][0] == "measured, 6"
    assert rows["known from"][1].startswith("simulated, ")
    assert " to " in rows["acceptance length"][0]
    assert rows["train time"][0] == "10 s"
    assert rows["generate bytes"][1] == "-"
    assert ONLINE in out.read_text()


def test_all_runs_of_a_workspace_are_compared(workshop: Workshop) -> None:
    records = comparison.find_records([str(workshop.store.root)], commands.opened)
    assert {OFFLINE, ONLINE, UNJUDGED} <= {record.run for record in records}


@pytest.mark.parametrize(
    ("places", "says"),
    [
        pytest.param([f":{OFFLINE}"], "given 1 runs; accepted: 2 to 8", id="one run"),
        pytest.param([":gone", f":{ONLINE}"], "gone; accepted as a run there: ", id="no such run"),
        pytest.param([f":{ONLINE}"] * 9, "given 9 runs; accepted: 2 to 8", id="too many"),
    ],
)
def test_what_cannot_be_compared(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], places: list[str], says: str
) -> None:
    assert commands.compare([f"{workshop.store.root}{place}" for place in places]) != ExitCode.OK
    assert says in " ".join(capsys.readouterr().err.split())


def test_runs_of_one_name_are_told_apart_by_their_workspace(workshop: Workshop) -> None:
    record: Record = read_record(workshop.store, ONLINE)
    elsewhere = replace(record, where="file:///elsewhere/work")
    labels = [column.label for column in comparison.columns([record, elsewhere])]
    assert labels == [f"workspace:{ONLINE}", f"work:{ONLINE}"]


def test_a_bucket_is_told_from_a_run() -> None:
    assert comparison.NAMED.match("s3://bucket/prefix") is None
    match = comparison.NAMED.match("s3://bucket/prefix:run-1")
    assert match is not None
    assert (match["workspace"], match["run"]) == ("s3://bucket/prefix", "run-1")


def test_steps_of_a_checkpoint_are_found_by_their_names(workshop: Workshop) -> None:
    record = read_record(workshop.store, UNJUDGED)
    assert record.checkpoint is not None
    assert record.checkpoint.step == workshop.steps(UNJUDGED)[-1]
    assert workshop.checkpoint(UNJUDGED, record.checkpoint.step).parent.name in checkpoint_path(
        UNJUDGED, record.checkpoint.step
    )
