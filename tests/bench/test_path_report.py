"""Time to an acceptance length, from curves; the page gets its table between markers of its own."""

from __future__ import annotations

import json
from typing import Any

import path_report

PEERS_TAKE_TWICE = {"results": {name: {"seconds": [2.0 if name != "draftyard" else 1.0]} for name in (
    "draftyard", "specforge", "speculators")}}  # fmt: skip


def curve(*points: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"step": 10 * (place + 1), "seconds": seconds, "asked": 0.5, "lengths": {"3": length, "7": length},
         "spread": {"3": 0.01, "7": 0.02}}
        for place, (seconds, length) in enumerate(points)
    ]  # fmt: skip


def test_time_to_an_acceptance_length_is_read_between_looks(tmp_path, capsys):
    """Full ends with 1.4 after 100 s; the other passes it half way between 20 and 40 s; a peer takes twice as long."""
    page = tmp_path / "page.md"
    page.write_text("\n".join(("# Title", *path_report.MARKERS, "")))
    (tmp_path / "step.json").write_text(json.dumps({"cases": {"h576-t512-b4": PEERS_TAKE_TWICE}}))
    curves = {"full": curve((50, 1.2), (100, 1.4)), "early": curve((20, 1.3), (40, 1.5)), "bad": curve((10, 1.1))}
    (tmp_path / "on-path.json").write_text(json.dumps(curves))
    path_report.main(tmp_path, page)
    out = capsys.readouterr().out
    assert "bar on-path/time-to-acceptance-against-full 3.33 (needs >= 1) ok" in out
    assert "bar on-path/time-to-acceptance-against-peer 6.67 (needs >= 3) ok" in out
    assert "| early | 20 | 50% | 40 | 1.500 ± 0.010 | 1.500 ± 0.020 | 30 |" in page.read_text()
    assert "| bad | 10 | 50% | 10 | 1.100 ± 0.010 | 1.100 ± 0.020 | never |" in page.read_text()


def test_without_the_steps_of_peers_nothing_is_said_of_them(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("\n".join(path_report.MARKERS))
    curves = {"full": curve((50, 1.2)), "full-3-steps": curve((20, 1.1), (30, 1.2)), "early": curve((10, 1.2))}
    (tmp_path / "on-path.json").write_text(json.dumps(curves))
    path_report.main(tmp_path, page)
    assert capsys.readouterr().out.splitlines() == [
        "bar on-path/time-to-acceptance-against-full 5 (needs >= 1) ok",
        "bar on-path/time-to-acceptance-against-full-3-steps 3 (needs >= 1) ok",
    ]
