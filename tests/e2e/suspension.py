"""Suspended in the middle of train, and resumed: it goes on at the last checkpoint."""

from __future__ import annotations

import drafts
import team

from report import Bar

NAME = "suspended"


def bars() -> list[Bar]:
    """Online with two workers: `spec.suspend` set and taken back while they train."""
    team.apply(team.slow("e2e-online", NAME))
    at = team.in_the_middle(NAME, "train", beyond=30)
    suspend(NAME, True)
    team.until(NAME, lambda status: status.get("phase") == "Suspended", "suspended")
    pods = team.working(NAME, "train")
    suspend(NAME, False)
    is_complete = team.has_completed(NAME)
    train, history = team.stage(NAME, "train"), team.status(NAME).get("history", ())
    resumed = train.get("resumedFromStep", 0)
    drafts.keep(NAME)
    team.delete(NAME)
    return [
        Bar("suspension/complete", is_complete, ">=", 1),
        Bar("suspension/pods-while-suspended", len(pods), "<=", 0),
        # a reading is from before the last steps
        Bar("suspension/steps-lost", max(at["done"] - resumed, 0), "<=", 0),
        Bar("suspension/steps-after-it", at["total"] - resumed, ">=", 1),
        Bar("suspension/attempts-of-train", train["attempt"], ">=", 2),
        Bar("suspension/counted-failures", train["counted"], "<=", 0),
        Bar("suspension/told-in-the-history", sum(one["reason"] == "Suspended" for one in history), ">=", 1),
    ]


def suspend(name: str, wanted: bool) -> None:
    """Set `spec.suspend` as a person does."""
    team.kubectl("patch", f"dt/{name}", "--type=merge", "--patch", f'{{"spec": {{"suspend": {str(wanted).lower()}}}}}')
