"""What a pod answers while its stage works, over real HTTP."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from draftyard_api.names import ENV_PROGRESS_PORT, PROGRESS_FILE, PROGRESS_PATH, Stage
from draftyard_api.progress import Progress
from draftyard_operator.testing.ports import free_port
from draftyard_trainer import progress_server
from draftyard_trainer.progress_server import GAUGES, METRICS_PATH, serving
from draftyard_trainer.reporting import Reporter


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    chosen = free_port()
    monkeypatch.setenv(ENV_PROGRESS_PORT, str(chosen))
    with serving(tmp_path):
        yield chosen


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_the_last_reading_of_a_reporter_is_told(port: int, tmp_path: Path):
    reporter = Reporter(Stage.TRAIN, tmp_path)
    reporter.begin("training", "steps", total=10)
    reporter.update(done=10, step=10, total_steps=10, loss="1.5", tokens_per_second="20")
    status, body = ask(port, PROGRESS_PATH)
    assert (status, Progress.model_validate_json(body)) == (200, reporter.progress)


def test_before_the_first_reading_there_is_none(port: int):
    assert ask(port, PROGRESS_PATH) == (503, b"no reading yet\n")


def test_a_torn_reading_is_none(port: int, tmp_path: Path):
    (tmp_path / PROGRESS_FILE).write_text('{"stage": "train", "hea')
    assert ask(port, PROGRESS_PATH)[0] == 503
    assert ask(port, METRICS_PATH) == (200, b"")


def test_numbers_are_metrics_and_what_is_not_said_is_left_out(port: int, tmp_path: Path):
    reading = Progress(stage=Stage.TRAIN, done=3, step=3, total_steps=9, loss="NaN", heartbeat=17.5)
    (tmp_path / PROGRESS_FILE).write_text(reading.model_dump_json(by_alias=True))
    status, body = ask(port, METRICS_PATH)
    assert status == 200
    found = {
        sample.name: (sample.labels, sample.value)
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert str(found.pop("draftyard_stage_loss")[1]) == "nan"
    train = {"stage": "train"}
    assert found == {
        "draftyard_stage_done": (train, 3), "draftyard_stage_step": (train, 3),
        "draftyard_stage_total_steps": (train, 9), "draftyard_stage_heartbeat": (train, 17.5),
    }  # fmt: skip


def test_every_number_of_a_reading_is_a_metric():
    """A field that is added to the reading is not forgotten."""
    assert set(Progress.model_fields) - set(GAUGES) == {"stage", "activity", "unit"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/progress/x", 404), ("POST", "/progress", 501)]
)
def test_nothing_else_is_answered(port: int, method: str, path: str, status: int):
    assert ask(port, path, method)[0] == status


def loopbacks() -> list[str]:
    """Own addresses of this machine: IPv4, and IPv6 where it has one."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


@pytest.mark.parametrize("host", loopbacks())
def test_every_family_of_addresses_is_answered(port: int, host: str):
    assert ask(port, PROGRESS_PATH, host=host)[0] == 503


def test_outside_a_pod_nothing_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ENV_PROGRESS_PORT, raising=False)
    monkeypatch.setattr(progress_server, "bind", lambda *_: pytest.fail("no port was given"))
    with serving(tmp_path):
        pass


def test_a_port_that_is_taken_costs_the_readings_alone(tmp_path: Path, monkeypatch, capsys):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(ENV_PROGRESS_PORT, str(port))
        with serving(tmp_path):
            pass
    assert f"progress is not served on port {port}" in capsys.readouterr().err


def test_the_port_is_free_again_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENV_PROGRESS_PORT, str(free_port()))
    for heartbeat in (1.0, 2.0):
        reading = Progress(stage=Stage.PREPARE, heartbeat=heartbeat)
        (tmp_path / PROGRESS_FILE).write_text(reading.model_dump_json(by_alias=True))
        with serving(tmp_path):
            body = ask(int(progress_server.os.environ[ENV_PROGRESS_PORT]), PROGRESS_PATH)[1]
            assert json.loads(body)["heartbeat"] == heartbeat
