"""Which ended runs a resync may leave alone: a census says it for all of them, where a pass asks for each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from draftyard_operator.backends import BACKENDS, allowed
from draftyard_operator.census import Census
from draftyard_operator.observe import Observed
from draftyard_operator.reconcile import Operator, is_undisturbed
from draftyard_operator.run import is_terminal, read_run

Json = Any


def at_rest(operator: Operator, census: Census, now: datetime) -> Callable[[Json], bool]:
    """Whether a pass over a run would find nothing to do."""
    served = [census.listed[row.kind] for row in allowed(operator.config).values()]
    with_children = set[str]().union(*(found for found in served if found is not None))
    serves_pytorch_jobs = census.listed.get(BACKENDS["PyTorchJob"].kind) is not None

    def rests(found: Json) -> bool:
        run = read_run(found)
        if run.is_deleting or not is_terminal(run.status) or run.uid in with_children:
            return False
        seen = Observed(children=(), serves_pytorch_jobs=serves_pytorch_jobs)
        return is_undisturbed(operator, run, seen, now)

    return rests
