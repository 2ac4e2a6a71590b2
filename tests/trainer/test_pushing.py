"""`draftyard export`: to a folder and to a hub over real HTTP, once, whole, without anything of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_hub import TOKEN, FakeHub, running_hub
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import load_file
from test_export import evidence

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, PUBLISHED, export_path
from draftyard_api.progress import Acceptance
from draftyard_api.spec import Target
from draftyard_trainer import commands, pushing, warm_start
from draftyard_trainer.draft.manifest import Evaluation, FileRecord, Manifest, Seconds, Settings, TeacherForced
from draftyard_trainer.draft.testing import TINY, tiny_draft, tiny_provenance
from draftyard_trainer.export import export_draft, publish
from draftyard_trainer.hub import HubRepository
from draftyard_trainer.pushing import CARD, Wish
from draftyard_trainer.storage.local import LocalStore

# the hub's client of today passes files in a way that its HTTP library calls old
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
RUN = "tiny"
NAME = export_path(RUN)
MEASURED = Acceptance(
    length="2.31", per_position=("0.71", "0.42", "0.18"), draft_tokens=3, prompts=64, source="Measured"
)
SETTINGS = Settings(draft_tokens=3, max_prompts=64, max_new_tokens=128)
LOCAL_TARGET = Target(model="file:///home/somebody/models/SmolLM2", dtype="bfloat16")


def made(root: Path, target: str = "org/target", seed: int = 0, published: bool = True) -> LocalStore:
    """A workspace with one draft, measured and published."""
    store = LocalStore(root)
    provenance = tiny_provenance(RUN)
    provenance = provenance.model_copy(update={"target": provenance.target.model_copy(update={"model": target})})
    sha256 = export_draft(store, NAME, tiny_draft(TINY, seed), provenance, evidence())
    report = Evaluation(
        manifest_sha256=sha256, settings=SETTINGS, length=2.31, interval=(2.2, 2.43), per_position=(0.71, 0.42, 0.18),
        rounds=100, accepted=131, prompts=64, skipped_prompts={}, reply_tokens=900,
        teacher_forced=TeacherForced(length=2.5, per_position=(0.7, 0.5, 0.3)),
        seconds=Seconds(answering=1.0, drafting=1.0),
    )  # fmt: skip
    store.publish(f"{NAME}/evaluation.json", report.model_dump_json(by_alias=True).encode())
    if published:
        publish(store, RUN, Target(model=target), MEASURED, SETTINGS)
    return store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return made(tmp_path / "workspace")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as running:
        yield running


def push(store: LocalStore, hub: FakeHub | None = None, **wish) -> tuple[int, str]:
    """Export; returns the exit code, and what was said."""
    console = Console(width=500)
    with console.capture() as said:
        code = pushing.export(
            store, Wish(RUN, **wish), console, lambda name: HubRepository(name, hub.endpoint if hub else None)
        )
    return code, said.get()


# -- A folder ---------------------------------------------------------------------------------


def test_a_folder_gets_the_draft_its_card_and_a_manifest(store, tmp_path):
    out = tmp_path / "out"
    code, said = push(store, to=out)
    assert code == ExitCode.OK
    assert "5 files" in said
    assert {path.name for path in out.iterdir()} == {
        CARD,
        MANIFEST,
        "config.json",
        "model.safetensors",
        "evaluation.json",
    }
    manifest = Manifest.model_validate_json((out / MANIFEST).read_bytes())
    assert manifest.files == {name: FileRecord.of(out / name) for name in ("config.json", "model.safetensors")}
    assert (out / "model.safetensors").read_bytes() == store.read(f"{NAME}/model.safetensors")


def test_what_was_pushed_can_be_started_from(store, tmp_path):
    push(store, to=tmp_path / "out")
    warm_start.require_whole(tmp_path / "out", "out")


def test_the_other_form_is_for_vllm_alone(store, tmp_path):
    out = tmp_path / "out"
    push(store, to=out, form="speculators")
    assert "layers.0.mlp.up_proj.weight" in load_file(out / "model.safetensors")
    card = (out / CARD).read_text()
    assert "vllm serve out" in card
    assert "sglang.launch_server" not in card


def test_the_same_draft_twice_writes_nothing(store, tmp_path):
    out = tmp_path / "out"
    push(store, to=out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    _, said = push(store, to=out)
    assert "it is there already; nothing was uploaded" in said
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_folder_with_another_draft_is_refused_unless_it_may_be_replaced(store, tmp_path):
    out, other = tmp_path / "out", made(tmp_path / "other", seed=5)
    push(store, to=out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(Failure, match="holds another draft") as caught:
        push(other, to=out)
    assert caught.value.code == ExitCode.EXISTS
    assert (out / "model.safetensors").read_bytes() == before
    push(other, to=out, replace=True)
    assert (out / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_with_other_files_is_never_cleared(store, tmp_path, replace):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(Failure, match=r"holds other files, such as thesis\.tex"):
        push(store, to=out, replace=replace)
    assert (out / "thesis.tex").read_text() == "years of work"


# -- What is given away -----------------------------------------------------------------------


@pytest.mark.parametrize("form", pushing.FORMS)
def test_nothing_names_this_machine(tmp_path, form):
    store = made(tmp_path / "workspace", target=LOCAL_TARGET.model)
    push(store, to=tmp_path / "out", form=form)
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text()
            assert "SmolLM2" in text or path.name in ("config.json", "evaluation.json")
            for private in ("/home/somebody", "file://", str(tmp_path), TOKEN):
                assert private not in text, path.name


def test_a_draft_that_is_not_published_is_refused_with_the_way_out(tmp_path):
    store = made(tmp_path / "workspace", published=False)
    with pytest.raises(Failure, match="not published: it is below its gate, or was not evaluated") as caught:
        push(store, to=tmp_path / "out")
    assert caught.value.code == ExitCode.GATE_MISSED
    assert "--allow-unpublished" in caught.value.message
    assert not (tmp_path / "out").exists()
    push(store, to=tmp_path / "out", allow_unpublished=True)
    card = (tmp_path / "out" / CARD).read_text()
    assert "**This draft is not published**" in card
    assert "2.31" not in card


def test_a_publication_of_an_earlier_draft_does_not_count(tmp_path):
    store = made(tmp_path / "workspace")
    published = store.read(f"{NAME}/{PUBLISHED}")
    made(tmp_path / "workspace", seed=5, published=False)
    store.publish(f"{NAME}/{PUBLISHED}", published)
    with pytest.raises(Failure, match="not published"):
        push(store, to=tmp_path / "out")


def test_a_draft_that_is_broken_is_refused(store, tmp_path):
    path = store.root / NAME / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Failure, match=r"model\.safetensors is not what its manifest says"):
        push(store, to=tmp_path / "out")


def test_a_run_that_is_not_there_is_said(tmp_path):
    with pytest.raises(Failure, match="holds no whole draft") as caught:
        push(LocalStore(tmp_path), to=tmp_path / "out")
    assert caught.value.code == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("org/name", "accepted: hf://org/name, s3://bucket/prefix"),
        ("s3://bucket", "accepted: hf://org/name, s3://bucket/prefix"),
        ("/some/folder", "a folder: --to DIR"),
        ("gs://bucket/x", "accepted: org/name"),
    ],
)
def test_a_place_that_is_none_is_refused(store, place, words):
    with pytest.raises(Failure, match="--push: given") as caught:
        push(store, push=place)
    assert words in caught.value.message


def test_no_place_at_all_is_refused(store):
    with pytest.raises(Failure, match="neither --to nor --push"):
        push(store)


def test_the_command_says_what_it_did(store, tmp_path, capsys):
    arguments = [str(store.root), "--run", RUN, "--to", str(tmp_path / "out"), "--profile", "speculators"]
    assert commands.export(arguments) == ExitCode.OK
    assert "5 files" in capsys.readouterr().err
    assert commands.export([str(store.root), "--run", "other", "--to", str(tmp_path / "more")]) == ExitCode.NOT_FOUND


# -- The hub ----------------------------------------------------------------------------------


def test_a_new_repository_gets_everything_in_one_commit(store, hub):
    code, said = push(store, hub, push="hf://org/draft", private=True)
    assert code == ExitCode.OK
    repository = hub.repositories["org/draft"]
    assert repository.private
    assert len(repository.commits) == 1
    assert set(repository.files) == {CARD, MANIFEST, "config.json", "model.safetensors", "evaluation.json"}
    assert repository.files["model.safetensors"] == store.read(f"{NAME}/model.safetensors")
    assert "/org/draft/commit/" in said
    assert TOKEN not in said


def test_the_same_draft_twice_makes_one_commit(store, hub):
    push(store, hub, push="hf://org/draft")
    asked = len(hub.requests)
    _, said = push(store, hub, push="hf://org/draft")
    assert "nothing was uploaded" in said
    assert len(hub.repositories["org/draft"].commits) == 1
    assert not [request for request in hub.requests[asked:] if not request.startswith(("GET", "HEAD"))]


def test_a_repository_with_another_draft_is_refused_unless_it_may_be_replaced(store, hub, tmp_path):
    other = made(tmp_path / "other", seed=5)
    push(store, hub, push="hf://org/draft")
    hub.repositories["org/draft"].files[".gitattributes"] = b"kept"
    with pytest.raises(Failure, match="org/draft holds another draft") as caught:
        push(other, hub, push="hf://org/draft")
    assert caught.value.code == ExitCode.EXISTS
    other.delete(f"{NAME}/evaluation.json")
    push(other, hub, push="hf://org/draft", replace=True)
    files = hub.repositories["org/draft"].files
    assert files["model.safetensors"] == other.read(f"{NAME}/model.safetensors")
    assert ".gitattributes" in files
    assert "evaluation.json" not in files


def test_a_repository_with_a_card_alone_is_filled(store, hub):
    """As one looks that was made on the hub's page."""
    push(store, hub, push="hf://org/draft")
    hub.repositories["org/draft"].files = {CARD: b"hello", ".gitattributes": b""}
    push(store, hub, push="hf://org/draft")
    assert hub.repositories["org/draft"].files[CARD] != b"hello"


