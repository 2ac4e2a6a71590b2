"""What a person reads while a run works and when it ends."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from draftyard_api.names import Stage
from draftyard_api.progress import (
    Acceptance,
    Counts,
    Prepared,
    Progress,
    Regenerated,
    StageResult,
    StoredStates,
    Trained,
)
from draftyard_trainer import display

COUNTS = Counts(
    rows=50, documents=40, train_documents=32, held_out_documents=8, skipped={"no_assistant_turn": 7, "bad_role": 3},
    truncated_documents=2, tokens=4000, train_tokens=3200, loss_tokens=2500, label_rows=2600, steps=12,
)  # fmt: skip
PREPARED = Prepared(
    prepared="abc", counts=COUNTS, vocab_size=256, vocab_coverage="0.984", aux_layers=(2, 4, 5), target_commit="c",
    data_sha256="d", tokens_sha256="t", fingerprint="f", free_bytes=None,
)  # fmt: skip
ACCEPTANCE = Acceptance(
    length="1.26", per_position=("0.22", "0.04", "0.00"), draft_tokens=3, prompts=32, source="Measured"
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (21480, "5 h 58 min")],
)
def test_duration(seconds, text):
    assert display.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB"), (2.64 * 2**40, "2.64 TiB")]
)
def test_size(count, text):
    assert display.size(count) == text


@pytest.mark.parametrize(
    ("result", "words"),
    [
        pytest.param(
            StageResult(stage=Stage.PREPARE, prepared=PREPARED),
            "40 documents, 4000 tokens (2500 supervised), 10 rows skipped, coverage 0.984", id="prepare",
        ),
        pytest.param(
            StageResult(stage=Stage.REGENERATE, regenerated=Regenerated(
                key="k", shard=1, shards=2, conversations=20, answers=41, unfinished=3, tokens=2000, skipped={},
                target_commit="c")),
            "shard 2 of 2: 20 conversations, 41 answers of 2000 tokens, 3 cut at their limit", id="regenerate",
        ),
        pytest.param(
            StageResult(stage=Stage.GENERATE, hidden_states=StoredStates(
                key="k", shard=0, shards=2, documents=20, tokens=2000, bytes=10)),
            "shard 1 of 2: 20 documents, 2000 tokens", id="generate",
        ),
        pytest.param(
            StageResult(stage=Stage.TRAIN, trained=Trained(steps=12, best_step=8, loss="4.2", acceptance=ACCEPTANCE)),
            "12 steps, loss 4.2; best step 8, acceptance length 1.26", id="train",
        ),
        pytest.param(
            StageResult(stage=Stage.EVALUATE, acceptance=ACCEPTANCE),
            "acceptance length 1.26 (0.22 0.04 0.00), measured on 32 prompts", id="evaluate",
        ),
        pytest.param(StageResult(stage=Stage.TRAIN, message="nothing to do"), "nothing to do", id="anything else"),
    ],
)  # fmt: skip
def test_outcome(result, words):
    assert words in display.outcome(result)


def test_the_table_has_a_line_per_stage_with_bytes_time_and_memory():
    out = io.StringIO()
    result = StageResult(
        stage=Stage.EVALUATE, acceptance=ACCEPTANCE, bytes=2048, seconds=75.0, peak_memory_bytes=3 * 2**30
    )
    Console(file=out, width=200).print(display.stage_table([result, result]))
    lines = [line for line in out.getvalue().splitlines() if "evaluate" in line]
    assert len(lines) == 2
    assert all(words in lines[0] for words in ("2.0 KiB", "1 min 15 s", "3.0 GiB"))


def test_a_reading_is_one_line_without_a_terminal():
    progress = Progress(
        stage=Stage.TRAIN, activity="step", unit="steps", done=3, total=12, loss="4.2", tokens_per_second="812",
        acceptance="1.10", estimated_remaining_seconds=90, heartbeat=time.time(),
    )  # fmt: skip
    assert display.counted(progress) == "step 3 of 12 steps, 1 min 30 s left"
    assert display.describe(progress) == "812 tok/s loss 4.2 acceptance 1.10"


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_a_bar_shows_readings_of_changing_activities(terminal):
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=terminal)
    with display.StageBar(console, "train") as bar:
        for activity in ("step", "evaluating"):
            bar.show(Progress(stage=Stage.TRAIN, activity=activity, unit="steps", done=1, total=2, heartbeat=0.0))
    assert "train" in out.getvalue()
    assert ("evaluating" in out.getvalue()) == terminal
