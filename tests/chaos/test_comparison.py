"""What the comparison of two ends must notice: each of these was planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comparison
import pytest
import torch
from comparison import Samples, compare_manifests, compare_samples, compare_weights, find_partial
from safetensors.torch import save
from test_checkpoint import RUN, Training, truncate
from test_export import export

from draftyard_trainer.checkpoint import WEIGHTS
from draftyard_trainer.storage.local import LocalStore


def step(number: int, documents: int = 4, hashed: int = 100) -> dict[str, Any]:
    return {"step": number, "documents": documents, "documentHash": hashed + number}


WANTED = [step(1), step(2), step(3)]


@pytest.mark.parametrize(
    ("curve", "samples"),
    [
        pytest.param(WANTED, Samples(0, 0), id="as it should be"),
        pytest.param(WANTED[:2], Samples(4, 0), id="a step is missing"),
        pytest.param([], Samples(12, 0), id="nothing is there"),
        pytest.param([*WANTED, step(2)], Samples(0, 4), id="a step twice"),
        pytest.param([*WANTED, step(4)], Samples(0, 4), id="a step too many"),
        pytest.param([step(1), step(2, documents=3), step(3)], Samples(1, 0), id="a document is missing"),
        pytest.param([step(1), step(2, documents=6), step(3)], Samples(0, 2), id="two documents too many"),
        pytest.param([step(1), step(2, hashed=7), step(3)], Samples(4, 4), id="other documents"),
    ],
)
def test_samples(curve, samples):
    assert compare_samples(curve, WANTED) == samples


def tensors(**changed: torch.Tensor) -> bytes:
    return save({"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5]), **changed})


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        pytest.param(tensors(), 0.0, id="to the bit"),
        pytest.param(tensors(a=torch.tensor([1.0, -2.002])), pytest.approx(1e-3, rel=1e-3), id="of a share"),
        pytest.param(tensors(c=torch.ones(1)), float("inf"), id="a tensor too many"),
        pytest.param(tensors(a=torch.ones(3)), float("inf"), id="another shape"),
        pytest.param(save({"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([0.5])}, {"x": "y"}), float("inf"),
                     id="other bytes around equal tensors"),
    ],
)  # fmt: skip
def test_weights(found, difference):
    assert compare_weights(found, tensors()) == difference


def test_manifests():
    wanted = {"run": "tiny", "files": {"a": 1}, "schedule": {"steps": 4}}
    assert compare_manifests(wanted, wanted, is_exact=True) == []
    other = {**wanted, "files": {"a": 2}}
    assert compare_manifests(other, wanted, is_exact=True) == ["files"]
    assert compare_manifests(other, wanted, is_exact=False) == []
    assert compare_manifests({**wanted, "more": 1, "schedule": {"steps": 3}}, wanted, is_exact=False) == [
        "more", "schedule",
    ]  # fmt: skip


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else writes here."""
    monkeypatch.setattr(comparison, "SETTLE_SECONDS", 0.0)


def test_what_is_whole_is_not_partial(tmp_path: Path, settled: None):
    training = Training(tmp_path)
    training.save_at(2, 4)
    export(training.store)
    assert find_partial(training.store, RUN) == []
    # what nobody reads is none: a removal that was cut off
    training.file(2, "MANIFEST.json").unlink()
    assert find_partial(training.store, RUN) == []


def test_a_torn_checkpoint_is_partial(tmp_path: Path, settled: None):
    training = Training(tmp_path)
    training.save_at(2, 4)
    truncate(training.file(4, WEIGHTS))
    assert find_partial(training.store, RUN) == [f"train/{RUN}/step-00000004"]


def test_a_torn_export_is_partial(tmp_path: Path, settled: None):
    store = LocalStore(tmp_path)
    export(store)
    truncate(tmp_path / "export" / RUN / "model.safetensors")
    assert find_partial(store, RUN) == [f"export/{RUN}/model.safetensors"]
