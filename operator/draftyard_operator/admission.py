"""Whether a run can be worked on: what the API server cannot check, since other objects or our configuration say it."""

from __future__ import annotations

from collections.abc import Iterator

from draftyard_api.names import Stage
from draftyard_api.plan import stages
from draftyard_api.pod import Pod
from draftyard_api.reasons import Reason
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import Backend
from draftyard_operator.config import OperatorConfig
from draftyard_operator.observe import Observed
from draftyard_operator.run import Run, claim_name, parallelism_of, stage_of
from draftyard_operator.status import Fact

MANY_WRITERS = "ReadWriteMany"
INSTALL = "install training-operator 1.9.4, or set train.nodes: 1"
SWITCHED_OFF = "needs a PyTorchJob, and this operator makes none (its chart has rbac.pytorchJobs: false)"


def check(run: Run, seen: Observed, config: OperatorConfig) -> Fact:
    """Accepted, or the first reason why not."""
    if run.spec is None:
        return refused(Reason.INVALID_SPEC, "; ".join(run.spec_errors))
    wrong = list(unallowed(run.spec, config))
    if wrong:
        return refused(Reason.INVALID_SPEC, "; ".join(wrong))
    for found in (check_backend(run, seen, config), check_claims(run, seen)):
        if found is not None:
            return found
    return Fact("True", Reason.SPEC_ACCEPTED, "the spec is accepted")


def refused(reason: Reason, message: str) -> Fact:
    """Not accepted."""
    return Fact("False", reason, message)


# -- What a run may name ----------------------------------------------------------------------------------------------


def pods(spec: DraftTrainingSpec) -> Iterator[tuple[str, Pod]]:
    """Every pod block with its path."""
    yield "spec.pod", spec.pod
    for stage in Stage:
        block = getattr(spec, stage)
        if block is not None:
            yield f"spec.{stage}.pod", block.pod


def unallowed(spec: DraftTrainingSpec, config: OperatorConfig) -> Iterator[str]:
    """Images and ServiceAccounts that the operator's configuration does not name."""
    for path, pod in pods(spec):
        if pod.image is not None and not config.allows_image(pod.image):
            yield f"{path}.image: given {pod.image}; accepted: {listed(config.allowed_images)}, or none"
        name = pod.service_account_name
        if name is not None and not config.allows_service_account(name):
            accepted = listed(config.allowed_service_accounts)
            yield f"{path}.serviceAccountName: given {name}; accepted: {accepted}, or none"


def listed(patterns: tuple[str, ...]) -> str:
    """An allow-list, for people."""
    return ", ".join(patterns) if patterns else "what config.allowedImages and allowedServiceAccounts list"


# -- What a stage runs as ---------------------------------------------------------------------------------------------


def choose_backend(spec: DraftTrainingSpec, serves_pytorch_jobs: bool) -> Backend:
    """What training runs as."""
    if spec.backend != "Auto":
        return spec.backend
    wants = spec.train.nodes > 1 or (spec.mode == "Online" and serves_pytorch_jobs)
    return "PyTorchJob" if wants else "Job"


def check_backend(run: Run, seen: Observed, config: OperatorConfig) -> Fact | None:
    """What is wrong with the backend; it is needed once training is next, and said from the start."""
    spec, status = run.wanted, run.status
    kept = status.backend if status.frozen_time is not None else None
    chosen = kept or choose_backend(spec, seen.serves_pytorch_jobs)
    if stage_of(status, Stage.TRAIN).state == "Succeeded" or chosen == "Job" or seen.serves_pytorch_jobs:
        return None
    if not config.pytorch_jobs:
        return refused(Reason.BACKEND_UNAVAILABLE, switched_off(spec))
    asks = f"train.nodes {spec.train.nodes}" if spec.train.nodes > 1 else "backend PyTorchJob"
    message = f"{asks} needs PyTorchJob (kubeflow.org/v1), which is not installed: {INSTALL}"
    return refused(Reason.BACKEND_UNAVAILABLE, message)


def switched_off(spec: DraftTrainingSpec) -> str:
    """What somebody reads whose run needs what this operator may not make."""
    if spec.train.nodes > 1:
        return (
            f"train.nodes: given {spec.train.nodes}, which {SWITCHED_OFF}; accepted: 1; set train.nodes: 1, or have "
            "rbac.pytorchJobs switched on"
        )
    return f"backend: PyTorchJob {SWITCHED_OFF}; accepted: Job; set backend: Job, or have rbac.pytorchJobs switched on"


# -- Claims -----------------------------------------------------------------------------------------------------------


def check_claims(run: Run, seen: Observed) -> Fact | None:
    """What is wrong with the claims that the spec names."""
    if seen.missing_claims:
        return refused(Reason.CLAIM_NOT_FOUND, f"claim {', '.join(seen.missing_claims)} does not exist; create it")
    name, writers = claim_name(run), several_writers(run.wanted)
    pvc = run.wanted.workspace.pvc
    if pvc is None or name is None:
        return None
    if pvc.existing_claim is not None and seen.claim is None:
        message = f"workspace.pvc.existingClaim: {name} does not exist; create it, or use claimTemplate"
        return refused(Reason.CLAIM_NOT_FOUND, message)
    if seen.claim is None or writers is None or MANY_WRITERS in seen.claim.access_modes:
        return None
    field, number = writers
    modes = ", ".join(seen.claim.access_modes)
    message = (
        f"claim {name} is {modes}, and {field} is {number}; accepted: a {MANY_WRITERS} claim, workspace.s3, or "
        f"{field.rpartition('.')[2]} 1"
    )
    return refused(Reason.CLAIM_ACCESS_MODE, message)


def several_writers(spec: DraftTrainingSpec) -> tuple[str, int] | None:
    """The field that makes several pods write, and its value; None when one pod writes at a time."""
    if spec.train.nodes > 1:
        return "train.nodes", spec.train.nodes
    fields = {Stage.REGENERATE: "regenerate.parallelism", Stage.GENERATE: "hiddenStates.parallelism"}
    numbers = ((field, parallelism_of(spec, stage)) for stage, field in fields.items() if stage in stages(spec))
    return next(((field, number) for field, number in numbers if number > 1), None)
