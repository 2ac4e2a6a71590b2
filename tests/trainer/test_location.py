"""Where a target is, and which one it is: local folders, the hub and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Target
from draftyard_trainer.target.location import (
    BLOCK_BYTES,
    BLOCKS,
    Hub,
    block_offsets,
    content_sha256,
    locate,
    require_one_gpu,
)

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 384,
}  # fmt: skip


def write_model(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A folder with a config, a tokenizer's name and one small weight."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or LLAMA))
    (folder / "tokenizer.json").write_text("{}")
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    save_file({"lm_head.weight": weight}, folder / "model.safetensors")
    return folder


def local(folder: Path) -> Target:
    return Target(model=f"file://{folder}")


def hub_error(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    """An answer of the hub, as its client raises it."""
    return kind(f"{status} from the hub", response=SimpleNamespace(status_code=status, headers={}, request=None))


class FakeHub:
    """Answers like `snapshot_download`: first with errors, then with a folder."""

    def __init__(self, folder: Path, *refusals: Exception) -> None:
        self.folder = folder
        self.refusals = list(refusals)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, **options: Any) -> str:
        self.asked.append({"repo_id": repo_id, **options})
        if self.refusals:
            raise self.refusals.pop(0)
        return str(self.folder)

    def hub(self) -> Hub:
        return Hub(self, waits_seconds=(0.0, 0.0))


# -- A local folder ----------------------------------------------------------------------------------


def test_a_local_folder(tmp_path: Path) -> None:
    files = locate(local(write_model(tmp_path / "model")))
    assert files.path == tmp_path / "model"
    assert len(files.identity) == 64
    assert files.raw_config == LLAMA
    assert files.config["num_hidden_layers"] == 8
    # not in config.json: the architecture's defaults
    assert files.config["num_key_value_heads"] == 4
    assert files.config["rms_norm_eps"] == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("config", "layers", "width"),
    [
        pytest.param({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64,
                      "num_hidden_layers": 9}}, 9, 64, id="nested in text_config"),
        pytest.param({"model_type": "gpt2", "n_layer": 9, "n_embd": 64, "n_head": 4}, 9, 64, id="names of its own"),
    ],
)  # fmt: skip
def test_the_text_config_is_flat_and_whole(tmp_path: Path, config: dict[str, Any], layers: int, width: int) -> None:
    found = locate(local(write_model(tmp_path, config))).config
    assert (found["num_hidden_layers"], found["hidden_size"]) == (layers, width)
    assert found["vocab_size"] > 0
    assert "text_config" not in found
    json.dumps(found)


def test_the_config_does_not_say_where_it_was_loaded(tmp_path: Path) -> None:
    first = locate(local(write_model(tmp_path / "first")))
    second = locate(local(write_model(tmp_path / "second")))
    assert first.config == second.config
    assert first.identity == second.identity


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"target\.model: given file://.*/gone") as caught:
        locate(local(tmp_path / "gone"))
    assert (caught.value.code, caught.value.reason) == (ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"has no config\.json") as caught:
        locate(local(tmp_path))
    assert caught.value.code is ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param("{", "is no JSON", id="broken JSON"),
        pytest.param("[]", "no JSON object", id="a list"),
        pytest.param('{"model_type": "no_such_model"}', "transformers cannot read", id="an unknown architecture"),
    ],
)
def test_unusable_configs(tmp_path: Path, content: str, says: str) -> None:
    (write_model(tmp_path) / "config.json").write_text(content)
    with pytest.raises(Failure, match=says) as caught:
        locate(local(tmp_path))
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED)


def test_a_target_over_several_gpus_is_refused_where_one_process_runs_it() -> None:
    require_one_gpu(Target(model="org/name"), "with mode Online")
    words = (
        r"target\.tensorParallel: given 4; accepted in this version: 1, with mode Online; more only for mode Offline"
    )
    with pytest.raises(Failure, match=words) as caught:
        require_one_gpu(Target(model="org/name", tensor_parallel=4), "with mode Online")
    assert caught.value.code is ExitCode.UNSUPPORTED


# -- Its identity ------------------------------------------------------------------------------------


def change_weight(folder: Path) -> None:
    write_model(folder, seed=1)


def change_config(folder: Path) -> None:
    write_model(folder, {**LLAMA, "rope_theta": 5e5})


def rename_weight(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def change_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def add_a_model_card(folder: Path) -> None:
    (folder / "README.md").write_text("hello")
    (folder / ".cache.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        pytest.param(change_weight, False, id="fine-tuned weights of equal shapes"),
        pytest.param(change_config, False, id="another config"),
        pytest.param(rename_weight, False, id="another file name"),
        pytest.param(change_tokenizer, False, id="another tokenizer"),
        pytest.param(add_a_model_card, True, id="a model card and hidden files say nothing"),
    ],
)
def test_identity(tmp_path: Path, change: Callable[[Path], None], is_same: bool) -> None:
    before = content_sha256(write_model(tmp_path))
    change(tmp_path)
    assert (content_sha256(tmp_path) == before) is is_same


def test_identity_sees_any_large_change_of_a_large_file(tmp_path: Path) -> None:
    size = 8 * 2**20
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    before = content_sha256(tmp_path)
    with file.open("r+b") as content:
        content.seek(size // 3)
        content.write(b"\1" * (size // BLOCKS + BLOCK_BYTES))
    assert content_sha256(tmp_path) != before


@pytest.mark.parametrize(
    ("size", "blocks"),
    [(0, 0), (1, 1), (BLOCK_BYTES + 1, 2), (BLOCKS * BLOCK_BYTES, BLOCKS), (10**12, BLOCKS)],
)
def test_blocks_span_the_file(size: int, blocks: int) -> None:
    offsets = block_offsets(size)
    assert len(offsets) == blocks
    assert offsets == sorted(set(offsets))
    if offsets:
        assert offsets[0] == 0
        assert offsets[-1] + BLOCK_BYTES >= size


# -- The hub -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["org/name", "hf://org/name"])
def test_a_snapshot_is_its_commit(tmp_path: Path, model: str) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    fake = FakeHub(write_model(tmp_path / "snapshots" / commit))
    files = locate(Target(model=model, revision="v1"), hub=fake.hub())
    assert files.identity == commit
    assert fake.asked[0]["repo_id"] == "org/name"
    assert fake.asked[0]["revision"] == "v1"
    assert "*.safetensors" in fake.asked[0]["allow_patterns"]
    assert not any(pattern.endswith(".bin") or pattern == "*.py" for pattern in fake.asked[0]["allow_patterns"])


def test_weights_are_left_out_where_nobody_reads_them(tmp_path: Path) -> None:
    fake = FakeHub(write_model(tmp_path))
    locate(Target(model="org/name"), weights=False, hub=fake.hub())
    assert "*.safetensors" not in fake.asked[0]["allow_patterns"]


@pytest.mark.parametrize(
    ("error", "code", "reason", "says"),
    [
        pytest.param(hub_error(errors.RepositoryNotFoundError, 404), ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND,
                     "no such repository", id="no such repository"),
        pytest.param(hub_error(errors.RevisionNotFoundError, 404), ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND,
                     "no revision v9", id="no such revision"),
        pytest.param(hub_error(errors.RepositoryNotFoundError, 401), ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED,
                     "set target.tokenSecretRef", id="a private repository"),
        pytest.param(hub_error(errors.GatedRepoError, 403), ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED,
                     "set target.tokenSecretRef", id="a gated repository"),
        pytest.param(errors.LocalEntryNotFoundError("offline"), ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE,
                     "out of reach", id="no network"),
        pytest.param(hub_error(errors.HfHubHTTPError, 503), ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE,
                     "answers 503", id="the hub is down"),
    ],
)  # fmt: skip
def test_the_hub_refuses(tmp_path: Path, error: Exception, code: ExitCode, reason: Reason, says: str) -> None:
    fake = FakeHub(tmp_path, *[error] * 3)
    with pytest.raises(Failure, match=says) as caught:
        locate(Target(model="org/name", revision="v9"), hub=fake.hub())
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert "org/name" in caught.value.message
    assert len(fake.asked) == (3 if code is ExitCode.UNAVAILABLE else 1)


def test_a_hub_that_comes_back(tmp_path: Path) -> None:
    fake = FakeHub(write_model(tmp_path / "abc"), hub_error(errors.HfHubHTTPError, 502), ConnectionError("reset"))
    assert locate(Target(model="org/name"), hub=fake.hub()).identity == "abc"
