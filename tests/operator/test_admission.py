"""Whether a run can be worked on, and what it runs as."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_manifests import object_of
from world import CONFIG, OFFLINE, ONLINE, spec

from draftyard_api.reasons import Reason
from draftyard_operator import admission
from draftyard_operator.observe import Claim, Observed

WIDE = {"pvc": {"existingClaim": "scratch"}}


def claim(*modes: str) -> Claim:
    return Claim(name="scratch", uid="u", is_bound=True, access_modes=modes, capacity=1, requested=1)


@pytest.mark.parametrize(
    ("changes", "served", "backend"),
    [
        pytest.param(spec(ONLINE), True, "PyTorchJob", id="Online, one node"),
        pytest.param(spec(ONLINE), False, "Job", id="Online, without the training-operator"),
        pytest.param(spec(OFFLINE), True, "Job", id="Offline, one node"),
        pytest.param(spec(ONLINE, workspace=WIDE, train={"nodes": 2}), True, "PyTorchJob", id="two nodes"),
        pytest.param(spec(OFFLINE, workspace=WIDE, train={"nodes": 2}), True, "PyTorchJob", id="Offline, two nodes"),
        pytest.param(spec(ONLINE, backend="Job"), True, "Job", id="as asked for"),
        pytest.param(spec(OFFLINE, backend="PyTorchJob"), True, "PyTorchJob", id="as asked for, Offline"),
    ],
)
def test_what_training_runs_as(changes, served, backend):
    assert admission.choose_backend(object_of(changes).wanted, served) == backend


CASES = [
    pytest.param(spec(ONLINE), Observed(), None, "", id="nothing is wrong"),
    pytest.param(
        spec(ONLINE, pod={"image": "elsewhere.example/x:1"}), Observed(), Reason.INVALID_SPEC,
        "spec.pod.image: given elsewhere.example/x:1; accepted: allowed.example/*, or none", id="an image",
    ),
    pytest.param(
        spec(ONLINE, train={"pod": {"image": "allowed.example/x:1"}}), Observed(), None, "", id="an allowed image",
    ),
    pytest.param(
        spec(ONLINE, evaluate={"pod": {"serviceAccountName": "admin"}}), Observed(), Reason.INVALID_SPEC,
        "spec.evaluate.pod.serviceAccountName: given admin; accepted: trainer, or none", id="a ServiceAccount",
    ),
    pytest.param(
        spec(ONLINE, workspace=WIDE), Observed(), Reason.CLAIM_NOT_FOUND,
        "workspace.pvc.existingClaim: scratch does not exist; create it, or use claimTemplate", id="no claim",
    ),
    pytest.param(
        spec(ONLINE), Observed(missing_claims=("models",)), Reason.CLAIM_NOT_FOUND,
        "claim models does not exist; create it", id="a location without its claim",
    ),
    pytest.param(
        spec(OFFLINE, workspace=WIDE, hiddenStates={"parallelism": 4}), Observed(claim=claim("ReadWriteOnce")),
        Reason.CLAIM_ACCESS_MODE,
        "claim scratch is ReadWriteOnce, and hiddenStates.parallelism is 4; accepted: a ReadWriteMany claim, "
        "workspace.s3, or parallelism 1", id="several writers",
    ),
    pytest.param(
        spec(OFFLINE, workspace=WIDE, hiddenStates={"parallelism": 4}),
        Observed(claim=claim("ReadWriteOnce", "ReadWriteMany")), None, "", id="several writers that may",
    ),
    pytest.param(
        spec(ONLINE, workspace=WIDE, train={"nodes": 2}),
        Observed(claim=claim("ReadWriteMany")), Reason.BACKEND_UNAVAILABLE,
        "train.nodes 2 needs PyTorchJob (kubeflow.org/v1), which is not installed: install training-operator 1.9.4, or "
        "set train.nodes: 1", id="two nodes without the training-operator",
    ),
]  # fmt: skip


OFF = CONFIG.model_copy(update={"pytorch_jobs": False})
SWITCHED_OFF = [
    pytest.param(
        spec(ONLINE, workspace=WIDE, train={"nodes": 2}),
        "train.nodes: given 2, which needs a PyTorchJob, and this operator makes none (its chart has rbac.pytorchJobs: "
        "false); accepted: 1; set train.nodes: 1, or have rbac.pytorchJobs switched on", id="two nodes",
    ),
    pytest.param(
        spec(ONLINE, workspace=WIDE, backend="PyTorchJob"),
        "backend: PyTorchJob needs a PyTorchJob, and this operator makes none (its chart has rbac.pytorchJobs: false); "
        "accepted: Job; set backend: Job, or have rbac.pytorchJobs switched on", id="asked for by name",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), SWITCHED_OFF)
def test_what_needs_a_kind_that_is_switched_off_is_refused(given, message):
    found = admission.check(object_of(given), Observed(claim=claim("ReadWriteMany")), OFF)
    assert (found.truth, found.reason, found.message) == ("False", Reason.BACKEND_UNAVAILABLE, message)


def test_one_node_needs_no_kind_that_is_switched_off():
    assert admission.check(object_of(spec(ONLINE)), Observed(), OFF).truth == "True"


@pytest.mark.parametrize("is_frozen", [False, True], ids=["free", "frozen"])
def test_a_backend_is_chosen_anew_until_the_run_is_frozen(is_frozen):
    run = object_of(spec(ONLINE))
    time = "2026-11-20T08:00:00Z" if is_frozen else None
    status = run.status.model_copy(update={"backend": "PyTorchJob", "frozen_time": time})
    found = admission.check(replace(run, status=status), Observed(), CONFIG)
    assert (found.reason == Reason.BACKEND_UNAVAILABLE) is is_frozen


@pytest.mark.parametrize(("given", "seen", "reason", "message"), CASES)
def test_what_the_api_server_cannot_check(given, seen, reason, message):
    config = CONFIG.model_copy(
        update={"allowed_images": ("allowed.example/*",), "allowed_service_accounts": ("trainer",)}
    )
    found = admission.check(object_of(given), seen, config)
    if reason is None:
        assert (found.truth, found.reason) == ("True", Reason.SPEC_ACCEPTED)
    else:
        assert (found.truth, found.reason, found.message) == ("False", reason, message)
