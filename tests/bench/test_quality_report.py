"""Bars and tables of the comparison of drafts come from what was measured, whatever came out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import quality_report
from recipe import Recipe

PAGE = "\n".join(("# Title", *quality_report.MARKERS, "between", *quality_report.OBJECTIVE_MARKERS, "rest", ""))


def draft(served: float, predicted: float | None = None, ids_equal: float = 1.0) -> dict[str, Any]:
    positions = [0.2, 0.04, 0.01]
    return {
        "seconds": 100.0,
        "predicted": {"length": served if predicted is None else predicted, "per_position": positions,
                      "sampled": [0.3, 0.2, 0.1]},
        "served": {"length": served, "per_position": positions, "ids_equal": ids_equal},
    }  # fmt: skip


def report(folder: Path, **sections: Any) -> Path:
    page, file = folder / "page.md", folder / "quality.json"
    page.write_text(PAGE)
    file.write_text(json.dumps({"recipe": asdict(Recipe()), **sections}))
    quality_report.main(file, page)
    return page


def test_bars_compare_means_over_seeds_and_take_the_worst_of_the_rest(tmp_path, capsys):
    peers = {
        "draftyard": {"1": draft(1.30), "2": draft(1.32, predicted=1.30)},
        "specforge": {"1": draft(1.20), "2": draft(1.26)},
        "speculators": {"1": draft(1.40), "2": draft(1.42, ids_equal=0.5)},
    }
    page = report(tmp_path, peers=peers)
    assert capsys.readouterr().out.splitlines() == [
        "bar quality/ours-over-specforge 1.07 (needs >= 1) ok",
        "bar quality/ours-over-speculators 0.929 (needs >= 1) short",
        "bar quality/predicted-over-served 0.0152 (needs <= 0.02) ok",
        "bar quality/greedy-ids-equal 0.5 (needs >= 1) short",
    ]
    text = page.read_text()
    cells = "1.310 ± 0.014 | 1.300, 1.320 | 1.300 ± 0.000 | 1.52% | 20.0%, 4.0%, 1.0% | 100% | 100"
    assert f"| Draftyard | {cells} |" in text
    assert "240 steps of at most 512 tokens out of 512 documents, 3 unroll steps, peak learning rate 0.001" in text
    assert text.startswith("# Title\n")
    assert text.endswith("\nrest\n")


def test_objectives_have_a_table_of_their_own_and_no_bar(tmp_path, capsys):
    objectives = {"draftyard": {"1": draft(1.3)}, "lk_alpha": {"1": draft(1.35)}}
    text = report(tmp_path, objectives=objectives).read_text()
    assert capsys.readouterr().out == ""
    assert "| `kl` | 1.300 | 20.0%, 4.0%, 1.0% | 30.0%, 20.0%, 10.0% | 100 |" in text
    assert "| `lk_alpha` | 1.350 |" in text
    # What was not measured this time stays as it was.
    assert "\n".join(quality_report.MARKERS) in text
