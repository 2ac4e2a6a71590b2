"""What a person reads who works with kubectl."""

from __future__ import annotations

import json
import re

import pytest
import trainings
from full_status import FULL_STATUS
from rule_cases import GONE, OFFLINE, ONLINE, changed
from update_cases import FROZEN_TIME

NAME = ONLINE["metadata"]["name"]
EXAMPLES = sorted((trainings.ROOT / "examples").glob("*.yaml"))


@pytest.fixture
def kubectl(plane, namespace):
    """kubectl in the test's namespace."""
    return lambda *args, **more: plane.kubectl("--namespace", namespace, *args, **more)


@pytest.fixture
def running(server, namespace):
    """A run that has told everything that one can tell."""
    server.post(trainings.path(namespace), OFFLINE).made()
    return server.patch(trainings.path(namespace, NAME, "status"), {"status": FULL_STATUS}).made()


def table(text):
    """The columns of a table and the one row below, by the place where each column starts."""
    head, row = text.rstrip("\n").split("\n")
    starts = [found.start() for found in re.finditer(r"\S+", head)]
    return {
        head[start:end].strip(): row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)
    }


def test_columns(kubectl, running):
    found = table(kubectl("get", "dt").stdout)
    assert re.fullmatch(r"\d+s", found.pop("AGE"))
    assert found == {
        "NAME": NAME, "PHASE": "Running", "STAGE": "train", "PROGRESS": "42%", "ETA": "5h58m", "ACCEPTANCE": "2.71",
        "REASON": "PodsReady",
    }  # fmt: skip


def test_wide_columns(kubectl, running):
    found = table(kubectl("get", "drafttraining", "-o", "wide").stdout)
    wide = {name: found[name] for name in ("MODE", "BACKEND", "ATTEMPT", "STEP", "LOSS")}
    assert wide == {"MODE": "Offline", "BACKEND": "Job", "ATTEMPT": "2", "STEP": "1330", "LOSS": "1.873"}


def test_a_status_is_kept_whole(running):
    """The server drops what is not in the schema, without a word."""
    assert running["status"] == FULL_STATUS


def test_a_run_is_found_by_its_category_and_is_no_part_of_all(kubectl, running):
    assert kubectl("get", "draftyard", "-o", "name").stdout == f"drafttraining.draftyard.dev/{NAME}\n"
    assert kubectl("get", "all", "-o", "name").stdout == ""


def test_explain(kubectl):
    told = kubectl("explain", "dt.spec.train.learningRate").stdout
    assert "FIELD: learningRate <number>" in told
    assert "Write 0.0001, not 1e-4: YAML 1.1 readers" in told
    words = kubectl("explain", "dt.spec.hiddenStates.codec").stdout.partition("ENUM:")[2].split()
    assert words[:4] == ["none", "lossless", "balanced", "compact"]


@pytest.mark.parametrize(
    ("conditions", "waits_for", "code"),
    [
        pytest.param([("Complete", "True", 1)], "Complete", 0, id="a run that is complete"),
        pytest.param([("Reconciling", "False", 1)], "Reconciling=False", 0, id="a run that ended in any way"),
        pytest.param([("Reconciling", "True", 1)], "Reconciling=False", 1, id="a run that goes on"),
        pytest.param([("Complete", "True", 0)], "Complete", 1, id="an answer to an older question"),
    ],
)
def test_wait(server, kubectl, namespace, conditions, waits_for, code):
    server.post(trainings.path(namespace), ONLINE).made()
    told = [
        {
            "type": kind, "status": status, "reason": "InProgress", "message": "", "observedGeneration": generation,
            "lastTransitionTime": "2026-11-20T08:00:03Z",
        }
        for kind, status, generation in conditions
    ]  # fmt: skip
    server.patch(trainings.path(namespace, NAME, "status"), {"status": {"conditions": told}}).made()
    assert kubectl("wait", f"dt/{NAME}", f"--for=condition={waits_for}", "--timeout=1s").returncode == code


# -- Mistakes ---------------------------------------------------------------------------------------

MISTAKES = (
    pytest.param({"train.lr": 1}, 'strict decoding error: unknown field "spec.train.lr"', id="an unknown field"),
    pytest.param(
        {"hiddenStates.codec": "fp8"},
        'spec.hiddenStates.codec: Unsupported value: "fp8": supported values: "none", "lossless", "balanced", "compact"',
        id="an unknown word",
    ),
    pytest.param(
        {"train.learningRate": "1e-4"},
        'spec.train.learningRate: Invalid value: "string": spec.train.learningRate in body must be of type number: "string"',
        id="a number in quotes",
    ),
    pytest.param(
        {"mode": "Online", "hiddenStates": GONE, "target.tensorParallel": 4, "train.gpusPerNode": 6},
        "given gpusPerNode 6; accepted: a multiple of target.tensorParallel (4)",
        id="GPUs that do not hold the target",
    ),
    pytest.param(
        {"target.model": "file:///models/x"},
        'given "file:///models/x"; accepted: org/name, hf://org/name, pvc://claim/path, s3://bucket/prefix '
        "(file:// works in draftyard run only)",
        id="a location of one machine",
    ),
    pytest.param({"target": {}}, "spec.target.model: Required value", id="nothing where something is required"),
    pytest.param(
        {"train.epochs": 0}, "spec.train.epochs: Invalid value: 0: spec.train.epochs in body should be greater than or equal to 1",
        id="a number that is too small",
    ),
    pytest.param(
        {"train.learningRate": 0},
        "spec.train.learningRate: Invalid value: 0: spec.train.learningRate in body should be greater than 0",
        id="an open bound",
    ),
)  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), MISTAKES)
def test_a_mistake(kubectl, changes, words):
    done = kubectl("apply", "-f", "-", stdin=json.dumps(changed(OFFLINE, changes)))
    assert done.returncode == 1
    assert words in done.stderr


def test_an_edit_of_what_is_frozen(server, kubectl, namespace):
    server.post(trainings.path(namespace), OFFLINE).made()
    server.patch(trainings.path(namespace, NAME, "status"), {"status": FROZEN_TIME}).made()
    done = kubectl("apply", "-f", "-", stdin=json.dumps(changed(OFFLINE, {"data.maxSamples": 9})))
    assert done.returncode == 1
    assert "spec.data: Forbidden: spec.data decides the result, and is frozen since status.frozenTime" in done.stderr
    assert "create a DraftTraining with another name" in done.stderr


def test_a_patch_of_what_may_change(server, kubectl, namespace):
    server.post(trainings.path(namespace), OFFLINE).made()
    server.patch(trainings.path(namespace, NAME, "status"), {"status": FROZEN_TIME}).made()
    asked = json.dumps({"spec": {"hiddenStates": {"reclaim": "Delete"}, "suspend": True}})
    assert kubectl("patch", "dt", NAME, "--type=merge", "-p", asked).returncode == 0


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example(kubectl, example):
    """Only a location of one machine keeps an example from a cluster."""
    done = kubectl("apply", "--dry-run=server", "-f", str(example))
    complaints = [line for line in done.stderr.splitlines() if "given " in line]
    assert (done.returncode == 0) == (complaints == []), done.stderr
    assert [line for line in complaints if "file:// works in draftyard run only" not in line] == []
