"""What pods do that run no container: every stage ends with the result that it would have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from world import badly, well

from draftyard_api.names import LABEL_STAGE, Stage
from draftyard_operator.testing.pods import Behaviour, Ends, Runs

Json = Any


def stage_in(pod: Json) -> Stage | None:
    """The stage of a pod; None for one that is of no run."""
    label = pod["metadata"]["labels"].get(LABEL_STAGE)
    return Stage(label) if label in set(Stage) else None


def works(*held: Stage, as_if: Behaviour | None = None) -> Callable[[Json], Behaviour]:
    """A script: every stage does its work, and those that are held go on, or do something else, until told."""

    def script(pod: Json) -> Behaviour:
        stage = stage_in(pod)
        return (as_if or Runs()) if stage in held or stage is None else well(stage, pod)

    return script


def saves(pod: Json) -> Ends:
    """How a stage ends that is told to, with its work saved."""
    stage = stage_in(pod)
    return Ends(75) if stage is None else badly(75, stage, "Interrupted", "saved step 400")
