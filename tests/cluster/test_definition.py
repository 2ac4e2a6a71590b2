"""The definition on a real API server: installed whole, small, and merged as it says."""

from __future__ import annotations

import json

import pytest
import trainings
import yaml
from rule_cases import OFFLINE, ONLINE, changed

DEFINITION = yaml.safe_load(trainings.DEFINITION.read_text())
CONDITIONS = {"NamesAccepted": "True", "Established": "True"}
MAX_APPLIED = 262144
"""Bytes of annotations, which is where a client-side `kubectl apply` keeps the object."""
NAME = ONLINE["metadata"]["name"]
IDENTITY = {name: ONLINE[name] for name in ("apiVersion", "kind", "metadata")}


@pytest.fixture(scope="module")
def installed(server):
    return server.get(f"{trainings.DEFINITIONS}/{trainings.NAME}").made()


def test_it_is_taken_without_a_complaint(installed):
    """A schema that is not structural, and rules that cost too much, would be conditions or an error here."""
    conditions = {one["type"]: one["status"] for one in installed["status"]["conditions"]}
    assert conditions == CONDITIONS
    assert installed["status"]["storedVersions"] == ["v1alpha1"]


def test_it_is_stored_as_it_was_sent(installed):
    (sent,) = DEFINITION["spec"]["versions"]
    (stored,) = installed["spec"]["versions"]
    assert stored["schema"] == sent["schema"]
    assert stored["additionalPrinterColumns"] == sent["additionalPrinterColumns"]


def test_a_client_can_apply_it(plane, server):
    """Both ways that people install it; a file that is too large for an annotation fails in the first one."""
    for flags in ((), ("--server-side", "--force-conflicts")):
        done = plane.kubectl("apply", *flags, "-f", str(trainings.DEFINITION))
        assert done.returncode == 0, done.stderr
    assert len(json.dumps(DEFINITION, separators=(",", ":")).encode()) < MAX_APPLIED / 2


def test_unknown_fields_are_named(server):
    answer = server.post(trainings.path("default"), changed(ONLINE, {"train.lr": 1, "pod.hostNetwork": True}))
    assert answer.status == 400
    assert (
        'strict decoding error: unknown field "spec.pod.hostNetwork", unknown field "spec.train.lr"' in answer.message
    )


def test_unknown_fields_are_dropped_where_nobody_asks(server, namespace):
    made = server.post(trainings.path(namespace), changed(ONLINE, {"train.lr": 1}), fieldValidation="Ignore").made()
    assert "lr" not in made["spec"]["train"]


def test_objects_of_foreign_shape_are_kept(server, namespace):
    affinity = {"nodeAffinity": {"weights": [1, {"deep": None}]}}
    kwargs = {"enable_thinking": False, "nothing": None}
    asked = changed(ONLINE, {"pod.affinity": affinity, "data.templateKwargs": kwargs})
    spec = server.post(trainings.path(namespace), asked).made()["spec"]
    assert spec["pod"]["affinity"] == affinity
    assert spec["data"]["templateKwargs"] == kwargs


# -- Spec and status --------------------------------------------------------------------------------


def test_generation_counts_what_is_asked_and_nothing_else(server, namespace):
    place = trainings.path(namespace, NAME)
    server.post(trainings.path(namespace), ONLINE).made()
    assert server.patch(place, {"spec": {"suspend": True}}).made()["metadata"]["generation"] == 2
    assert server.patch(f"{place}/status", {"status": {"phase": "Suspended"}}).made()["metadata"]["generation"] == 2
    assert server.patch(place, {"metadata": {"labels": {"a": "b"}}}).made()["metadata"]["generation"] == 2


def test_spec_and_status_are_written_apart(server, namespace):
    place = trainings.path(namespace, NAME)
    stored = server.post(trainings.path(namespace), ONLINE | {"status": {"phase": "Succeeded"}}).made()
    assert stored.get("status", {}).get("phase") is None
    assert server.patch(place, {"status": {"phase": "Succeeded"}}).made()["status"] == {"observedGeneration": -1}
    told = server.patch(f"{place}/status", {"spec": {"suspend": True}, "status": {"phase": "Running"}}).made()
    assert (told["spec"]["suspend"], told["status"]["phase"]) == (False, "Running")


