"""`draftyard plan`: everything is said, nothing is done."""

from __future__ import annotations

import json

import pytest
import yaml

from draftyard_api import preview
from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.progress import Counts, Prepared, StageResult, StoredStates
from draftyard_api.targets import WELL_KNOWN

CONFIG = WELL_KNOWN["Qwen/Qwen3-8B"]


def write(folder, **changes):
    spec = {
        "mode": "Offline",
        "target": {"model": "file://target"},
        "data": {"source": {"file": {"uri": "file://chat.json"}}},
        "workspace": {"pvc": {"existingClaim": "c"}},
        "hiddenStates": {"codec": "none"},
        **changes,
    }
    path = folder / "run.yaml"
    document = {
        "apiVersion": "draftyard.dev/v1alpha1",
        "kind": "DraftTraining",
        "metadata": {"name": "r"},
        "spec": spec,
    }
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(preview, "free_bytes", lambda _workspace: 2**40)  # a plan is judged, not this machine's disk
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "chat.json").write_bytes(b"x" * 3_404_000)
    return tmp_path


def test_a_plan_shows_every_stage_and_makes_nothing(world, capsys):
    before = sorted(world.rglob("*"))
    assert preview.plan([str(write(world)), "--workspace", str(world / "w")]) == ExitCode.OK
    out = capsys.readouterr().out
    assert all(stage in out for stage in ("prepare", "generate", "train", "total"))
    assert "1,000 documents" in out
    assert "H100" in out
    assert sorted(world.rglob("*")) == sorted([*before, world / "run.yaml"])


def test_an_online_plan_has_no_generate(world, capsys):
    file = write(world, mode="Online")
    document = yaml.safe_load(file.read_text())
    del document["spec"]["hiddenStates"]
    file.write_text(yaml.safe_dump(document))
    assert preview.plan([str(file)]) == ExitCode.OK
    assert "generate" not in capsys.readouterr().out.partition("assumes")[0]


def test_own_answers_are_a_stage_of_the_plan(world, capsys):
    data = {"source": {"preset": {"name": "sharegpt"}}, "maxSamples": 70_000, "regenerate": {"shards": 24}}
    assert preview.plan([str(write(world, data=data))]) in (ExitCode.OK, ExitCode.NO_SPACE)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["regenerate"]]
    assert "the target's own answers in 24 shards" in line
    assert "MiB" in line
    assert "before prepare has counted" in lines[0]


def test_a_well_known_target_needs_no_download(world, capsys):
    assert preview.plan([str(write(world, target={"model": "Qwen/Qwen3-8B"}))]) == ExitCode.OK
    assert "steps" in capsys.readouterr().out


def test_an_unknown_target_says_what_is_accepted(world, capsys):
    assert preview.plan([str(write(world, target={"model": "org/other"}))]) == ExitCode.NOT_FOUND
    err = capsys.readouterr().err
    assert "given org/other" in err
    assert "meta-llama/Llama-3.1-8B-Instruct" in err


def test_a_copy_is_like_a_well_known_target(world, capsys):
    file = str(write(world, target={"model": "pvc://models/copy"}))
    assert preview.plan([file]) == ExitCode.NOT_FOUND
    assert "given pvc://models/copy" in capsys.readouterr().err
    assert preview.plan([file, "--like", "Qwen/Qwen3-8B"]) == ExitCode.OK
    assert "steps" in capsys.readouterr().out
    assert preview.plan([file, "--like", "Qwen/Qwen4"]) == ExitCode.NOT_FOUND
    assert "--like: given Qwen/Qwen4" in capsys.readouterr().err


def test_a_plan_that_cannot_fit_is_refused(world, capsys):
    data = {"source": {"preset": {"name": "sharegpt"}}, "maxSamples": 10**9}
    assert preview.plan([str(write(world, data=data))]) == ExitCode.NO_SPACE
    assert "data.maxSamples: " in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 160])
