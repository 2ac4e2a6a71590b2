"""Drafts in buckets: pushed once and whole, found again as the start of another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from test_pushing import NAME, RUN, made

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST
from draftyard_api.schema import S3Access
from draftyard_api.spec import Draft
from draftyard_trainer import commands, pushing, testing, warm_start
from draftyard_trainer.pushing import Wish
from draftyard_trainer.storage.bucket import Bucket
from draftyard_trainer.storage.local import LocalStore

torch.set_num_threads(1)


@pytest.fixture
def draft(tmp_path: Path) -> LocalStore:
    return made(tmp_path / "workspace")


@pytest.fixture
def push(access: S3Access, monkeypatch: pytest.MonkeyPatch):
    """Push to a bucket as a person does: endpoint and credentials from the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(access.endpoint))

    def run(store: LocalStore, uri: str, **wish) -> str:
        console = Console(width=500)
        with console.capture() as said:
            assert pushing.export(store, Wish(RUN, push=uri, **wish), console) == ExitCode.OK
        return said.get()

    return run


def objects(bucket: Bucket, prefix: str) -> dict[str, str]:
    return {entry.key.removeprefix(f"{prefix}/"): entry.etag for entry in bucket.list(f"{prefix}/")}


def test_a_draft_is_pushed_whole_and_once(bucket: Bucket, draft, push) -> None:
    uri = f"s3://{bucket.name}/models/mine"
    assert "5 files" in push(draft, uri)
    there = objects(bucket, "models/mine")
    assert set(there) == set(pushing.OURS)
    assert bucket.get("models/mine/model.safetensors", 0, 1 << 20) == draft.read(f"{NAME}/model.safetensors")
    assert "nothing was uploaded" in push(draft, uri)
    assert objects(bucket, "models/mine") == there


def test_a_prefix_with_another_draft_is_refused_unless_it_may_go(bucket: Bucket, draft, push, tmp_path) -> None:
    uri = f"s3://{bucket.name}/models/mine"
    push(draft, uri)
    there = objects(bucket, "models/mine")
    other = made(tmp_path / "other", seed=5)
    with pytest.raises(Failure, match="holds another draft") as caught:
        push(other, uri)
    assert caught.value.code == ExitCode.EXISTS
    assert objects(bucket, "models/mine") == there
    push(other, uri, replace=True)
    assert objects(bucket, "models/mine")["model.safetensors"] != there["model.safetensors"]


def test_a_push_that_broke_off_left_no_manifest(bucket: Bucket, draft, push) -> None:
    """Whoever reads the prefix sees no draft; the next push, which may replace the part, makes it whole."""
    bucket.put("models/mine/model.safetensors", b"half")
    uri = f"s3://{bucket.name}/models/mine"
    with pytest.raises(Failure, match="or a part of one"):
        push(draft, uri)
    push(draft, uri, replace=True)
    assert MANIFEST in objects(bucket, "models/mine")


@pytest.mark.slow
def test_a_run_starts_from_a_draft_in_a_bucket(
    bucket: Bucket, access: S3Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    testing.write_target(tmp_path / "target")
    testing.write_conversations(tmp_path / "chat.json")
    s3 = {"endpoint": access.endpoint}
    train = {"epochs": 1, "rowTokens": 256, "tokensPerBatch": 512, "tttSteps": 2, "learningRate": 0.001}
    spec = {
        "mode": "Online",
        "target": {"model": "file://target", "dtype": "float32"},
        "draft": {"vocabSize": 256},
        "data": {"source": {"file": {"uri": "file://chat.json"}}, "maxLength": 96, "evalFraction": 0.2},
        "workspace": {"s3": {"uri": f"s3://{bucket.name}/w", **s3}},
        "train": train,
    }
    warm = {**spec, "draft": {"vocabSize": 300, "initFrom": f"s3://{bucket.name}/w/export/cold", "s3": s3}}
    for name, content in (("cold", spec), ("warm", warm)):
        document = {"apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": {"name": name}}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**document, "spec": content}))
        assert commands.run([str(file), "--workspace", f"s3://{bucket.name}/w"]) == ExitCode.OK
    below = {entry.key for entry in bucket.list("w/prepare/")}
    assert len([key for key in below if key.endswith(f"{warm_start.FOLDER}/model.safetensors")]) == 1
    folder = warm_start.locate(Draft(init_from=f"s3://{bucket.name}/w/export/warm", s3=S3Access(**s3)))
    warm_start.require_whole(folder, "warm")


def test_a_draft_that_no_bucket_holds_is_said(bucket: Bucket, access: S3Access) -> None:
    with pytest.raises(Failure, match=r"^draft\.initFrom: given s3://.*there is no object below it") as caught:
        warm_start.locate(Draft(init_from=f"s3://{bucket.name}/nowhere", s3=access))
    assert caught.value.code == ExitCode.NOT_FOUND
