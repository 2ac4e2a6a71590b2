"""What a run will take, once prepare has counted; and whether its workspace can hold it."""

from __future__ import annotations

import math

from draftyard_api import estimate
from draftyard_api.names import Stage
from draftyard_api.progress import Prepared
from draftyard_api.reasons import Reason
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import GpuHours, Plan, PlannedBytes, ProgressStatus
from draftyard_api.targets import WELL_KNOWN, TargetShape
from draftyard_operator import results
from draftyard_operator.ledger import MAX_MESSAGE, Ledger
from draftyard_operator.run import claim_name
from draftyard_operator.status import Fact


def assume_plan(ledger: Ledger) -> Fact | None:
    """Store a plan before anything is counted, for a run whose first stage needs a GPU; None for any other.

    What it is made of is a guess, said to be one; the exact plan takes its place when prepare has counted.
    """
    spec = ledger.run.wanted
    if spec.data.regenerate is None or ledger.status.plan is not None:
        return None
    known, amount = WELL_KNOWN.get(spec.target.model.removeprefix("hf://")), estimate.assumed(spec, None)
    if known is not None:
        made = estimate.estimate(spec, TargetShape.from_config(known), amount)
    else:
        made = Plan(
            basis="Assumed", samples=amount.documents, tokens=amount.tokens, loss_tokens=amount.loss_tokens,
            regenerate_shards=estimate.conversation_shards(spec, amount.documents, 0.0), steps=amount.steps,
            bytes=PlannedBytes(), gpu_hours=GpuHours(),
            assumes=f"{amount.source}; the target's shape is not known before prepare",
        )  # fmt: skip
    capacity = ledger.seen.claim.capacity if ledger.seen.claim else None
    ledger.change(plan=made.model_copy(update={"bytes": made.bytes.model_copy(update={"capacity": capacity})}))
    told = fits(ledger)
    return Fact(told.truth, told.reason, f"assumed, before prepare has counted: {told.message}")


def is_counted(ledger: Ledger) -> bool:
    """Whether the plan is one of counted tokens."""
    plan = ledger.status.plan
    return plan is not None and plan.basis != "Assumed"


def fill_plan(ledger: Ledger, prepared: Prepared) -> Fact:
    """Store the plan; whether it fits. Nothing that is seen later changes whether a run that is frozen may go on."""
    spec, claim = ledger.run.wanted, ledger.seen.claim
    made, before = make_plan(spec, prepared), ledger.status.plan
    capacity = claim.capacity if claim else None
    if before is not None:
        # what was cut so stays cut so
        made = made.model_copy(update={"regenerate_shards": before.regenerate_shards})
    ledger.change(plan=made.model_copy(update={"bytes": made.bytes.model_copy(update={"capacity": capacity})}))
    shape = shape_of(spec, prepared)
    too_small = None
    if shape is not None and prepared.free_bytes is not None:
        amount = estimate.counted(prepared.counts)
        too_small = estimate.proposal(spec, shape, amount, prepared.free_bytes, claim_name(ledger.run))
    if too_small is not None:
        return Fact("False", Reason.WORKSPACE_TOO_SMALL, too_small)
    return fits(ledger)


def fits(ledger: Ledger) -> Fact:
    """The plan fits; in a sentence."""
    plan = ledger.status.plan
    assert plan is not None
    needed = estimate.bytes_text(plan.bytes.needed)
    free = "no limit is known" if plan.bytes.free is None else f"{estimate.bytes_text(plan.bytes.free)} are free"
    return Fact("True", Reason.PLAN_FITS, f"needs {needed}, {free}; {plan.gpu_hours.total} GPU-hours ({plan.assumes})")


