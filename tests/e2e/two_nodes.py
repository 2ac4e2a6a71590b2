"""Two pods of one process each, or one pod of two: the same training, so the same draft."""

from __future__ import annotations

import drafts
import team
import whole_runs

from report import Bar

ONE_POD = "e2e-one-pod"
WORKERS = {"nodes": 1, "gpusPerNode": 2}


def bars() -> list[Bar]:
    """The example with two workers, and the same run in one pod; then their weights side by side."""
    if not drafts.kept(whole_runs.ONLINE).exists():
        print("\n".join(map(str, whole_runs.on_a_claim(whole_runs.ONLINE))))
    team.apply(team.example(whole_runs.ONLINE, ONE_POD, train=WORKERS))
    is_complete = team.has_completed(ONE_POD)
    pods = team.pods(ONE_POD, "train")
    drafts.keep(ONE_POD)
    team.delete(ONE_POD)
    difference = drafts.largest_difference(whole_runs.ONLINE, ONE_POD)
    return [
        Bar("two-nodes/one-pod-complete", is_complete, ">=", 1),
        Bar("two-nodes/pods-of-the-other", len(pods), "<=", 1),
        Bar("two-nodes/largest-difference-of-weights", difference, "<=", 0),
    ]
