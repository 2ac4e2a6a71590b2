"""All stages with a bucket as the workspace, and the target and the data in buckets: the same draft as from folders."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from faults import Proxy
from test_s3_store import PulledPlugError, dying

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_CACHE, MANIFEST, Stage, shard_path
from draftyard_api.schema import S3Access
from draftyard_api.spec import Target
from draftyard_api.task import GenerateTask, StoredStatesRef
from draftyard_trainer import commands, testing
from draftyard_trainer.generate import generate_in
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.shard import Shard
from draftyard_trainer.hidden_states.testing import PREPARED, prepare_documents, tiny_document
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.bucket import Bucket
from draftyard_trainer.storage.s3 import S3Store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.location import locate

torch.set_num_threads(1)
LENGTHS = (30, 12, 41, 9, 25, 18)
PART_BYTES = 9000


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.write_target(tmp_path_factory.mktemp("target"))


def upload(bucket: Bucket, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


# -- Everything -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_in_buckets_is_a_run_in_folders(
    bucket: Bucket, access: S3Access, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    testing.write_conversations(tmp_path / "chat.json")
    upload(bucket, target, "models/tiny")
    bucket.put("corpora/chat.json", (tmp_path / "chat.json").read_bytes())
    s3 = {"endpoint": access.endpoint}
    spec = {
        "mode": "Offline",
        "target": {"model": f"file://{target}", "dtype": "float32"},
        "draft": {"vocabSize": 256},
        "data": {"source": {"file": {"uri": "file://chat.json"}}, "maxLength": 96, "evalFraction": 0.2},
        "workspace": {"s3": {"uri": f"s3://{bucket.name}/w", **s3}},
        "hiddenStates": {"codec": "lossless", "shards": 2},
        "train": {"epochs": 1, "rowTokens": 256, "tokensPerBatch": 512, "tttSteps": 3, "learningRate": 0.001},
        "evaluate": {"maxPrompts": 4, "maxNewTokens": 12},
    }
    there = {
        **spec,
        "target": {"model": f"s3://{bucket.name}/models/tiny", "dtype": "float32", "s3": s3},
        "data": {**spec["data"], "source": {"s3": {"uri": f"s3://{bucket.name}/corpora", **s3}}},  # type: ignore[dict-item]
    }
    for name, content, workspace in (
        ("here", spec, str(tmp_path / "workspace")),
        ("there", there, f"s3://{bucket.name}/w"),
    ):
        document = {"apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": {"name": "tiny"}}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**document, "spec": content}))
        monkeypatch.chdir(tmp_path)
        assert commands.run([str(file), "--workspace", workspace]) == ExitCode.OK, capsys.readouterr().err
    store = S3Store(bucket, "w", tmp_path / "downloads")
    export = tmp_path / "workspace" / "export" / "tiny"
    assert store.read("export/tiny/model.safetensors") == (export / "model.safetensors").read_bytes()
    published = json.loads(store.read("export/tiny/PUBLISHED.json"))
    assert f"s3://{bucket.name}/w/export/tiny" in published["serve"]["vllm"]
    capsys.readouterr()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", str(access.endpoint))
    assert commands.verify([f"s3://{bucket.name}/w"]) == ExitCode.OK
    assert commands.inspect([f"s3://{bucket.name}/w"]) == ExitCode.OK
    assert "2 of 2 complete" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert commands.report([f"s3://{bucket.name}/w", "--out", str(page)]) == ExitCode.OK
    assert "Published" in page.read_text()
    assert commands.compare([f"s3://{bucket.name}/w:tiny", str(tmp_path / "workspace")]) == ExitCode.OK
    assert "acceptance length" in capsys.readouterr().out


def test_a_target_that_is_not_there(bucket: Bucket, access: S3Access) -> None:
    given = Target(model=f"s3://{bucket.name}/models/none", s3=access)
    with pytest.raises(Failure, match=r"target\.model: given s3://.*there is no object below it") as caught:
        locate(given)
    assert caught.value.code is ExitCode.NOT_FOUND


def test_a_target_has_one_identity_whatever_is_downloaded(
    bucket: Bucket, access: S3Access, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftyard_trainer.storage.s3.default_downloads", lambda: tmp_path / "downloads")
    upload(bucket, target, "models/tiny")
    given = Target(model=f"s3://{bucket.name}/models/tiny", s3=access)
    light = locate(given, weights=False)
    assert not list(light.path.glob("*.safetensors"))
    whole = locate(given)
    assert whole.identity == light.identity
    assert list(whole.path.glob("*.safetensors"))
    bucket.put("models/tiny/generation_config.json", b"{}")
    assert locate(given).identity != whole.identity


# -- One shard -------------------------------------------------------------------------------------------


def make_shard(store: Store, target: Path, codec: str = "balanced") -> StoredStatesRef:
    task = GenerateTask(
        run="tiny", uid="u", workspace=store.uri, target=Target(model=f"file://{target}"), prepared=PREPARED,
        aux_layers=(2, 4, 5), codec=codec, num_shards=1, shard=0,
    )  # fmt: skip
    states = generate_in(store, task, Reporter(Stage.GENERATE), PART_BYTES).hidden_states
    assert states is not None
    return StoredStatesRef(key=states.key, shards=(0,), num_shards=1)


def parts_that_are_seen(store: S3Store, key: str) -> list[str]:
    """Data files that a marker names."""
    shard = Shard(store, shard_path(key, 1, 0))
    markers = [name for name in store.list(shard.folder) if name.endswith(".json") and "/part-" in name]
    return [f"{shard.folder}/{json.loads(store.read(name))['file']}" for name in markers]


@pytest.mark.parametrize("answered", [False, True])
def test_generate_may_die_at_any_request(bucket: Bucket, store: S3Store, target: Path, answered: bool) -> None:
    """No marker without its data, no manifest before the end; the next attempt ends as if nothing had happened."""
    dataset = prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    ref = make_shard(store, target)
    expected = open_stored(store, ref, dataset).samples(range(len(LENGTHS)))
    survived = 0
    while True:
        store.delete_folder("hidden-states")
        writer = S3Store(dying(bucket, survived, answered), store.prefix, store.downloads)
        with suppress(PulledPlugError):
            make_shard(writer, target)
            break
        assert all(store.exists(name) for name in parts_that_are_seen(store, ref.key))
        is_complete = store.exists(f"{shard_path(ref.key, 1, 0)}/{MANIFEST}")
        assert not is_complete or open_stored(store, ref, dataset).samples([0])
        make_shard(store, target)
        for one, other in zip(expected, open_stored(store, ref, dataset).samples(range(len(LENGTHS))), strict=True):
            assert torch.equal(one.aux, other.aux)
        survived += 1
    assert survived > 8


def test_a_node_with_a_cache_reads_once(
    shaky: S3Store, store: S3Store, proxy: Proxy, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a record that rots in the cache comes from the bucket again."""
    monkeypatch.setenv(ENV_CACHE, f"{tmp_path}/cache:1MiB")
    dataset = prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    source = open_stored(shaky, make_shard(store, target), dataset)
    ids = range(len(LENGTHS))
    first = source.samples(ids)
    before = len(proxy.seen)
    again = source.samples(ids)
    assert len(proxy.seen) == before
    (tmp_path / "cache" / min(path.name for path in (tmp_path / "cache").iterdir())).write_bytes(b"rotten")
    mended = source.samples(ids)
    assert len(proxy.seen) == before + 1
    for one, other, third in zip(first, again, mended, strict=True):
        assert torch.equal(one.aux, other.aux)
        assert torch.equal(one.aux, third.aux)


def test_reading_goes_on_through_faults(shaky: S3Store, store: S3Store, proxy: Proxy, target: Path) -> None:
    dataset = prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    ref = make_shard(store, target)
    source = open_stored(shaky, ref, dataset)
    plain = open_stored(store, ref, dataset).samples(range(len(LENGTHS)))
    for what in ("cut", "SlowDown", "slow", "InternalError", "lost"):
        proxy.inject(what, "GET", ".bin", times=3)
    for one, other in zip(plain, source.samples(range(len(LENGTHS))), strict=True):
        assert torch.equal(one.aux, other.aux)
        assert torch.equal(one.last, other.last)
