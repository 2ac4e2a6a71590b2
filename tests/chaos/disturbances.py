"""What is done to a run, drawn from its seed alone: the same seed is the same run on any machine."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from draftyard_api.names import Stage

FEWEST_KILLS, MOST_KILLS = 5, 7
KILLS_IN_TRAIN = 2
"""At least: it is the stage that has most to lose."""
RESHAPED = 5
"""Every fifth run has another number of processes from attempt to attempt."""
REGENERATED = 3
"""Every third run lets the target answer in place of whoever did."""


class Kind(StrEnum):
    """Something that clusters do."""

    KILL = "SIGKILL"
    STOP = "SIGTERM"
    FULL = "disk full"
    AWAY = "store away"
    FAULTS = "store faults"


KILLS = (Kind.KILL, Kind.STOP)


@dataclass(frozen=True)
class Disturbance:
    """One of them: when, and to whom."""

    stage: Stage
    moment: float
    """Share of the time that the stage takes when nobody disturbs it."""
    kind: Kind
    pick: float
    """Which process of the tree, or for how long: from 0 to 1."""


@dataclass(frozen=True)
class Script:
    """One run and everything that is done to it."""

    seed: int
    mode: str
    storage: str
    """folder or bucket."""
    processes: tuple[int, ...]
    """Of the training in each attempt; the last number stays."""
    disturbances: tuple[Disturbance, ...]
    """In the order in which they happen."""
    regenerates: bool = False
    """Whether a stage before all others makes the answers anew."""

    @property
    def is_reshaped(self) -> bool:
        """Whether sums are made in another order than undisturbed: equal to 1e-5 then, not to the bit."""
        return set(self.processes) != {1}

    @property
    def name(self) -> str:
        """For people."""
        shape = "-".join(map(str, self.processes)) if self.is_reshaped else "1"
        own = ", own answers" if self.regenerates else ""
        return f"seed {self.seed}: {self.mode}{own}, {self.storage}, {shape} processes"


def draw(seed: int) -> Script:
    """The script of a seed. Modes and kinds of storage take turns, so that few runs see all of them."""
    chance = random.Random(seed)  # noqa: S311  not for secrets
    mode = ("Offline", "Online")[seed % 2]
    storage = ("folder", "bucket")[seed // 2 % 2]
    regenerates = seed % REGENERATED == 0
    absent = {Stage.GENERATE: mode == "Online", Stage.REGENERATE: not regenerates}
    stages = [stage for stage in Stage if not absent.get(stage)]
    num_kills = chance.randint(FEWEST_KILLS, MOST_KILLS)
    # what has most to lose, and what only some runs have
    where = [Stage.TRAIN] * KILLS_IN_TRAIN + [Stage.REGENERATE] * regenerates
    where += chance.choices(stages[:-1], k=FEWEST_KILLS - len(where))
    # on top: what goes on in the last stage may be done before their moment, and nothing comes behind it
    where += stages[-1:] * (num_kills - FEWEST_KILLS)
    drawn = [Disturbance(stage, chance.random(), chance.choice(KILLS), chance.random()) for stage in where]
    kinds = (Kind.FULL,) if storage == "folder" else (Kind.AWAY, Kind.FAULTS)
    # what they do is done to whoever writes next, wherever that is
    drawn += [Disturbance(chance.choice(stages), chance.random(), kind, chance.random()) for kind in kinds]
    drawn.sort(key=lambda each: (stages.index(each.stage), each.moment))
    processes = (2, 1, 3, 1) if seed % RESHAPED == 0 else (1,)
    return Script(seed, mode, storage, processes, tuple(drawn), regenerates)
