"""Pods, operator, kubelet and API server killed in the middle of both modes: the runs end as if undisturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cluster
import deletion
import drafts
import installing
import layout
import machine
import suspension
import team
from team import Json

from report import Bar

OFFLINE, ONLINE = "kills-offline", "kills-online"
NOT_COUNTED = ("Disrupted", "Interrupted", "Fenced")
"""How attempts end that somebody has disturbed."""
STEPS = 20
"""Of training between two kills, so that each finds it at work again."""


def bars() -> list[Bar]:
    """Both modes."""
    return [*offline(), *online()]


def offline() -> list[Bar]:
    """Jobs: a pod that was asked to end is replaced within its attempt."""
    team.apply(team.slow("e2e-offline", OFFLINE))
    victim = Victim(OFFLINE)
    victim.pod("generate")
    victim.beside("operator", kill_operator)
    victim.beside("kubelet", kill_kubelet)
    victim.beside("API server", kill_api_server)
    victim.pod("train")
    return [Bar(f"{OFFLINE}/kills", len(victim.kills), ">=", 5), *victim.bars(deletion.NAME)]


def online() -> list[Bar]:
    """A PyTorchJob of two workers: one that goes ends the attempt, and the next goes on at the last checkpoint."""
    team.apply(team.slow("e2e-online", ONLINE))
    victim = Victim(ONLINE)
    victim.beside("operator", kill_operator)
    victim.beside("kubelet", kill_kubelet)
    victim.beside("API server", kill_api_server)
    victim.pod("train")
    return [Bar(f"{ONLINE}/kills", len(victim.kills), ">=", 4), *victim.bars(suspension.NAME)]


# -- What is killed -------------------------------------------------------------------------------------------------


def kill_operator() -> None:
    """Delete the operator's pod, and wait for the next one."""
    (old,) = installing.operator_pods()
    cluster.kubectl("--namespace", installing.SYSTEM, "delete", old)
    cluster.wait_for_deployment(installing.SYSTEM, "draftyard")


def kill_kubelet() -> None:
    """Kill the kubelet, and wait until the next one says that its node is there."""
    before = heartbeat()
    machine.restart("kubelet")
    machine.until(lambda: heartbeat() != before, team.RUN_SECONDS, "heartbeat of the node", team.LOOK_SECONDS)


def heartbeat() -> str:
    """When the kubelet has last said that its node is there."""
    lease = ("get", f"lease/{layout.NODE}", "--output", "jsonpath={.spec.renewTime}")
    return cluster.kubectl("--namespace", "kube-node-lease", *lease)


def kill_api_server() -> None:
    """Kill the API server, and wait until the next one answers."""
    machine.restart("kube-apiserver")
    machine.until(cluster.is_serving, team.RUN_SECONDS, "API server")


# -- Whom it happens to ---------------------------------------------------------------------------------------------


@dataclass
class Victim:
    """A run, and what was done to it."""

    name: str
    kills: list[str] = field(default_factory=list)
    """What was killed, each in the middle of a stage."""
    step: int = 0
    """Of training; before it nothing is killed."""
    lost: int = 0
    """Trainers that went though something else was killed."""

    def pod(self, stage: str) -> None:
        """Delete a pod in the middle of its stage, and wait until another works."""
        self.strike("pod", stage)
        before = team.working(self.name, stage)
        team.kubectl("delete", "pod", min(before), "--wait=false")
        machine.until(
            lambda: bool(set(team.working(self.name, stage).values()) - set(before.values())),
            team.RUN_SECONDS, f"{self.name}: another pod of {stage}", team.LOOK_SECONDS,
        )  # fmt: skip

    def beside(self, what: str, kill: Callable[[], None]) -> None:
        """Kill what is no pod of the run in the middle of train, and count the trainers that go with it."""
        self.strike(what, "train")
        before = team.working(self.name, "train")
        kill()
        team.in_the_middle(self.name, "train", beyond=self.step)
        self.lost += len(set(before.values()) - set(team.working(self.name, "train").values()))

    def strike(self, what: str, stage: str) -> None:
        """Wait for the middle of a stage. Raises TimeoutError when it was missed."""
        at = team.in_the_middle(self.name, stage, beyond=self.step if stage == "train" else 0)
        self.kills.append(what)
        if stage == "train":
            self.step = at["done"] + STEPS
        print(f"{self.name}: {what} is killed at {at['done']} of {at['total']} {at['unit']} of {stage}")

    def bars(self, like: str) -> list[Bar]:
        """How it ended, beside a run of the same spec that was disturbed in other ways."""
        is_complete = team.has_completed(self.name)
        status = team.status(self.name)
        drafts.keep(self.name)
        team.delete(self.name)
        stages, ended = status["stages"], [one["reason"] for one in status.get("history", ())]
        told = ", ".join(f"{one['name']} a{one['attempt']}" for one in stages)
        print(f"{self.name}: {told}; ended before: {', '.join(ended) or 'none'}")
        further = sum(one["attempt"] - 1 for one in stages)
        return [
            Bar(f"{self.name}/complete", is_complete, ">=", 1),
            Bar(f"{self.name}/trainers-lost-with-others", self.lost, "<=", 0),
            Bar(f"{self.name}/counted-failures", sum(one["counted"] for one in stages), "<=", 0),
            Bar(f"{self.name}/attempts-without-a-reason", abs(further - len(ended)), "<=", 0),
            Bar(f"{self.name}/attempts-ended-otherwise", sum(one not in NOT_COUNTED for one in ended), "<=", 0),
            Bar(f"{self.name}/resumed-from-step", resumed(stages), ">=", 1),
            Bar(f"{self.name}/largest-difference-of-weights", drafts.largest_difference(self.name, like), "<=", 0),
        ]


def resumed(stages: list[Json]) -> int:
    """At which checkpoint the last pods of train went on."""
    return next(one.get("resumedFromStep", 0) for one in stages if one["name"] == "train")
