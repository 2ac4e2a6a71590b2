"""Every name that the docs and the dashboard use, and series that go with their object."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import kopf
import pytest
from prometheus_client.parser import text_string_to_metric_families

from draftyard_api.names import Stage
from draftyard_api.status import Phase
from draftyard_operator import metrics as page
from draftyard_operator.metrics import Metrics, RunLabels
from draftyard_operator.work_queue import Key

RUNNING = RunLabels(mode="Offline", backend="Job", phase=Phase.RUNNING)


@pytest.fixture
def metrics():
    return Metrics()


def samples(metrics):
    """Every sample: its name and labels, and its value."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def of_run(metrics, name):
    """Samples of one run."""
    return {key: value for key, value in samples(metrics).items() if ("name", name) in key}


def test_every_name_is_there(metrics):
    metrics.request("get", "jobs", 200, 0.01)
    metrics.reconciled("ok", 0.2)
    metrics.see("team", "a", RUNNING)
    metrics.attempt_ended("team", Stage.TRAIN, "Disrupted")
    metrics.stage_finished(Stage.TRAIN, 90)
    metrics.run_finished("Complete", "DraftPublished")
    metrics.gpus_held("team", Stage.TRAIN, 720)
    found = re.findall(r"^# TYPE (\S+) (\S+)$", metrics.text().decode(), re.MULTILINE)
    assert {(name, kind) for name, kind in found if not name.endswith("_created")} == {
        ("draftyard_reconcile_total", "counter"),
        ("draftyard_reconcile_duration_seconds", "histogram"),
        ("draftyard_workqueue_depth", "gauge"),
        ("draftyard_workqueue_retries_total", "counter"),
        ("draftyard_api_requests_total", "counter"),
        ("draftyard_api_request_duration_seconds", "histogram"),
        ("draftyard_last_resync_timestamp_seconds", "gauge"),
        ("draftyard_drafttraining_info", "gauge"),
        ("draftyard_drafttraining_phase", "gauge"),
        ("draftyard_drafttraining_attempts_total", "counter"),
        ("draftyard_stage_duration_seconds", "histogram"),
        ("draftyard_drafttraining_finished_total", "counter"),
        ("draftyard_gpu_seconds_total", "counter"),
        ("draftyard_build_info", "gauge"),
    }


def test_requests_are_counted_by_verb_resource_and_code(metrics):
    for code in (201, 201, 409):
        metrics.request("create", "jobs", code, 0.01)
    found = samples(metrics)
    name = "draftyard_api_requests_total"
    assert found[name, ("code", "201"), ("resource", "jobs"), ("verb", "create")] == 2
    assert found[name, ("code", "409"), ("resource", "jobs"), ("verb", "create")] == 1
    assert found["draftyard_api_request_duration_seconds_count",] == 3


def test_a_run_is_in_one_phase(metrics):
    metrics.see("team", "a", RUNNING)
    metrics.see("team", "a", RunLabels("Offline", "Job", Phase.SUCCEEDED))
    phases = {dict(key[1:])["phase"]: value for key, value in of_run(metrics, "a").items() if key[0].endswith("_phase")}
    assert phases.pop("Succeeded") == 1
    assert set(phases) == set(Phase) - {"Succeeded"}
    assert set(phases.values()) == {0}


def test_a_resolved_backend_takes_the_place_of_none(metrics):
    metrics.see("team", "a", RunLabels("Online", "", Phase.PENDING))
    metrics.see("team", "a", RunLabels("Online", "PyTorchJob", Phase.PENDING))
    infos = [dict(key[1:])["backend"] for key in of_run(metrics, "a") if key[0].endswith("_info")]
    assert infos == ["PyTorchJob"]


def test_series_go_with_their_object(metrics):
    metrics.see("team", "a", RUNNING)
    metrics.see("team", "b", RUNNING)
    metrics.forget("team", "a")
    metrics.forget("team", "a")
    assert of_run(metrics, "a") == {}
    assert len(of_run(metrics, "b")) == 1 + len(Phase)


def test_a_resync_drops_what_a_watch_has_missed(metrics):
    for name in "abc":
        metrics.see("team", name, RUNNING)
    metrics.keep_only({Key("team", "b"), Key("team", "new")})
    assert list(metrics.runs) == [Key("team", "b")]
    assert of_run(metrics, "a") == of_run(metrics, "c") == {}


def test_the_build_says_its_versions(metrics):
    (labels,) = (dict(key[1:]) for key in samples(metrics) if key[0] == "draftyard_build_info")
    assert set(labels) == {"version", "kopf"}
    assert labels["kopf"].split(".")[:2] == kopf.__version__.split(".")[:2]


class Health:
    is_ready = False


def test_metrics_and_readiness_are_served(metrics):
    async def scene():
        health = Health()
        runner = await page.serve(metrics, health, "127.0.0.1", 0)
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            answers = []
            for health.is_ready in (False, True):
                async with session.get("/readyz") as answer:
                    answers.append((answer.status, await answer.text()))
            async with session.get("/metrics") as answer:
                text, kind = await answer.text(), answer.content_type
        await runner.cleanup()
        return answers, text, kind

    ((before, why), (after, _)), text, kind = asyncio.run(scene())
    assert (before, after) == (503, 200)
    assert "first list" in why
    assert kind == "text/plain"
    assert "draftyard_build_info" in text
