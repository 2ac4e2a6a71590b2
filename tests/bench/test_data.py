"""The figures of stored states: every bar comes from the JSON, and says when it is short."""

from __future__ import annotations

from typing import Any

import data

GOOD: dict[str, Any] = {
    "codecs": {
        "calibration_seconds": 10.0,
        **{
            name: {
                "share": share, "encode_gb_per_second": 0.5, "decode_gb_per_second": 1.5, "estimated": 101, "real": 100,
                "fidelity": {"rows": 9, "mean": 3e-4, "p99": 3e-3, "agreement": 0.995, "errors": [0.008, 0.009]},
            }
            for name, share in {"none": 1.0, "lossless": 0.7, "balanced": 0.45, "compact": 0.35}.items()
        },
    },
    "acceptance": {"none": 1.27, "balanced": 1.268},
    "generate_seconds": {"none": 100.0, "balanced": 115.0},
    "estimated_bytes": {"none": 1000},
    "stored_bytes": {"none": 1001},
    "first_part": {"estimated": 1010, "real": 1000},
    "waiting": {"local": 0.01, "minio": 0.02},
    "conversations_per_second": {"prepare": 400.0, "bare": 500.0},
    "tokens": {"estimated": 5, "real": 5},
    "states_peak_bytes": {
        "generate": {"1000": 200 * 2**20, "100000": 204 * 2**20}, "read": {"1000": 300 * 2**20, "100000": 303 * 2**20},
    },
    "prepare_peak_bytes": {"1000": 100 * 2**20, "10000": 101 * 2**20, "100000": 102 * 2**20},
}  # fmt: skip


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    return {bar.name: str(bar).endswith(" ok") for bar in data.bars(found)}


def test_all_is_well() -> None:
    short = {name for name, is_well in verdicts(GOOD).items() if not is_well}
    # a short run spends a tenth of its time on sizes of channels, and the bar says so
    assert short == {"encode/share-with-calibration"}
    assert {bar.name: bar.value for bar in data.bars(GOOD)}["encode/share-of-generate"] == (115 - 10) / 100 - 1


def test_what_is_short_says_so() -> None:
    worse = {**GOOD, "acceptance": {"none": 1.27, "balanced": 1.25}, "waiting": {"local": 0.03, "minio": 0.04}}
    worse["prepare_peak_bytes"] = {"1000": 100, "100000": 200}
    worse["states_peak_bytes"] = {"generate": {"1000": 100, "100000": 111}, "read": {"1000": 100, "100000": 109}}
    short = {name for name, is_well in verdicts(worse).items() if not is_well}
    assert short == {
        "acceptance/balanced-against-none", "data-wait/local", "memory/prepare-100k-over-1k",
        "memory/generate-100k-over-1k", "encode/share-with-calibration",
    }  # fmt: skip


def test_the_page_shows_every_codec() -> None:
    lines = data.table(GOOD)
    assert [line for line in lines if "`compact`" in line] == [
        "| `compact` | 0.350 | 0.50, 1.50 | 0.009 | 3.0e-04 | 99.50% |"
    ]
    assert "102 MiB with 100,000 documents" in lines[-4]
    assert lines[-2] == "- Peak memory of the reader: 300 MiB with 1,000 documents, 303 MiB with 100,000 documents."
