"""A target over two processes gives the states of one, and nobody waits for a process that has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import ENV_STATE_DIR, ENV_TERMINATION_LOG, RESULT_FILE
from draftyard_api.progress import StageResult
from draftyard_api.spec import Target
from draftyard_api.task import GenerateTask, StoredStatesRef
from draftyard_trainer import testing
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.testing import PREPARED, prepare_documents, tiny_document
from draftyard_trainer.storage.local import LocalStore

LENGTHS = (30, 12, 41, 9, 25, 18)


def generate(store: LocalStore, folder: Path, target: Target, **changes: object) -> StageResult:
    """The stage as a pod runs it."""
    folder.mkdir()
    fields = {
        "run": "tiny", "uid": "u", "workspace": store.uri, "prepared": PREPARED, "aux_layers": (2, 4, 5),
        "codec": "none", "num_shards": 1, "shard": 0, "target": target,
        **changes,
    }  # fmt: skip
    (folder / "task.json").write_text(GenerateTask.model_validate(fields).model_dump_json(by_alias=True))
    environment = {
        **os.environ, ENV_STATE_DIR: str(folder / "state"), ENV_TERMINATION_LOG: str(folder / "said"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "draftyard_api.cli", "generate", "--task", str(folder / "task.json")]
    with (folder / "log.txt").open("wb") as log:
        ended = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=240, check=False)
    result = StageResult.model_validate_json((folder / "state" / RESULT_FILE).read_bytes())
    assert result.exit_code == ended.returncode, (folder / "log.txt").read_text()
    return result


def samples(folder: Path, target: Path, tensor_parallel: int) -> list[Sample]:
    store = LocalStore(folder / f"w{tensor_parallel}")
    dataset = prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    given = Target(model=f"file://{target}", dtype="float32", tensor_parallel=tensor_parallel)
    result = generate(store, folder / f"p{tensor_parallel}", given)
    assert result.exit_code == ExitCode.OK, (folder / f"p{tensor_parallel}" / "log.txt").read_text()
    assert result.hidden_states is not None
    ref = StoredStatesRef(key=result.hidden_states.key, shards=(0,), num_shards=1)
    return open_stored(store, ref, dataset).samples(range(len(LENGTHS)))


LATENT = {
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "num_experts_per_tok": 2,
}  # fmt: skip
"""Attention stays whole in every process, only experts are spread."""


@pytest.mark.parametrize(
    ("family", "more"),
    [
        pytest.param("llama", {}, id="llama"),
        pytest.param("qwen3_moe", {}, id="qwen3_moe"),
        pytest.param(
            "llama", {**LATENT, "model_type": "deepseek_v3", "q_lora_rank": 16, "n_routed_experts": 4},
            id="deepseek_v3", marks=pytest.mark.slow,
        ),
        pytest.param(
            "llama", {**LATENT, "model_type": "bailing_hybrid", "num_local_experts": 4, "layer_group_size": 2},
            id="bailing_hybrid", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_two_processes_capture_what_one_does(tmp_path: Path, family: str, more: dict[str, object]) -> None:
    target = testing.write_target(tmp_path / "target", family, **more)
    for one, two in zip(samples(tmp_path, target, 1), samples(tmp_path, target, 2), strict=True):
        assert one.document.tokens.tolist() == two.document.tokens.tolist()
        assert torch.allclose(one.aux, two.aux, rtol=1e-4, atol=1e-4)
        assert torch.allclose(one.last, two.last, rtol=1e-4, atol=1e-4)
        assert torch.equal(one.tok, two.tok)
        assert torch.allclose(one.lse, two.lse, atol=1e-4)


def test_a_failure_of_the_first_process_ends_the_other(tmp_path: Path) -> None:
    target = testing.write_target(tmp_path / "target")
    store = LocalStore(tmp_path / "workspace")
    prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    given = Target(model=f"file://{target}", dtype="float32", tensor_parallel=2)
    result = generate(store, tmp_path / "p", given, aux_layers=(2, 4, 40))
    assert result.exit_code == ExitCode.UNSUPPORTED
    assert "given 40; accepted: 1 to 7" in result.message
