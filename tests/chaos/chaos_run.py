"""One run under its script: started again after every end, until it is done; then what came of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_world import POLL_SECONDS, RUN, Buckets, Undisturbed, World, small_disk, start
from comparison import compare_manifests, compare_samples, compare_weights, find_partial, read_ending
from disturbances import KILLS, Disturbance, Kind, Script
from victims import role_of, running_stage, tree_of, wait_until_none_names

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.store import Store

STUCK_SECONDS = 240
"""An attempt that takes longer, disturbed or not, is stuck: undisturbed a whole run takes less than a minute."""
LEFT_SECONDS = 60
"""In which processes of a run that is done must be gone."""
FULL_SECONDS, AWAY_SECONDS = 6.0, 8.0
FAULTS = ("SlowDown", "InternalError", "cut", "lost", "hang")
FILLER = "filler"
PERMANENT = (
    ExitCode.BAD_TASK, ExitCode.BAD_DATA, ExitCode.NOT_FOUND, ExitCode.NOT_CONFORMANT, ExitCode.DIVERGED,
    ExitCode.EXISTS, ExitCode.DENIED, ExitCode.UNSUPPORTED, ExitCode.GATE_MISSED,
)  # fmt: skip
"""A person must change something: nothing that was done here may end like that."""


@dataclass
class Record:
    """What was done to a run, and how it ended."""

    seed: int
    mode: str
    storage: str
    processes: Sequence[int]
    regenerates: bool = False
    done: list[dict[str, Any]] = field(default_factory=list)
    """Every disturbance: attempt, stage, kind, victim."""
    codes: list[int] = field(default_factory=list)
    """Exit code of each attempt."""
    seconds: float = 0.0
    stuck: int = 0
    """Attempts that did not end, and processes that were left."""
    partial: list[str] = field(default_factory=list)
    """Visible and not whole, after any attempt."""
    lost: int | None = None
    doubled: int | None = None
    difference: float | None = None
    """Of weights; None when there are none."""
    manifest: list[str] | None = None
    """Fields of manifest and publication that differ."""

    @property
    def kills(self) -> int:
        """Signals that reached a process."""
        return sum(each["kind"] in KILLS for each in self.done)


class ChaosRun:
    """A run, its workspace, and what is still to be done to it."""

    def __init__(self, script: Script, world: World, undisturbed: Undisturbed, buckets: Buckets | None) -> None:
        self.script = script
        self.world = world
        self.undisturbed = undisturbed
        self.buckets = buckets if script.storage == "bucket" else None
        self.folder = world.folder / f"run-{script.seed}"
        self.pending = deque(script.disturbances)
        self.record = Record(script.seed, script.mode, script.storage, script.processes, script.regenerates)
        self.disk_is_back: float | None = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def go(self) -> Record:
        """Run it to its end, and look at what it left."""
        began = time.monotonic()
        with small_disk(self.folder / "disk") as self.has_disk:
            self.workspace = self.buckets.make() if self.buckets else str(self.folder / "disk" / "workspace")
            store = self.open_store()
            while self.attempt():
                self.record.partial += find_partial(store, RUN)
            self.record.stuck += wait_until_none_names(self.folder, LEFT_SECONDS)
            self.look_at(store)
        self.record.seconds = round(time.monotonic() - began, 1)
        return self.record

    def open_store(self) -> Store:
        """The workspace as a reader sees it, without the proxy."""
        return self.buckets.store(self.folder / "downloads") if self.buckets else LocalStore(Path(self.workspace))

    # -- Attempts ---------------------------------------------------------------------------------

    def attempt(self) -> bool:
        """Start the run and disturb it until it ends. Returns whether it has to be started again."""
        number = len(self.record.codes)
        processes = self.script.processes[min(number, len(self.script.processes) - 1)]
        s3 = {"uri": self.workspace, "endpoint": self.buckets.proxy.endpoint} if self.buckets else None
        name = f"run-{self.script.seed}"
        file = self.world.write_run(name, self.script.mode, processes, s3, self.script.regenerates)
        process = start(file, self.workspace, self.folder)
        begun: dict[Stage, float] = {}
        deadline = time.monotonic() + STUCK_SECONDS
        while process.poll() is None:
            now = time.monotonic()
            stage = running_stage(process.pid)
            if stage is not None:
                begun.setdefault(stage, now)
            if self.disk_is_back is not None and now > self.disk_is_back:
                self.empty_disk()
            if stage is not None and self.pending and self.is_due(self.pending[0], stage, now - begun[stage]):
                self.disturb(process.pid, self.pending.popleft(), stage)
            if now > deadline:
                self.give_up(process)
            time.sleep(POLL_SECONDS)
        self.empty_disk()
        self.record.codes.append(process.returncode)
        return process.returncode not in (ExitCode.OK, *PERMANENT) and not self.record.stuck

    def is_due(self, next_one: Disturbance, stage: Stage, seconds: float) -> bool:
        """Whether its moment has come, or its stage was over before that."""
        stages = list(Stage)
        late = stages.index(stage) - stages.index(next_one.stage)
        return late > 0 or (late == 0 and seconds >= next_one.moment * self.undisturbed.seconds[stage])

    def give_up(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a run that does not end, and say so."""
        self.record.stuck += 1
        for each in tree_of(process.pid):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    # -- Disturbances -----------------------------------------------------------------------------

    def disturb(self, pid: int, what: Disturbance, stage: Stage) -> None:
        """Do it, and write down what was done."""
        victim = None
        if what.kind in KILLS:
            victim = self.kill(pid, what)
        elif what.kind is Kind.FULL:
            victim = self.fill_disk(what.pick)
        elif self.buckets is not None:
            victim = self.take_store(what, self.buckets)
        if victim is not None:
            self.record.done.append(
                {"attempt": len(self.record.codes) + 1, "stage": stage, "kind": what.kind, "victim": victim}
            )

    def kill(self, pid: int, what: Disturbance) -> str | None:
        """A signal to one process of the tree; another disturbance of its kind comes at once if it is gone by then."""
        tree = tree_of(pid)
        try:
            victim = tree[int(what.pick * len(tree))]
            role = role_of(victim)
            victim.send_signal(signal.SIGKILL if what.kind is Kind.KILL else signal.SIGTERM)
        except (IndexError, psutil.Error):
            self.pending.appendleft(what)
            return None
        return role

    def fill_disk(self, pick: float) -> str | None:
        """Take all the space that there is, for some seconds."""
        if not self.has_disk:
            return None
        with suppress(OSError), (self.folder / "disk" / FILLER).open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(2**16))
        self.disk_is_back = time.monotonic() + FULL_SECONDS * pick
        return f"for {FULL_SECONDS * pick:.1f} s"

    def empty_disk(self) -> None:
        """Give the space back."""
        self.disk_is_back = None
        (self.folder / "disk" / FILLER).unlink(missing_ok=True)

    def take_store(self, what: Disturbance, buckets: Buckets) -> str:
        """Let the store be away, or have a few requests go wrong."""
        if what.kind is Kind.AWAY:
            seconds = AWAY_SECONDS * what.pick
            buckets.proxy.leave(seconds)
            return f"for {seconds:.1f} s"
        fault = FAULTS[int(what.pick * len(FAULTS))]
        buckets.proxy.inject(fault, times=3)
        return f"{fault}, three times"

    # -- The end ----------------------------------------------------------------------------------

    def look_at(self, store: Store) -> None:
        """Compare what is there with the undisturbed end."""
        self.record.partial += find_partial(store, RUN)
        wanted = self.undisturbed.ending
        try:
            found = read_ending(store, RUN)
        except FileNotFoundError:
            return
        samples = compare_samples(found.curve, wanted.curve)
        self.record.lost, self.record.doubled = samples.lost, samples.doubled
        self.record.difference = compare_weights(found.model, wanted.model)
        is_exact = not self.script.is_reshaped
        self.record.manifest = compare_manifests(found.manifest, wanted.manifest, is_exact)
        if is_exact and found.published["acceptance"] != wanted.published["acceptance"]:
            self.record.manifest.append("published acceptance")


def written(record: Record) -> dict[str, Any]:
    """The record as JSON."""
    return {**asdict(record), "kills": record.kills}
