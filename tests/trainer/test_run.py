"""`draftyard run`: one YAML file through every stage, on tiny targets, in both modes; and what stops it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import HISTORY, MANIFEST, PUBLISHED, RESULT_FILE
from draftyard_trainer import run as local
from draftyard_trainer import testing

LAST_LINE = re.compile(r"acceptance length (\d+\.\d+) \(held out, K=3, greedy\) draft: (\S+)")


def write_run(folder: Path, mode: str = "Offline", **changes) -> Path:
    """A DraftTraining for the tiny target and conversations in `folder`."""
    spec = {
        "mode": mode,
        "target": {"model": "file://target", "dtype": "float32"},
        "draft": {"vocabSize": 256},
        "data": {"source": {"file": {"uri": "file://chat.json"}}, "maxLength": 96, "evalFraction": 0.2},
        "workspace": {"pvc": {"claimTemplate": {"size": "1Gi"}}},
        "train": {"epochs": 1, "rowTokens": 256, "tokensPerBatch": 512, "tttSteps": 3, "learningRate": 0.001},
        "evaluate": {"maxPrompts": 4, "maxNewTokens": 12},
        **({"hiddenStates": {"codec": "none"}} if mode == "Offline" else {}),
        **changes,
    }
    document = {
        "apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": {"name": "tiny"}, "spec": spec,
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a tiny Llama and 40 conversations."""
    testing.write_target(tmp_path / "target")
    testing.write_conversations(tmp_path / "chat.json")
    return tmp_path


def published(workspace: Path) -> Path:
    return workspace / "export" / "tiny" / PUBLISHED


@pytest.mark.parametrize("mode", ["Offline", "Online"])
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "llama" else pytest.mark.slow) for name in testing.FAMILIES]
)
def test_a_run_ends_with_a_published_draft(tmp_path, capsys, family, mode):
    testing.write_target(tmp_path / "target", family)
    testing.write_conversations(tmp_path / "chat.json")
    workspace = tmp_path / "workspace"
    assert local.run(write_run(tmp_path, mode), workspace, {}) == ExitCode.OK
    said = capsys.readouterr()
    # the target would not have written these answers
    assert "data.regenerate: {} lets the target answer" in said.err.replace("\n", " ")
    line = LAST_LINE.fullmatch(said.out.strip().splitlines()[-1])
    assert line
    assert 1.0 <= float(line[1]) <= 4.0
    export = Path(line[2])
    manifest = json.loads((export / MANIFEST).read_text())
    assert len(manifest["rules"]) == 23
    assert all(rule["result"] in ("pass", "warn") for rule in manifest["rules"])
    assert json.loads(published(workspace).read_text())["manifestSHA256"]
    history = [json.loads(line) for line in (workspace / "runs" / "tiny" / HISTORY).read_text().splitlines()]
    labels = [end["label"] for end in history]
    assert labels == ["prepare", *(["generate-00000"] if mode == "Offline" else []), "train", "evaluate"]
    assert all(end["result"]["seconds"] > 0 for end in history)


def test_the_target_answers_before_anything_is_prepared(tmp_path, capsys):
    """Two shards, one after the other; found again by a second run, which trains nothing."""
    testing.speak_plainly(testing.write_target(tmp_path / "target"))
    testing.write_conversations(tmp_path / "chat.json", 20)
    data = {
        "source": {"file": {"uri": "file://chat.json"}}, "maxLength": 192, "evalFraction": 0.2,
        "regenerate": {"maxNewTokens": 40, "shards": 2},
    }  # fmt: skip
    file, workspace = write_run(tmp_path, "Online", data=data), tmp_path / "workspace"
    assert local.run(file, workspace, {}) == ExitCode.OK
    results = [json.loads(path.read_text()) for path in sorted((workspace / "runs" / "tiny").glob(f"*/{RESULT_FILE}"))]
    assert [result["stage"] for result in results] == ["evaluate", "prepare", "regenerate", "regenerate", "train"]
    assert sum(result["regenerated"]["answers"] for result in results[2:4]) == 40
    assert results[1]["prepared"]["counts"]["documents"] == 20
    assert float(results[4]["trained"]["onPolicy"]) > 0.75
    assert "only 0." not in capsys.readouterr().err
    parts = {path: path.stat().st_mtime_ns for path in workspace.glob("conversations/**/*.jsonl")}
    assert len(parts) == 2
    assert local.run(file, workspace, {}) == ExitCode.OK
    assert "already trained draft:" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_a_second_run_does_nothing_twice(world, capsys):
    workspace = world / "workspace"
    file = write_run(world)
    assert local.run(file, workspace, {}) == ExitCode.OK
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*.safetensors")}
    assert local.run(file, workspace, {}) == ExitCode.OK
    said = capsys.readouterr()
    assert "already trained draft:" in said.out
    assert f"draftyard report {workspace} --run tiny" in said.err
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_states_that_shall_go_are_gone_once_the_draft_is_published(world, capsys):
    workspace = world / "workspace"
    file = write_run(world, hiddenStates={"codec": "none", "reclaim": "Delete"})
    assert local.run(file, workspace, {}) == ExitCode.OK
    assert published(workspace).exists()
    assert [path for path in (workspace / "hidden-states").rglob("*") if path.is_file()] == []
    assert json.loads((workspace / "runs/tiny/evaluate" / RESULT_FILE).read_text())["statesReclaimed"] is True
    assert local.run(file, workspace, {}) == ExitCode.OK
    assert "already trained draft:" in capsys.readouterr().out