def test_a_status_write_fails_if_an_edit_came_first(server, namespace):
    """So that what is frozen is what was planned."""
    place = trainings.path(namespace, NAME)
    looked_at = server.post(trainings.path(namespace), ONLINE).made()["metadata"]["resourceVersion"]
    server.patch(place, {"spec": {"train": {"seed": 7}}}).made()
    freeze = {"metadata": {"resourceVersion": looked_at}, "status": {"frozenTime": "2026-11-20T08:21:40Z"}}
    late = server.patch(f"{place}/status", freeze)
    assert (late.status, late.reason) == (409, "Conflict")


# -- Who owns which entry of a list -----------------------------------------------------------------

LISTS = (
    ("env", "name", {"name": "A", "value": "1"}, {"name": "B", "value": "2"}),
    ("volumes", "name", {"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}),
    ("volumeMounts", "mountPath", {"mountPath": "/a", "name": "a"}, {"mountPath": "/b", "name": "b"}),
    ("imagePullSecrets", "name", {"name": "a"}, {"name": "b"}),
)


@pytest.mark.parametrize(("field", "key", "ours", "theirs"), LISTS, ids=[case[0] for case in LISTS])
def test_two_appliers_own_an_entry_each(server, namespace, field, key, ours, theirs):
    place = trainings.path(namespace, NAME)
    server.apply(place, changed(ONLINE, {f"pod.{field}": [ours]}), "ours").made()
    server.apply(place, IDENTITY | {"spec": {"pod": {field: [theirs]}}}, "theirs").made()
    both = server.get(place).made()["spec"]["pod"][field]
    assert {entry[key] for entry in both} == {ours[key], theirs[key]}
    left = server.apply(place, ONLINE, "ours").made()["spec"]["pod"][field]
    assert [entry[key] for entry in left] == [theirs[key]]


def test_two_appliers_cannot_say_different_things(server, namespace):
    place = trainings.path(namespace, NAME)
    server.apply(place, changed(ONLINE, {"train.seed": 1}), "ours").made()
    refused = server.apply(place, changed(ONLINE, {"train.seed": 2}), "theirs")
    assert (refused.status, refused.errors) == (409, ['.spec.train.seed: conflict with "ours"'])


def test_conditions_have_an_owner_each(server, namespace):
    place = f"{trainings.path(namespace, NAME)}/status"
    server.post(trainings.path(namespace), ONLINE).made()
    for kind in ("Running", "Queued"):
        since = {"lastTransitionTime": "2026-11-20T08:00:03Z"}
        condition = since | {"type": kind, "status": "True", "reason": "PodsReady", "message": ""}
        server.apply(place, IDENTITY | {"status": {"conditions": [condition]}}, kind.lower()).made()
    conditions = server.get(place).made()["status"]["conditions"]
    assert sorted(one["type"] for one in conditions) == ["Queued", "Running"]


# -- What may not be asked at all -------------------------------------------------------------------


def test_rules_are_checked_for_what_is_stored_already(server, namespace):
    """A patch of one field is judged with all the others."""
    server.post(trainings.path(namespace), OFFLINE).made()
    refused = server.patch(trainings.path(namespace, NAME), {"spec": {"mode": "Online"}})
    assert refused.status == 422
    assert refused.errors[0].startswith("spec.hiddenStates: Invalid value: ")
    assert refused.errors[0].endswith("remove the block, or set mode: Offline")


def test_who_may_ask_may_not_report(server, namespace):
    """RBAC tells the object from its status."""
    rule = {"apiGroups": ["draftyard.dev"], "resources": ["drafttrainings"], "verbs": ["create", "get", "patch"]}
    rbac = f"apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    server.post(f"{rbac}/roles", {"metadata": {"name": "asks"}, "rules": [rule]}).made()
    binding = {
        "metadata": {"name": "asks"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "asks"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ada"}],
    }
    server.post(f"{rbac}/rolebindings", binding).made()
    ada = server.acting_as("ada")
    trainings.eventually(lambda: ada.post(trainings.path(namespace), ONLINE).is_ok)
    refused = ada.patch(f"{trainings.path(namespace, NAME)}/status", {"status": {"phase": "Succeeded"}})
    assert (refused.status, refused.reason) == (403, "Forbidden")
    assert 'cannot patch resource "drafttrainings/status"' in refused.message
