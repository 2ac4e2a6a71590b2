"""What answers mean that are no success."""

from __future__ import annotations

import json

import pytest

from draftyard_api.reasons import Reason
from draftyard_operator import refusals
from draftyard_operator.refusals import ApiError, Request

ASKED = Request("create", "jobs.batch")


def error(code: int, message: str, reason: str = "Forbidden") -> ApiError:
    return refusals.read_error(ASKED, code, json.dumps({"reason": reason, "message": message}))


RBAC = 'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"'


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('jobs "x" is forbidden: exceeded quota: gpus, requested: 8', Reason.QUOTA_EXCEEDED),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', Reason.POD_SECURITY_VIOLATION),
        (RBAC, Reason.FORBIDDEN),
        ('admission webhook "w" denied the request: User cannot', Reason.CHILD_REJECTED),
        ("ValidatingAdmissionPolicy 'p' denied request: no", Reason.CHILD_REJECTED),
    ],
)
def test_why_something_was_refused(message, reason):
    assert refusals.explain(error(403, message)).reason is reason


def test_a_missing_right_names_verb_and_resource():
    assert refusals.explain(error(403, RBAC)).message.startswith("the operator may not create jobs.batch: ")


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        ('{"reason": "Conflict", "message": "changed"}', "Conflict", "changed"),
        ("<html>  bad\n gateway</html>", "", "<html> bad gateway</html>"),
        ("[1]", "", "[1]"),
        ("", "", ""),
        ("x" * 1000, "", "x" * 200),
    ],
    ids=["a Status", "HTML", "another JSON", "nothing", "a lot"],
)
def test_any_body_becomes_an_error(body, reason, message):
    found = refusals.read_error(ASKED, 502, body)
    assert (found.code, found.reason, found.message) == (502, reason, message)


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), (None, 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("99999", 300.0)]
)
def test_how_long_the_server_wants_to_be_left_alone(header, seconds):
    assert refusals.read_error(ASKED, 429, "", header).retry_after == seconds


def test_two_kinds_of_409_differ():
    taken, changed = error(409, "x", "AlreadyExists"), error(409, "x", "Conflict")
    assert (taken.is_taken, taken.is_conflict) == (True, False)
    assert (changed.is_taken, changed.is_conflict) == (False, True)


@pytest.mark.parametrize(
    ("code", "is_final"), [(400, True), (403, True), (422, True), (429, False), (500, False), (0, False)]
)
def test_what_is_not_worth_trying_again(code, is_final):
    assert error(code, "x").is_final is is_final
