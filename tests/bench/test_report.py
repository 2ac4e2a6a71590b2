"""Bars are computed from what was measured, whatever came out; the page gets them between its markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import report

GPU = "\n".join((report.GPU_MARKERS[0], "of another machine", report.GPU_MARKERS[1]))
PAGE = f"# Title\n{report.BEGIN}\nold\n{report.END}\n{GPU}\nrest\n"


def case(ours: float, specforge: float | None, speculators: float | None, **shape: Any) -> dict[str, Any]:
    seconds = {"draftyard": ours, "specforge": specforge, "speculators": speculators, "limit": 0.8}
    results = {
        name: {"failed": "out of memory"} if value is None else {"seconds": [9.0, value, 0.01], "peak_mib": 100 * value}
        for name, value in seconds.items()
    }
    return {
        "case": {"length": 512, "shape": {"draft_vocab_size": 8000, **shape}},
        "tokens": 512, "padded": 512, "supervised": 256, "dense": True, "results": results,
    }  # fmt: skip


def write(folder: Path, cases: dict[str, Any]) -> Path:
    page = folder / "page.md"
    page.write_text(PAGE)
    step = {"cases": cases, "threads": 2, "ttt_steps": 7, "packing_waste": 0.04}
    (folder / "step.json").write_text(json.dumps(step))
    return page


def test_bars_say_what_is_short(tmp_path, capsys):
    page = write(tmp_path, {"a": case(1.0, 1.5, 2.0)})
    report.main(tmp_path, page)
    assert capsys.readouterr().out.splitlines() == [
        "bar limit-share/a 0.8 (needs >= 0.75) ok",
        "bar speed/a 1.5 (needs >= 1.25) ok",
        "bar packing-waste 0.04 (needs <= 0.03) short",
    ]
    text = page.read_text()
    assert text.startswith("# Title\n" + report.BEGIN)
    assert text.endswith(f"{report.END}\n{GPU}\nrest\n")
    assert "old" not in text
    assert "| a | 512 (512) | 50% | 1.00 s | 1.50 s | 2.00 s | 0.80 | 1.50x | 100, 150, 200 |" in text


def test_a_peer_that_did_not_fit_is_not_the_faster_one(tmp_path, capsys):
    wide = case(1.0, None, 2.5, draft_vocab_size=32000)
    report.main(tmp_path, write(tmp_path, {"wide": {**wide, "dense": False}}))
    lines = capsys.readouterr().out.splitlines()
    assert "bar memory/wide 0.4 (needs <= 0.33) short" in lines
    assert "bar speed-vs-packing/wide 2.5 (needs >= 2) ok" in lines
    assert "bar speed-vs-padding/wide inf (needs >= 4) ok" in lines
    assert "did not fit" in (tmp_path / "page.md").read_text()


def test_padding_can_be_beaten_by_the_bare_products_at_most(tmp_path):
    """3 s beside products of 0.8 s; a batch without padding says nothing of it."""
    padded = {**case(1.0, 3.0, 2.5), "padded": 1024}
    page = write(tmp_path, {"real": padded, "dense": case(1.0, 3.0, 2.5)})
    report.main(tmp_path, page)
    lines = [line for line in page.read_text().splitlines() if "times the bare products" in line]
    told = "3.75 times the bare products, which no exact step can be faster than, and 0.3 GiB above the model."
    assert lines == [f"- real: specforge takes {told}"]


@pytest.mark.parametrize(("long", "verdict"), [(4.0, "ok"), (4.5, "short")])
def test_growth_of_memory_is_judged_where_both_lengths_are(tmp_path, capsys, long, verdict):
    cases = {"h256-t2048": case(1.0, 2.0, 2.0), "h256-t8192": case(long, 20.0, 20.0)}
    report.main(tmp_path, write(tmp_path, cases))
    assert f"bar memory-growth/t2048-t8192 {long:g} (needs <= 4.2) {verdict}" in capsys.readouterr().out


def test_capture_and_gpu_are_told_where_they_were_measured(tmp_path, capsys):
    page = write(tmp_path, {})
    (tmp_path / "capture.json").write_text(json.dumps({"seconds": {"bare": 1.0, "copies": 1.25, "stored": 2.0}}))
    found = {"tokens": 8192, "seconds": 0.3, "tokens_per_second": 27000.0, "tflops": 300.0, "limit_share": 0.5,
             "peak_gib": 12.0}  # fmt: skip
    (tmp_path / "gpu.json").write_text(json.dumps({"gpu": "H", "torch": "2", "cases": {"x": found}}))
    report.main(tmp_path, page)
    out = capsys.readouterr().out
    assert "bar capture-copies 0.8 (needs >= 0.95) short" in out
    assert "bar capture-stored 0.5 (needs >= 0.8) short" in out
    assert "| x | 8192 | 0.300 s | 27,000 | 300 | 0.50 | 12.0 GiB |" in page.read_text()
    assert "of another machine" not in page.read_text()


def test_rows_are_measured_again_alone_and_the_others_stay(tmp_path, capsys):
    page = write(tmp_path, {"a": case(1.0, 1.5, 2.0), "b": case(1.0, 2.0, 3.0)})
    report.main(tmp_path, page)
    before = page.read_text().splitlines()
    (tmp_path / "step.json").write_text(
        json.dumps({"cases": {"b": case(1.0, 4.0, 5.0)}, "threads": 2, "ttt_steps": 7, "packing_waste": 0.04})
    )
    report.main(tmp_path, page, rows=True)
    changed = [(old, new) for old, new in zip(before, page.read_text().splitlines(), strict=True) if old != new]
    assert [new for _, new in changed] == [
        "| b | 512 (512) | 50% | 1.00 s | 4.00 s | 5.00 s | 0.80 | 4.00x | 100, 400, 500 |",
        "bar speed/b 4 (needs >= 1.25) ok",
    ]


def test_a_row_that_the_page_does_not_have_is_no_row_to_renew(tmp_path):
    page = write(tmp_path, {"a": case(1.0, 1.5, 2.0)})
    with pytest.raises(SystemExit, match=r"no line of .*bar limit-share/a"):
        report.main(tmp_path, page, rows=True)
