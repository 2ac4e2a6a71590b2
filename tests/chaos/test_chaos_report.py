"""The table and the bars are what the records say, and no record of a bad end passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chaos_report import MARKERS, bars, write
from chaos_run import Record, written

GOOD = Record(
    seed=3, mode="Offline", storage="bucket", processes=(1,), codes=[-9, 75, 0], seconds=61.2, lost=0, doubled=0,
    difference=0.0, manifest=[],
    done=[
        {"attempt": 1, "stage": "train", "kind": kind, "victim": victim}
        for kind, victim in (
            ("SIGKILL", "train: rank 0"), ("SIGTERM", "train: rank 0"), ("SIGKILL", "draftyard run"),
            ("SIGKILL", "train: rank 0"), ("SIGTERM", "train: torchrun"), ("store away", "for 2.0 s"),
        )
    ],
)  # fmt: skip


def records(**changes: Any) -> list[dict[str, Any]]:
    good = written(GOOD)
    return [good, {**good, "seed": 5, "processes": [2, 1], "difference": 2e-6}, {**good, **changes}]


def short(found: list[dict[str, Any]]) -> list[str]:
    return [bar.name for bar in bars(found, wanted_runs=3, fewest_kills=5) if str(bar).endswith("short")]


def test_good_runs_meet_every_bar():
    assert written(GOOD)["kills"] == 5
    assert short(records()) == []
    assert short(records()[:2]) == ["chaos/runs"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"kills": 4}, "fewest-kills-of-a-run"),
        ({"codes": [75, 64]}, "not-finished"),
        ({"stuck": 1}, "stuck"),
        ({"lost": 2}, "samples-lost"),
        ({"lost": None}, "samples-lost"),
        ({"doubled": 1}, "samples-doubled"),
        ({"partial": ["export/tiny"]}, "visible-partial-artefacts"),
        ({"manifest": ["files"]}, "other-manifests"),
        ({"manifest": None}, "other-manifests"),
        ({"difference": 1e-9}, "other-weights-at-one-world-size"),
        ({"difference": None}, "other-weights-at-one-world-size"),
        ({"difference": 2e-5, "processes": [2, 1]}, "other-weights-at-others"),
    ],
)
def test_each_bad_end_misses_its_bar(changes, name):
    assert short(records(**changes)) == [f"chaos/{name}"]


def test_the_page_says_what_was_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    write(page, records(), "c0de", (3, 5))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "3 runs with 15 kills, in 9 attempts; trainer of sources `c0de`." in text
    assert "| train: rank 0 | 6 | 3 |" in text
    assert "| 3 | Offline | given | bucket | 1 | 3 | 5 | 61 | nothing |" in text
    assert "| 5 | Offline | given | bucket | 2, 1 | 3 | 5 | 61 | 2.0e-06 |" in text
    assert "bar chaos/runs 3 (needs >= 3) ok" in capsys.readouterr().out
