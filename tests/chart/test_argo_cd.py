"""What Argo CD is told of DraftTrainings: its Lua runs here over real statuses, with no more libraries than there."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import lupa.lua51
import pytest
import yaml
from charts import ROOT
from full_status import FULL_STATUS
from rule_cases import OFFLINE, changed

from draftyard_api.names import GROUP, KIND
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, DraftTrainingStatus, Phase

SETTINGS = ROOT / "examples" / "argo-cd" / "settings"
HEALTH = (SETTINGS / "health.lua").read_text()
ACTIONS = yaml.safe_load((SETTINGS / "actions.yaml").read_text())
GENERATION = 3
SAFE = {
    "_G", "assert", "error", "ipairs", "next", "pairs", "pcall", "select", "table", "tonumber", "tostring", "type",
    "unpack",
}  # fmt: skip
"""What Argo CD loads of Lua (util/lua/lua.go): base and table. No string, no math, no io."""


def ran(script, obj):
    """What a script returns for an object, as Python values."""
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    names = lua.globals()
    for name in list(names):
        if name not in SAFE:
            names[name] = None
    names["obj"] = lua.table_from(copy.deepcopy(obj), recursive=True)
    return python(lua.execute(script))


def python(value):
    """A Lua value as Argo CD reads it."""
    return {key: python(inner) for key, inner in value.items()} if lupa.lua51.lua_type(value) == "table" else value


def stored(status, generation=GENERATION):
    """A DraftTraining with a status, as the API server gives it."""
    found = changed(OFFLINE, {"metadata.generation": generation})
    return found if status is None else found | {"status": status}


@dataclass(frozen=True)
class Told:
    """A phase with the conditions that explain it, and what Argo CD should make of it."""

    phase: Phase
    conditions: dict[ConditionType, Reason]
    """Those that are True."""
    health: str
    message: str
    more: dict[str, object]

    @property
    def status(self):
        """As the operator writes it: by the model."""
        conditions = [
            {
                "type": kind, "status": "True" if kind in self.conditions else "False",
                "reason": self.conditions.get(kind, Reason.IN_PROGRESS), "message": f"{kind} said so",
                "lastTransitionTime": "2026-11-20T11:03:00Z", "observedGeneration": GENERATION,
            }
            for kind in ConditionType
        ]  # fmt: skip
        told = {"observedGeneration": GENERATION, "phase": self.phase, "conditions": conditions} | self.more
        status = DraftTrainingStatus.model_validate_json(json.dumps(told))
        return status.model_dump(mode="json", by_alias=True, exclude_none=True)


C = ConditionType
GOES_ON = {C.RECONCILING: Reason.PENDING}
TABLE = (
    Told(Phase.PENDING, GOES_ON, "Progressing", "Pending", {}),
    Told(
        Phase.QUEUED, GOES_ON | {C.QUEUED: Reason.WAITING_FOR_QUOTA}, "Progressing", "Queued train", {"stage": "train"},
    ),
    Told(
        Phase.RUNNING, GOES_ON | {C.RUNNING: Reason.PODS_READY}, "Progressing", "Running train 42%",
        {"stage": "train", "progress": {"percent": 42, "percentage": "42%"}},
    ),
    Told(Phase.RETRYING, GOES_ON, "Progressing", "Retrying generate", {"stage": "generate"}),
    Told(
        Phase.BLOCKED, {C.STALLED: Reason.WORKSPACE_TOO_SMALL}, "Degraded", "WorkspaceTooSmall: Stalled said so",
        {"stage": "prepare"},
    ),
    Told(Phase.SUSPENDING, GOES_ON, "Progressing", "Suspending train", {"stage": "train"}),
    Told(Phase.SUSPENDED, {C.SUSPENDED: Reason.SUSPENDED}, "Suspended", "Suspended: Suspended said so", {}),
    Told(
        Phase.SUCCEEDED, {C.COMPLETE: Reason.DRAFT_PUBLISHED, C.READY: Reason.DRAFT_PUBLISHED}, "Healthy",
        "DraftPublished: Complete said so", {"progress": {"percentage": "100%"}},
    ),
    Told(
        Phase.FAILED, {C.FAILED: Reason.ACCEPTANCE_TOO_LOW, C.STALLED: Reason.ACCEPTANCE_TOO_LOW}, "Degraded",
        "AcceptanceTooLow: Failed said so", {},
    ),
)  # fmt: skip


@pytest.mark.parametrize("told", TABLE, ids=lambda told: told.phase.value)
def test_health_of_a_phase(told):
    assert ran(HEALTH, stored(told.status)) == {"status": told.health, "message": told.message}


def test_no_phase_is_left_out():
    assert [told.phase for told in TABLE] == list(Phase)


WAITING = {"status": "Progressing", "message": "Waiting for the operator"}


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(None, id="no status"),
        pytest.param({}, id="an empty status"),
        pytest.param({"observedGeneration": -1}, id="the default of the kind"),
        pytest.param(TABLE[-2].status | {"observedGeneration": GENERATION - 1}, id="complete, before the last edit"),
        pytest.param(TABLE[-1].status | {"observedGeneration": GENERATION - 1}, id="failed, before the last edit"),
    ],
)
def test_what_the_operator_has_not_seen_yet_is_progressing(status):
    assert ran(HEALTH, stored(status)) == WAITING


def test_a_full_status():
    found = ran(HEALTH, stored(FULL_STATUS))
    assert found == {"status": "Progressing", "message": "Running train 42%"}


def test_a_status_of_one_field():
    found = ran(HEALTH, stored({"observedGeneration": GENERATION}))
    assert found == {"status": "Progressing", "message": "Pending"}


def test_a_condition_without_words():
    status = {"observedGeneration": GENERATION, "conditions": [{"type": "Failed", "status": "True"}]}
    assert ran(HEALTH, stored(status)) == {"status": "Degraded", "message": ": "}


def test_the_sandbox_has_no_more_than_argo_cd():
    """A script that asks for the library of strings would fail there, so it must fail here."""
    with pytest.raises(lupa.lua51.LuaError):
        ran("return string.format('%s', obj.kind)", stored(None))


# -- Actions --------------------------------------------------------------------------------------------------------


def action(name):
    (found,) = (each["action.lua"] for each in ACTIONS["definitions"] if each["name"] == name)
    return found


@pytest.mark.parametrize(
    ("suspend", "status", "names"),
    [
        pytest.param(False, None, {"suspend"}, id="a new run"),
        pytest.param(False, FULL_STATUS, {"suspend"}, id="a run that trains"),
        pytest.param(True, TABLE[6].status, {"resume"}, id="a suspended run"),
        pytest.param(True, {}, {"resume"}, id="a run that starts suspended"),
        pytest.param(False, TABLE[-2].status, set(), id="a complete run"),
        pytest.param(True, TABLE[-1].status, set(), id="a failed run"),
    ],
)
def test_which_actions_are_offered(suspend, status, names):
    obj = stored(status)
    obj["spec"]["suspend"] = suspend
    assert ran(ACTIONS["discovery.lua"], obj).keys() == names


@pytest.mark.parametrize(("name", "suspend"), [("suspend", True), ("resume", False)])
def test_what_an_action_changes(name, suspend):
    obj = stored(FULL_STATUS)
    obj["spec"]["suspend"] = not suspend
    spec = ran(action(name), obj)["spec"]
    assert spec["suspend"] is suspend
    assert spec["target"] == obj["spec"]["target"]


def test_every_action_can_be_offered():
    assert [each["name"] for each in ACTIONS["definitions"]] == ["suspend", "resume"]


# -- Settings -------------------------------------------------------------------------------------------------------

CONFIG = "api/v1/namespaces/argocd/configmaps/argocd-cm"
KEYS = {
    f"resource.customizations.health.{GROUP}_{KIND}": "health.lua",
    f"resource.customizations.actions.{GROUP}_{KIND}": "actions.yaml",
    f"resource.customizations.ignoreResourceUpdates.{GROUP}_{KIND}": "ignored-updates.yaml",
}


@pytest.fixture
def argo_cd(server):
    """A namespace with the settings of somebody else."""
    server.post("api/v1/namespaces", {"metadata": {"name": "argocd"}}).made()
    settings = {"metadata": {"name": "argocd-cm"}, "data": {"url": "https://argo.example"}}
    server.post("api/v1/namespaces/argocd/configmaps", settings).made()


def test_the_settings_are_added_to_those_that_are_there(server, plane, argo_cd):
    done = plane.kubectl("apply", "--server-side", "--field-manager=draftyard", "-k", str(SETTINGS))
    assert done.returncode == 0, done.stderr
    data = server.get(CONFIG).made()["data"]
    assert data.pop("url") == "https://argo.example"
    assert data == {key: (SETTINGS / name).read_text() for key, name in KEYS.items()}


def test_what_is_ignored_is_in_the_status():
    pointers = yaml.safe_load((SETTINGS / "ignored-updates.yaml").read_text())["jsonPointers"]
    fields = DraftTrainingStatus.model_json_schema(by_alias=True)["properties"]
    for pointer in pointers:
        assert pointer.removeprefix("/status/") in fields


EXAMPLES = sorted(path for name in ("argo-cd", "flux") for path in (ROOT / "examples" / name).glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_an_example_is_taken_by_its_own_kinds(others, plane, file):
    for found in yaml.safe_load_all(file.read_text()):
        name = found["metadata"]["namespace"]
        made = others.post("api/v1/namespaces", {"metadata": {"name": name}})
        assert made.is_ok or made.reason == "AlreadyExists"
    done = plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(file))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_values_in_an_example_are_those_of_the_chart(helm, file):
    for found in yaml.safe_load_all(file.read_text()):
        spec = found["spec"]
        values = spec.get("values") or spec.get("source", {}).get("helm", {}).get("valuesObject")
        if values:
            assert helm.render(values=values)
            assert file.name == "operator.yaml"
