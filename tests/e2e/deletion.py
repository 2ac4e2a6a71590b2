"""`kubectl delete dt` in every phase: what the run owned is gone, what is retained stays and is gone on with."""

from __future__ import annotations

from collections.abc import Callable

import drafts
import machine
import suspension
import team
from team import Json

from report import Bar

NAME = "deleted"
RETAINED: Json = {"workspace": {"pvc": {"claimTemplate": {"reclaim": "Retain"}}}}
CLAIM = f"pvc/{NAME}-workspace"
"""Retained by each of the runs, and adopted by the next."""
GONE_SECONDS = 120


def pending() -> bool:
    """Nothing was looked at yet, or no pod is there."""
    return team.status(NAME).get("phase", "Pending") == "Pending"


def preparing() -> bool:
    """A pod counts tokens, or is about to."""
    return is_at("prepare")


def generating() -> bool:
    """Shards are made."""
    return is_at("generate")


def training() -> bool:
    """Steps are made, and a checkpoint is there."""
    return bool(team.in_the_middle(NAME, "train", beyond=30))


def suspended() -> bool:
    """No pod is there, because a person wanted it so in the middle of train."""
    team.in_the_middle(NAME, "train")
    suspension.suspend(NAME, True)
    team.until(NAME, lambda status: status.get("phase") == "Suspended", "suspended")
    return not team.working(NAME, "train")


def evaluating() -> bool:
    """The draft is judged."""
    return is_at("evaluate")


def complete() -> bool:
    """All is done."""
    return team.has_completed(NAME)


PHASES: tuple[Callable[[], bool], ...] = (pending, preparing, generating, training, suspended, evaluating, complete)


def bars() -> list[Bar]:
    """The same run again and again, each time deleted a phase later."""
    reached, left, claims, resumed = 0, 0, [], []
    for phase in PHASES:
        team.apply(team.slow("e2e-offline", NAME, **RETAINED))
        is_reached = phase()
        print(f"delete while {phase.__name__}: {'so it was' if is_reached else 'came too late'}")
        reached += is_reached
        resumed.append(team.stage(NAME, "train").get("resumedFromStep", 0))
        if phase is complete:
            drafts.keep(NAME)
        team.kubectl("delete", f"dt/{NAME}", "--wait=true")
        left += left_behind()
        if phase is not pending:
            claims.append(team.asked("get", CLAIM)["metadata"]["uid"])
    team.kubectl("delete", CLAIM)
    return [
        Bar("deletion/phases", reached, ">=", len(PHASES)),
        Bar("deletion/left-behind", left, "<=", 0),
        Bar("deletion/claims-kept", claims.count(claims[0]), ">=", len(PHASES) - 1),
        Bar("deletion/resumed-from-step", max(resumed), ">=", 20),
    ]


def is_at(stage: str) -> bool:
    """Wait until pods of a stage run."""
    machine.until(lambda: bool(team.working(NAME, stage)), team.RUN_SECONDS, f"pods of {stage}", team.LOOK_SECONDS)
    return True


def left_behind() -> int:
    """What is still there after the time that pods have to end, and garbage collection."""
    try:
        machine.until(lambda: not team.owned(NAME), GONE_SECONDS, "end of what was owned", team.LOOK_SECONDS)
    except TimeoutError as error:
        print(error, team.owned(NAME))
    return len(team.owned(NAME))
