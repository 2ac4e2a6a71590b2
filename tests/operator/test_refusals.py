"""What answers mean that are no success."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_operator import refusals
from draftyard_operator.refusals import ApiError, Request

ASKED = Request("create", "jobs.batch")


def error(code: int, message: str, reason: str = "Forbidden") -> ApiError:
    return refusals.read_error(ASKED, code, json.dumps({"reason": reason, "message": message}))


NEW_KIND = (
    'pods "r1-train-a1-worker-0" is forbidden: cannot set blockOwnerDeletion in this case because cannot find '
    'RESTMapping for APIVersion kubeflow.org/v1 Kind PyTorchJob: no matches for kind "PyTorchJob" in version '
    '"kubeflow.org/v1"'
)
RBAC = 'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch"'


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('jobs "x" is forbidden: exceeded quota: gpus, requested: 8', Reason.QUOTA_EXCEEDED),
        ('pods "x" is forbidden: failed quota: memory: must specify limits.memory', Reason.QUOTA_EXCEEDED),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', Reason.POD_SECURITY_VIOLATION),
        (RBAC, Reason.FORBIDDEN),
        ('admission webhook "w" denied the request: User cannot', Reason.CHILD_REJECTED),
        ("ValidatingAdmissionPolicy 'p' denied request: no", Reason.CHILD_REJECTED),
        (NEW_KIND, Reason.PENDING),
        ('no matches for kind "PyTorchJob" in version "kubeflow.org/v1"', Reason.PENDING),
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


# -- Pods that cannot be made -------------------------------------------------------------------

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
QUOTA = "exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4"


def event(message=f'Error creating: pods "r1-train-a1-x7k2p" is forbidden: {QUOTA}', **changes):
    return {"reason": "FailedCreate", "message": message, "lastTimestamp": "2026-11-20T07:59:00Z"} | changes


@pytest.mark.parametrize(
    ("message", "reason", "told"),
    [
        pytest.param(
            event()["message"], Reason.QUOTA_EXCEEDED,
            f"its pods cannot be made: {QUOTA}; raise the quota, or ask for less in train.pod", id="a quota",
        ),
        pytest.param(
            'Error creating: pods "a" is forbidden: violates PodSecurity "restricted:latest": host namespaces',
            Reason.POD_SECURITY_VIOLATION,
            'its pods cannot be made: violates PodSecurity "restricted:latest": host namespaces; '
            "change what is asked for in train.pod", id="Pod Security",
        ),
        pytest.param(
            'Error creating: pods "a" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi',
            Reason.CHILD_REJECTED,
            "its pods cannot be made: maximum memory usage per Container is 1Gi, but limit is 2Gi; "
            "change what is asked for in train.pod", id="a LimitRange",
        ),
        pytest.param(
            "Error creating: Internal error occurred: failed calling webhook", Reason.CHILD_REJECTED,
            "its pods cannot be made: Internal error occurred: failed calling webhook; change what is asked for in "
            "train.pod", id="a webhook that is away",
        ),
        pytest.param(
            f"Error creating: {NEW_KIND}", Reason.PENDING,
            f"its pods cannot be made yet: {NEW_KIND.partition('forbidden: ')[2]}; its controller tries again",
            id="a kind that is new",
        ),
    ],
)  # fmt: skip
def test_why_pods_cannot_be_made(message, reason, told):
    found = refusals.of_pods([event(message)], Stage.TRAIN, NOW)
    assert (found.reason, found.message) == (reason, told)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([], id="no event"),
        pytest.param([event(reason="SuccessfulCreate")], id="another event"),
        pytest.param([event(lastTimestamp="2026-11-20T07:49:59Z")], id="long ago"),
        pytest.param([event(lastTimestamp=None)], id="without a time"),
    ],
)
def test_no_event_says_that_pods_cannot_be_made(found):
    assert refusals.of_pods(found, Stage.TRAIN, NOW) is None


@pytest.mark.parametrize(
    "times",
    [
        {"lastTimestamp": "2026-11-20T07:59:30Z"},
        {"lastTimestamp": None, "series": {"lastObservedTime": "2026-11-20T07:59:30.000001Z"}},
        {"lastTimestamp": None, "eventTime": "2026-11-20T07:59:30.000001Z"},
    ],
    ids=["as controllers write", "a series", "a single one"],
)
def test_the_newest_event_counts(times):
    newest = event("Error creating: something new", reason="FailedCreatePod", **times)
    found = refusals.of_pods([event(), newest, event()], Stage.TRAIN, NOW)
    assert "something new" in found.message