def make_plan(spec: DraftTrainingSpec, prepared: Prepared) -> Plan:
    """The plan block of the status."""
    counts, shape = prepared.counts, shape_of(spec, prepared)
    amount = estimate.counted(counts)
    if shape is None:
        # tokens are counted all the same; what depends on the target's shape is not made up
        shards = estimate.default_shards(spec, counts.documents, 0.0) if spec.hidden_states else None
        made = Plan(
            basis="Counted", samples=counts.documents, tokens=counts.tokens, loss_tokens=counts.loss_tokens,
            shards=shards, steps=counts.steps, bytes=PlannedBytes(free=prepared.free_bytes), gpu_hours=GpuHours(),
            assumes="nothing: the target's shape is not known",
        )  # fmt: skip
    else:
        made = estimate.estimate(spec, shape, amount, prepared.free_bytes)
    return made.model_copy(
        update={
            "dropped_samples": dict(list(counts.skipped.items())[:64]) or None,
            "truncated_samples": counts.truncated_documents,
            "vocab_coverage": prepared.vocab_coverage,
            "shards": None if made.shards is None else min(made.shards, max(counts.documents, 1)),
        }
    )


def measure_shards(ledger: Ledger) -> None:
    """Put what finished shards took in place of what was assumed; their number and the claim stay."""
    plan, spec, prepared = ledger.status.plan, ledger.run.wanted, known(ledger)
    shape = shape_of(spec, prepared) if prepared is not None else None
    finished = results.succeeded(ledger.seen.pods_of(Stage.GENERATE))
    if plan is None or prepared is None or shape is None or not finished:
        return
    made = estimate.measured(make_plan(spec, prepared), spec, shape, estimate.counted(prepared.counts), finished)
    sizes = {"hidden_states": made.bytes.hidden_states, "needed": made.bytes.needed}
    told = {"basis": made.basis, "gpu_hours": made.gpu_hours, "assumes": made.assumes[:MAX_MESSAGE]}
    ledger.change(plan=plan.model_copy(update=told | {"bytes": plan.bytes.model_copy(update=sizes)}))


def measure_steps(ledger: Ledger) -> None:
    """Put the rate of training in place of what was assumed; when progress is stored, since it never is the same."""
    plan, prepared, progress = ledger.status.plan, known(ledger), ledger.status.progress
    rate = rate_of(progress) if progress is not None and progress != ledger.run.status.progress else None
    if plan is None or prepared is None or rate is None:
        return
    made = estimate.measured_training(plan, ledger.run.wanted, prepared.counts.train_tokens, rate)
    ledger.change(plan=made.model_copy(update={"assumes": made.assumes[:MAX_MESSAGE]}))


def known(ledger: Ledger) -> Prepared | None:
    """What prepare counted; its pod says it, which is there as long as its Job is."""
    found = (one.prepared for one in results.succeeded(ledger.seen.pods_of(Stage.PREPARE)) if one.prepared)
    return next(found, None)


def rate_of(progress: ProgressStatus) -> float | None:
    """Tokens per second, where a pod has said something that makes sense."""
    try:
        rate = float(progress.tokens_per_second or "")
    except ValueError:
        return None
    return rate if 0 < rate < math.inf else None


def shape_of(spec: DraftTrainingSpec, prepared: Prepared) -> TargetShape | None:
    """The target's shape, as prepare read it, or as it is published."""
    if prepared.target_shape is not None:
        return prepared.target_shape
    known = WELL_KNOWN.get(spec.target.model.removeprefix("hf://"))
    return TargetShape.from_config(known) if known else None


def has_grown(ledger: Ledger) -> bool:
    """Whether the claim is larger than when its free bytes were read."""
    plan, claim = ledger.status.plan, ledger.seen.claim
    if plan is None or plan.bytes.capacity is None or claim is None:
        return False
    return claim.capacity > plan.bytes.capacity


def remember_capacity(ledger: Ledger) -> None:
    """The claim's size now: a workspace that was full is tried again once it is larger."""
    plan, claim = ledger.status.plan, ledger.seen.claim
    if plan is None or claim is None:
        return
    ledger.change(plan=plan.model_copy(update={"bytes": plan.bytes.model_copy(update={"capacity": claim.capacity})}))
