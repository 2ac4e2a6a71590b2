"""What the benchmark measures: its inputs, its limit, and that it stops where losses differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import draftyard
import inputs
import limit
import run
from cases import TTT_STEPS, Case, Shape, chosen

TINY = Shape(64, 2, 1, 96, 256, 128, head_dim=32)


def test_an_unknown_case_is_named():
    assert [case.name for case in chosen("h256-t2048,h576-t512")] == ["h256-t2048", "h576-t512"]
    with pytest.raises(SystemExit, match="--cases: nope; accepted: h576-t512"):
        chosen("nope")


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_made_up_masks_have_the_share_and_keep_off_the_ends(share):
    (document,) = inputs.made_up(Case("x", TINY, 512, loss_share=share))
    assert document.supervised / 512 == pytest.approx(share, abs=0.03)
    assert document.spans[0, 0] >= TTT_STEPS + 1
    assert document.spans.sum(axis=1).max() < 512


def test_spans_are_cut_at_both_ends():
    spans = np.array([[0, 4], [6, 10], [30, 10]])
    assert inputs.inside(spans, 40).tolist() == [[8, 8], [30, 9]]


def test_the_typical_batch_is_near_the_mean():
    documents = [inputs.Lengths(n, np.array([[0, n // 2]])) for n in (100, 200, 300, 400)]
    batch = inputs.typical_batch(documents, Case("x", TINY, 512, batch=4, loss_share=None))
    assert sum(document.num_tokens for document in batch) == 1000


def test_the_limit_is_what_a_step_computes_less_what_it_redoes():
    case = Case("x", TINY, 300)
    tensors = inputs.make(TINY, inputs.made_up(case))
    bare = limit.build(case, tensors)
    step = draftyard.build(case, tensors)

    def in_place(_: Any, left: Any, right: Any, **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    # It does not know the in-place form by itself.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counted:
        step.step(0)
    counts = counted.get_flop_counts()["Global"]
    dense = sum(count for operation, count in counts.items() if "attention" not in str(operation))
    # No step may do less than its limit, nor much more.
    assert 1.0 <= dense / bare.dense_flops < 1.15
    # The kernel's own count takes every pair of a square, and makes the scores anew in its backward.
    assert bare.attention_flops < sum(counts.values()) - dense


def test_a_row_each_gives_the_same_loss():
    case = Case("x", TINY, 80, batch=3)
    tensors = inputs.make(TINY, inputs.made_up(case))
    packed, apart = (draftyard.build(case, tensors, packed=packed).step(0)["ce"] for packed in (True, False))
    assert packed == pytest.approx(apart, rel=1e-5)


def test_losses_that_differ_stop_the_run(monkeypatch: pytest.MonkeyPatch):
    def visit(trainer: str, *_: Any) -> dict[str, Any]:
        losses = {"ce": [1.0 + (trainer == "specforge") * 2e-4]} if trainer != "limit" else {}
        return {"seconds": [1.0], "peak_mib": 1.0, "losses": losses, "torch": "2"}

    monkeypatch.setattr(run, "visit", visit)
    case = Case("x", TINY, 80)
    with pytest.raises(SystemExit, match=r"x: losses differ by 2.0e-04; at most 1e-04"):
        run.measure(case, inputs.made_up(case), Path("x"), [1])


def test_a_peer_without_memory_is_recorded():
    turn = {"seconds": [1.0, 2.0], "peak_mib": 5.0, "losses": {}, "torch": "2"}
    assert run.merge([turn, {**turn, "seconds": [3.0], "peak_mib": 7.0}])["seconds"] == [1.0, 2.0, 3.0]
    assert run.merge([turn, {"failed": "out of memory"}]) == {"failed": "out of memory"}
