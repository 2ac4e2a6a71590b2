"""Progress is a small file that is always whole; a stop is raised where the stage says it is safe."""

from __future__ import annotations

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import PROGRESS_FILE, Stage
from draftyard_api.progress import Progress
from draftyard_trainer.reporting import Reporter


def read(folder) -> Progress:
    return Progress.model_validate_json((folder / PROGRESS_FILE).read_bytes())


def test_begin_writes_at_once_and_counts_what_was_found_finished(tmp_path):
    Reporter(Stage.GENERATE, tmp_path).begin("capturing", "tokens", total=100, done=40)
    seen = read(tmp_path)
    assert (seen.activity, seen.unit, seen.done, seen.total) == ("capturing", "tokens", 40, 100)


def test_the_last_step_is_always_written(tmp_path):
    reporter = Reporter(Stage.PREPARE, tmp_path)
    reporter.begin("counting", "documents", total=3)
    for _ in range(3):
        reporter.advance()
    assert read(tmp_path).done == 3


def test_remaining_time_does_not_count_what_was_found_finished(tmp_path):
    reporter = Reporter(Stage.GENERATE, tmp_path)
    reporter.begin("capturing", "tokens", total=1000, done=900)
    reporter.advance(100)
    assert reporter.progress.estimated_remaining_seconds == 0


def test_advance_raises_when_a_stop_was_asked_for():
    reporter = Reporter(Stage.PREPARE)
    reporter.begin("counting", "documents")
    reporter.stop_requested = True
    with pytest.raises(Failure, match="finished work is kept") as caught:
        reporter.advance()
    assert caught.value.code == ExitCode.INTERRUPTED
    assert reporter.progress.done == 1


def test_update_never_stops_the_stage():
    reporter = Reporter(Stage.TRAIN)
    reporter.stop_requested = True
    reporter.update(loss="NaN", step=7)
    assert (reporter.progress.loss, reporter.progress.step) == ("NaN", 7)


def test_without_a_folder_nothing_is_written(tmp_path):
    Reporter(Stage.TRAIN).begin("step", "steps", total=2)
    assert list(tmp_path.iterdir()) == []


def test_no_staged_file_is_left_behind(tmp_path):
    reporter = Reporter(Stage.TRAIN, tmp_path)
    reporter.begin("step", "steps", total=1)
    reporter.advance()
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]