def test_five_mistakes_give_five_errors_at_once(world, capsys):
    file = write_run(world)
    document = yaml.safe_load(file.read_text())
    document["spec"]["mode"] = "Both"
    document["spec"]["train"].update(lr=1, learningRate="1e-4", rowTokens=64)
    document["spec"]["hiddenStates"]["codec"] = "fp8"
    file.write_text(yaml.safe_dump(document))
    assert local.run(file, world / "workspace", {}) == ExitCode.BAD_TASK
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 5, errors
    for path in ("spec.mode", "spec.train.lr", "spec.train.learningRate", "spec.train.rowTokens", "hiddenStates.codec"):
        assert any(path in line for line in errors), path
    assert all("accepted" in line for line in errors)
    assert not (world / "workspace" / "prepare").exists()


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        pytest.param({"target": {"model": "file://nowhere"}}, ExitCode.NOT_FOUND, "target.model", id="missing model"),
        pytest.param(
            {"data": {"source": {"file": {"uri": "file://nowhere.json"}}, "maxLength": 96}},
            ExitCode.NOT_FOUND, "data.source.file.uri", id="missing data",
        ),
        pytest.param(
            {"draft": {"vocabSize": 256, "auxLayers": [2, 4, 40]}}, ExitCode.UNSUPPORTED,
            "draft.auxLayers: given 40; accepted: 1 to 7", id="a layer that the target lacks",
        ),
        pytest.param(
            {"target": {"model": "file://target", "dtype": "float32", "tensorParallel": 2}, "mode": "Offline"},
            ExitCode.UNSUPPORTED, "target.tensorParallel: given 2", id="a target over several GPUs",
        ),
        pytest.param(
            {"evaluate": {"minAcceptanceLength": 4.0, "maxPrompts": 4, "maxNewTokens": 12}}, ExitCode.GATE_MISSED,
            "required 4", id="a draft below the gate", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_clear_message_and_publishes_nothing(world, capsys, changes, code, words):
    workspace = world / "workspace"
    assert local.run(write_run(world, **changes), workspace, {}) == code
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not published(workspace).exists()


def test_a_template_that_drops_the_answers_is_refused(world, capsys):
    testing.write_tokenizer(
        world / "target", "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    assert local.run(write_run(world), world / "workspace", {}) == ExitCode.BAD_DATA
    assert not list((world / "workspace").glob("prepare/*"))
    assert capsys.readouterr().out == ""


def test_a_killed_run_goes_on_and_ends_alike(world, capsys):
    """SIGKILL of the whole process group in the middle of training, then the same command again."""
    changes = {"train": {"epochs": 2, "rowTokens": 128, "tokensPerBatch": 128, "tttSteps": 3, "learningRate": 0.001,
                         "checkpoint": {"everySteps": 2}}}  # fmt: skip
    file, workspace = write_run(world, **changes), world / "workspace"
    command = [sys.executable, "-m", "draftyard_api.cli", "run", str(file), "--workspace", str(workspace)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while len(list(workspace.glob("train/tiny/step-*/MANIFEST.json"))) < 2:
            assert running.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
        running.kill()
    wait_for_workers_to_leave(workspace)
    assert local.run(file, workspace, {}) == ExitCode.OK
    assert local.run(write_run(world, **changes), world / "undisturbed", {}) == ExitCode.OK
    capsys.readouterr()
    drafts = [folder / "export" / "tiny" / "model.safetensors" for folder in (workspace, world / "undisturbed")]
    assert drafts[0].read_bytes() == drafts[1].read_bytes()


def wait_for_workers_to_leave(workspace: Path) -> None:
    """Processes of a killed run are asked to stop by the kernel; wait until none names this workspace."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_readable(path)]
        if not any(str(workspace).encode() in line for line in lines):
            return
        time.sleep(0.05)
    raise AssertionError("workers outlived their run")


def is_readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def hear_ctrl_c() -> None:
    """A shell ignores SIGINT for what it starts in the background, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_says_how_to_go_on(world, number):
    file, workspace = write_run(world), world / "workspace"
    command = [sys.executable, "-m", "draftyard_api.cli", "run", str(file), "--workspace", str(workspace)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509
    ) as running:
        while not (workspace / "runs" / "tiny" / "generate-00000" / "task.json").exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        _, err = running.communicate(timeout=60)
    assert running.returncode == ExitCode.INTERRUPTED
    assert "run the same command again to go on" in err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["/usr/bin/umount", str(folder)], check=True)


def test_a_disk_that_fills_up_gives_one_clear_message_and_publishes_nothing(world, small_disk, capsys, monkeypatch):
    """Others write to it too: that a plan fits says nothing about later."""
    monkeypatch.setattr(local, "require_room", lambda *_: None)
    assert local.run(write_run(world), small_disk, {}) == ExitCode.NO_SPACE
    err = " ".join(capsys.readouterr().err.split())
    assert "WorkspaceFull: workspace: " in err
    assert "enlarge it" in err
    assert not published(small_disk).exists()
    assert not list(small_disk.glob("hidden-states/*/*/*/MANIFEST.json"))


def test_a_disk_that_is_too_small_is_told_before_anything_is_computed(world, small_disk, capsys):
    assert local.run(write_run(world), small_disk, {}) == ExitCode.NO_SPACE
    err = " ".join(capsys.readouterr().err.split())
    assert "WorkspaceTooSmall: workspace: the plan needs" in err
    assert "take a workspace with" in err
    assert not list(small_disk.glob("hidden-states/*"))


def test_two_commands_never_work_on_one_run(world, capsys):
    run = local.open_run(write_run(world), world / "workspace", {}, local.Console(stderr=True))
    with local.exclusive(run):
        assert local.run(world / "run.yaml", world / "workspace", {}) == ExitCode.FENCED
    assert "another draftyard run works on it" in capsys.readouterr().err


def test_a_claim_is_a_folder_given_by_name(world, capsys):
    file = write_run(world, target={"model": "pvc://models/target", "dtype": "float32"})
    assert local.run(file, world / "workspace", {}) == ExitCode.BAD_TASK
    assert "--claim models=DIRECTORY" in capsys.readouterr().err
    resolved = local.open_run(file, world / "workspace", {"models": world}, local.Console(stderr=True))
    assert resolved.place.resolve(resolved.spec.target.model) == f"file://{(world / 'target').resolve()}"


def test_further_nodes_are_refused_before_anything_starts(world, capsys):
    file = write_run(world, train={"nodes": 2, "rowTokens": 256, "tokensPerBatch": 512})
    document = yaml.safe_load(file.read_text())
    document["spec"]["workspace"] = {"pvc": {"existingClaim": "c"}}
    file.write_text(yaml.safe_dump(document))
    assert local.run(file, world / "workspace", {}) == ExitCode.BAD_TASK
    assert "spec.train.nodes: given 2; accepted in draftyard run: 1" in capsys.readouterr().err


def test_what_has_no_effect_is_said(world, monkeypatch):
    monkeypatch.setattr(local, "is_installed", lambda _tracker: False)
    file = write_run(world, tracking={"reportTo": ["tensorboard"]})
    told = local.without_effect(local.open_run(file, world / "w", {}, local.Console(stderr=True)).spec)
    assert [line.partition(":")[0] for line in told] == ["spec.tracking.reportTo"]
    plain = local.open_run(write_run(world), world / "w", {}, local.Console(stderr=True))
    assert local.without_effect(plain.spec) == []


def test_torn_state_files_are_no_results(tmp_path):
    (tmp_path / RESULT_FILE).write_text("{")
    assert local.read_result(tmp_path, local.Stage.TRAIN, 137).exit_code == ExitCode.ERROR
    assert local.read_result(tmp_path, local.Stage.TRAIN, -9).exit_code == ExitCode.INTERRUPTED
    assert local.read_progress(tmp_path) is None


def test_a_run_that_cannot_fit_ends_after_prepare_and_says_what_would(world, capsys, monkeypatch):
    """What was assumed before is counted now; nothing but tokens has been written."""
    monkeypatch.setattr("draftyard_api.estimate.SAFE_SHARE", 1e-9)
    workspace = world / "workspace"
    assert local.run(write_run(world, hiddenStates={"codec": "none"}), workspace, {}) == ExitCode.NO_SPACE
    said = capsys.readouterr().err
    assert "the plan needs" in said
    assert "take a workspace with" in said
    assert not (workspace / "hidden-states").exists()
    assert list((workspace / "prepare").iterdir())
