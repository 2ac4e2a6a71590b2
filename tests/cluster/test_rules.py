"""The tables of tests/api on a real API server: it takes and refuses what our Python does, in the same words."""

from __future__ import annotations

import json

import pytest
import trainings
from probes import PROBES
from rule_cases import CASES, errors_of
from update_cases import FROZEN_TIME, UPDATES

from draftyard_api import document

KUBERNETES_WORDS = ("a lowercase RFC 1123 subdomain must consist",)
"""What the server says of a name before our rule says it again."""


def told(answer):
    """Every error in our form: without the value that the server repeats between the path and the words."""
    return sorted(our_form(error) for error in answer.errors if not any(word in error for word in KUBERNETES_WORDS))


def our_form(error):
    path, _, rest = error.partition(": ")
    if rest.startswith("Duplicate value: "):
        twice = json.loads(rest.removeprefix("Duplicate value: "))
        ((key, given),) = twice.items() if isinstance(twice, dict) else (("entry", twice),)
        return f'{path.partition("[")[0]}: given "{given}" twice; accepted: each {key} once'
    start = max(rest.find(word) for word in (": given ", ": spec."))
    return f"{path}: {rest[start + 2 :]}" if start >= 0 else error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(server, case):
    answer = server.post(trainings.path("default"), case.document, dryRun="All")
    assert told(answer) == sorted(case.refused)


@pytest.mark.parametrize("case", [case for case in CASES if not case.refused], ids=lambda case: case.name)
def test_what_is_stored_is_what_we_work_with(server, namespace, case):
    """Every default of the schema is the default of the model."""
    server.post(trainings.path(namespace), case.document).made()
    stored = server.get(trainings.path(namespace, case.document["metadata"]["name"])).made()
    ours = document.check(case.document, local=False).spec
    assert stored["spec"] == ours.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert stored["status"] == {"observedGeneration": -1}


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.name)
def test_update(server, namespace, case):
    place = trainings.path(namespace, case.old["metadata"]["name"])
    stored = server.post(trainings.path(namespace), case.old).made()
    if case.is_frozen:
        stored = server.patch(f"{place}/status", {"status": FROZEN_TIME}).made()
    wanted = case.new | {"metadata": stored["metadata"]}
    answer = server.put(place, wanted, dryRun="All")
    assert told(answer) == sorted(case.words)
    frozen = [
        cause for cause in answer.body.get("details", {}).get("causes", ()) if "is frozen since" in cause["message"]
    ]
    assert all(cause["reason"] == "FieldValueForbidden" for cause in frozen)


def test_both_take_and_refuse_the_same(server):
    answers = [server.post(trainings.path("default"), probe.document, dryRun="All") for probe in PROBES]
    differ = [
        (probe.place, probe.value, answer.errors)
        for probe, answer in zip(PROBES, answers, strict=True)
        if bool(errors_of(probe.document)) == answer.is_ok
    ]
    assert differ == []
    refused = sum(not answer.is_ok for answer in answers)
    assert 500 < refused < len(PROBES) - 200