def test_a_plan_reads_well_in_a_terminal(world, capsys, monkeypatch, width):
    """One line for each stage and each codec, with no number broken, on a plan that fills a disk too."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(preview, "free_bytes", lambda _workspace: 20 * 2**40)
    data = {"source": {"preset": {"name": "sharegpt"}}, "maxSamples": 70_000}
    states = {"codec": "balanced", "shards": 1024}
    assert preview.plan([str(write(world, data=data, hiddenStates=states))]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    for words in (["generate", "1024 shards, balanced", "GiB"], ["balanced", "chosen", "GiB", "yes"], ["total", "GiB"]):
        assert any(all(word in line for word in words) for line in lines), words
    assert [line.split()[0] for line in lines if line.rstrip().endswith(("yes", "no"))] == [
        "none", "lossless", "balanced", "compact",
    ]  # fmt: skip


LIMIT = {"resources": {"limits": {"memory": "4Gi"}}}


@pytest.mark.parametrize(
    ("blocks", "path"),
    [
        pytest.param({}, None, id="no limit is given"),
        pytest.param({"train": {"pod": LIMIT}}, "train.pod", id="of training"),
        pytest.param({"pod": LIMIT}, "pod", id="of all pods"),
        pytest.param({"pod": LIMIT, "train": {"pod": {"resources": {"limits": {"memory": "8Gi"}}}}}, None, id="enough"),
        pytest.param({"pod": LIMIT, "train": {"pod": {"resources": {"limits": {"cpu": 4}}}}}, None, id="taken back"),
    ],
)
def test_a_limit_that_the_first_checkpoint_would_break_is_told(world, capsys, blocks, path):
    """The draft of an 8B target has 400 million parameters, which take 4.5 GiB on their way to the workspace."""
    assert preview.plan([str(write(world, **blocks))]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "memory: 5.47 GiB at the least in the pod of process 0 of train" in out
    if path is None:
        assert err == ""
        return
    assert err.startswith(f"warning: spec.{path}.resources.limits.memory: given 4.00 GiB; process 0 needs 5.47 GiB")
    assert err.endswith("raise it to 6Gi or more\n")


def test_each_process_of_a_node_counts(world, capsys):
    preview.plan([str(write(world, train={"gpusPerNode": 8}))])
    assert "memory: 12.47 GiB" in capsys.readouterr().out


def test_the_plan_says_which_codecs_fit(world, capsys, monkeypatch):
    assert preview.plan([str(write(world))]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    whole = {line.split()[0]: line for line in lines if line.rstrip().endswith("yes")}
    assert set(whole) == {"none", "lossless", "balanced", "compact"}
    # more than the draft's checkpoints, which are most of this plan, and less than the states as they are
    monkeypatch.setattr(preview, "free_bytes", lambda _workspace: 38 * 2**30)
    assert preview.plan([str(write(world))]) == ExitCode.NO_SPACE
    said = capsys.readouterr()
    verdicts = {line.split()[0]: line.split()[-1] for line in said.out.splitlines() if line.endswith(("yes ", "no "))}
    assert verdicts["none"] == "no"
    assert verdicts["balanced"] == "yes"
    first = next(codec for codec, verdict in verdicts.items() if verdict == "yes")
    assert f"hiddenStates.codec: {first}" in said.err


def test_a_bucket_has_no_limit(world, capsys):
    data = {"source": {"preset": {"name": "sharegpt"}}, "maxSamples": 10**9}
    assert preview.plan([str(write(world, data=data)), "--workspace", "s3://bucket/prefix"]) == ExitCode.OK
    assert "no limit is known" in capsys.readouterr().out


def test_mistakes_are_all_listed(world, capsys):
    assert preview.plan([str(write(world, mode="Both", train={"epochs": 0}))]) == ExitCode.BAD_TASK
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_what_is_finished_is_taken_from_the_workspace(world, capsys):
    """Exact tokens after prepare, the measured size once a shard is there."""
    runs = world / "w" / "runs" / "r"
    counts = Counts(
        rows=4, documents=4, train_documents=4, held_out_documents=0, skipped={}, truncated_documents=0, tokens=4000,
        train_tokens=4000, loss_tokens=2000, label_rows=2008, steps=1,
    )  # fmt: skip
    prepared = Prepared(
        prepared="p", counts=counts, vocab_size=512, vocab_coverage="1", aux_layers=(2, 18, 33), target_commit="c",
        data_sha256="d", tokens_sha256="t", fingerprint="f", free_bytes=None,
    )  # fmt: skip
    states = StoredStates(key="k", shard=0, shards=2, documents=2, tokens=2000, label_rows=1004, bytes=2**20)
    for folder, result in (
        ("prepare", StageResult(stage=Stage.PREPARE, prepared=prepared)),
        ("generate-00000", StageResult(stage=Stage.GENERATE, seconds=1.0, hidden_states=states)),
    ):
        (runs / folder).mkdir(parents=True)
        (runs / folder / "result.json").write_text(result.model_dump_json(by_alias=True))
    assert preview.plan([str(write(world)), "--workspace", str(world / "w")]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "from exact counts and the speed and size of finished shards" in out
    assert "4 documents, 4,000 tokens" in out
    assert [line.split()[:4] for line in out.splitlines() if "chosen" in line] == [["none", "chosen", "2.00", "MiB"]]
