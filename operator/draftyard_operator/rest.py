"""Which ended runs a resync may leave alone: a few LISTs say it for all of them, where a pass asks for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from draftyard_api import names
from draftyard_operator import decide, reporting
from draftyard_operator.actions import actions
from draftyard_operator.backends import allowed
from draftyard_operator.cluster import KubernetesCluster
from draftyard_operator.kinds import Kind
from draftyard_operator.observe import Observed
from draftyard_operator.reconcile import Operator
from draftyard_operator.refusals import ApiError
from draftyard_operator.run import is_terminal, read_run

Json = Any


async def at_rest(
    operator: Operator, cluster: KubernetesCluster, namespaces: Sequence[str], now: datetime
) -> Callable[[Json], bool]:
    """List all children once. Returns whether a pass over a run would find nothing to do. Raises ApiError."""
    listed = allowed(operator.config).items()
    served = {kind: await uids(cluster, row.kind, namespaces) for kind, row in listed}
    with_children = set[str]().union(*(found for found in served.values() if found is not None))
    serves_pytorch_jobs = served.get("PyTorchJob") is not None

    def rests(found: Json) -> bool:
        run = read_run(found)
        if run.is_deleting or not is_terminal(run.status) or run.uid in with_children:
            return False
        seen = Observed(children=(), serves_pytorch_jobs=serves_pytorch_jobs)
        decided = decide.decide(run, seen, operator.config, now).status
        if actions(run, decided, seen, operator.config, now) or reporting.status_patch(run, decided) is not None:
            return False
        operator.metrics.see(run.namespace, run.name, reporting.labels(run, decided))
        return True

    return rests


async def uids(cluster: KubernetesCluster, kind: Kind, namespaces: Sequence[str]) -> set[str] | None:
    """Uids of the runs that have children of a kind; None when the kind is not served. Raises ApiError."""
    found: set[str] = set()
    try:
        for namespace in namespaces or ("",):
            async for child in cluster.each(kind, namespace, {names.LABEL_MANAGED: "true"}):
                found.add(child["metadata"]["labels"].get(names.LABEL_UID, ""))
    except ApiError as error:
        if error.is_missing:
            return None
        raise
    return found