def test_without_a_token_nothing_is_asked(store, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(Failure, match="HF_TOKEN is not set") as caught:
        push(store, hub, push="hf://org/draft")
    assert caught.value.code == ExitCode.DENIED
    assert hub.requests == []


def test_a_token_that_may_not_write_is_said_and_never_shown(store, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    with pytest.raises(Failure, match="the hub refuses access") as caught:
        push(store, hub, push="hf://org/draft")
    assert caught.value.code == ExitCode.DENIED
    assert "hf_wrong_secret" not in caught.value.message
    assert hub.repositories == {}


def test_a_card_that_the_hub_does_not_take_uploads_nothing(store, hub):
    hub.readme_errors = ["no such licence"]
    with pytest.raises(Failure, match="no such licence"):
        push(store, hub, push="hf://org/draft")
    assert hub.repositories["org/draft"].files == {}


def test_an_upload_that_breaks_off_commits_nothing(store, hub):
    hub.refuses_uploads = True
    with pytest.raises(Failure, match=r"Error while uploading 'model\.safetensors'") as caught:
        push(store, hub, push="hf://org/draft")
    assert caught.value.code == ExitCode.UNAVAILABLE
    assert hub.repositories["org/draft"].commits == []


def test_a_hub_that_is_down_is_said(store, hub):
    hub.is_broken = True
    with pytest.raises(Failure, match="the hub answers 500") as caught:
        push(store, hub, push="hf://org/draft")
    assert caught.value.code == ExitCode.UNAVAILABLE


# -- The card ---------------------------------------------------------------------------------


def card_of(store: LocalStore, tmp_path: Path, **wish) -> str:
    push(store, to=tmp_path / "card", **wish)
    return (tmp_path / "card" / CARD).read_text()


def test_the_hub_reads_what_the_card_begins_with(store, tmp_path):
    front = yaml.safe_load(card_of(store, tmp_path).split("---\n")[1])
    assert front["base_model"] == "org/target"
    assert front["pipeline_tag"] == "text-generation"
    assert {"eagle3", "speculative-decoding", "vllm", "sglang"} <= set(front["tags"])
    # neither is recorded anywhere, so neither is claimed
    assert "license" not in front
    assert "base_model_relation" not in front


def test_a_target_that_is_not_on_the_hub_is_no_base_model(tmp_path):
    store = made(tmp_path / "workspace", target=LOCAL_TARGET.model)
    front = yaml.safe_load(card_of(store, tmp_path).split("---\n")[1])
    assert "base_model" not in front


def test_the_card_says_what_was_measured_and_how(store, tmp_path):
    card = card_of(store, tmp_path)
    for words in (
        "| **acceptance length** | **2.31** |", "| first accepted | 0.71 |", "| first 3 accepted | 0.18 |",
        "2.20 to 2.43", "64 held-out conversations", "3 drafted tokens per round", "greedy (temperature 0)",
        "at most 128 tokens",
    ):  # fmt: skip
        assert words in card


def test_the_card_has_the_commands_of_both_engines(store, tmp_path):
    card = card_of(store, tmp_path)
    assert "vllm serve org/target --speculative-config" in card
    assert "python -m sglang.launch_server --model-path org/target" in card
    assert '"num_speculative_tokens":3' in card


def test_the_card_names_every_hash_and_setting(store, tmp_path):
    card = card_of(store, tmp_path)
    manifest = json.loads((tmp_path / "card" / MANIFEST).read_text())
    for value in (
        manifest["text"]["tokenizerSha256"], manifest["text"]["templateSha256"], manifest["data"]["revision"],
        manifest["fingerprint"], manifest["target"]["commit"], *(one["sha256"] for one in manifest["files"].values()),
    ):  # fmt: skip
        assert value in card
    for words in ("| documents | 10 |", "| steps | 7 (1 epochs planned), seed 42 |", "2, 4, 5", "## Limits"):
        assert words in card


def test_what_was_simulated_is_not_called_measured(tmp_path):
    store = made(tmp_path / "workspace", published=False)
    simulated = MEASURED.model_copy(update={"source": "Simulated"})
    publish(store, RUN, Target(model="org/target"), simulated)
    card = card_of(store, tmp_path)
    assert "Simulated on 64 held-out documents" in card
    assert "Measured" not in card
    assert "interval" not in card
