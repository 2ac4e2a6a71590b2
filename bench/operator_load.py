"""The operator under load: a thousand DraftTrainings, fifty of them training, on a fake API server.

    PYTHONPATH=tests/operator python bench/operator_load.py --out build/bench/operator.json

The operator is a process of its own, started as in a pod. Measured: its start to the first complete list with every
object looked at, its peak of resident memory, the time from a change of a spec to what follows from it (the child
deleted, or the next one made), and its requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from live import ends_well, free_port
from world import NAMESPACE, World, spec

from draftyard_api.names import LABEL_STAGE, Stage
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.kinds import JOB
from draftyard_operator.testing.pods import Runs
from report import Bar

Json = Any
PROGRAM = "import sys; from draftyard_operator.command import operator; sys.exit(operator(sys.argv[1:]))"
CONFIG = "trainerImage: registry.example/trainer@sha256:00\nresyncSeconds: 60\n"
PATIENCE = 240.0


@dataclass(frozen=True)
class Load:
    """How much."""

    objects: int = 1000
    active: int = 50
    changes: int = 100


class Operator:
    """The operator's process, from outside."""

    def __init__(self, process: asyncio.subprocess.Process, metrics_port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{metrics_port}"

    async def ask(self, path: str) -> tuple[int, str]:
        """One GET; code 0 while nobody answers."""
        with contextlib.suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/{path}") as response:
                return response.status, await response.text()
        return 0, ""

    async def knows(self, objects: int) -> bool:
        """Whether the list is done, and this many runs have their series."""
        if (await self.ask("readyz"))[0] != 200:
            return False
        text = (await self.ask("metrics"))[1]
        return text.count("\ndraftyard_drafttraining_info{") >= objects

    def peak_mib(self) -> float:
        """Its largest resident memory so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(peak) / 1024


@contextlib.asynccontextmanager
async def started(fake: FakeCluster, folder: Path) -> AsyncIterator[Operator]:
    """An operator while the block runs."""
    config, port = folder / "config.yaml", free_port()
    config.write_text(CONFIG)
    given = ["--config", config, "--kubeconfig", fake.kubeconfig(folder)]
    given += ["--metrics-port", port, "--health-port", free_port()]
    with (folder / "operator.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, *map(str, given), stderr=log)
    try:
        yield Operator(process, port)
    finally:
        process.terminate()
        await process.wait()


async def until(holds: Callable[[], bool]) -> float:
    """Wait until something holds. Returns the seconds it took."""
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > PATIENCE:
            raise TimeoutError
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


def fill(fake: FakeCluster, load: Load, ended: Json) -> list[str]:
    """All objects: most have ended, and have that status; some will train. Returns the names of those."""
    for number in range(load.objects - load.active):
        name = f"ended-{number}"
        fake.add_run(NAMESPACE, name, spec())
        fake.api.patch(fake.kind, NAMESPACE, name, {"status": ended}, "status")
    names = [f"active-{number}" for number in range(load.active)]
    for name in names:
        fake.add_run(NAMESPACE, name, spec())
    return names


def training_goes_on(pod: Json) -> Any:
    """What pods do: prepare ends well, training goes on."""
    return Runs() if pod["metadata"]["labels"][LABEL_STAGE] == Stage.TRAIN else ends_well()(pod)


def children(fake: FakeCluster, name: str) -> list[str]:
    """Jobs of a run's training that are not being deleted."""
    jobs = (one["metadata"] for one in fake.store.every(JOB, NAMESPACE))
    return [one["name"] for one in jobs if one["name"].startswith(f"{name}-train-") and "deletionTimestamp" not in one]


async def change(fake: FakeCluster, name: str) -> float:
    """Suspend a run that trains, or resume it. Returns the seconds until its child is deleted, or made."""
    suspend = not fake.run(NAMESPACE, name)["spec"].get("suspend", False)
    fake.edit_run(NAMESPACE, name, {"suspend": suspend})
    return await until(lambda: bool(children(fake, name)) is not suspend)


async def measure(load: Load, ended: Json, folder: Path) -> Json:
    """All figures."""
    async with FakeCluster() as fake:
        fake.add_namespace(NAMESPACE)
        fake.kubelet.script = training_goes_on
        names = fill(fake, load, ended)
        async with started(fake, folder):
            await until(lambda: all(children(fake, name) for name in names))
        fake.server.record.clear()
        begin = time.monotonic()
        async with started(fake, folder) as operator:
            while not await operator.knows(load.objects):
                if time.monotonic() - begin > PATIENCE:
                    raise TimeoutError((folder / "operator.log").read_text()[-2000:])
                await asyncio.sleep(0.1)
            start, requests = time.monotonic() - begin, fake.server.record.counts()
            seconds = [await change(fake, names[number % len(names)]) for number in range(load.changes)]
            return {
                "load": asdict(load), "start_seconds": start, "start_requests": requests,
                "change_seconds": seconds, "requests": dict(fake.server.record.counts() - requests),
                "peak_mib": operator.peak_mib(),
            }  # fmt: skip


def p99(seconds: list[float]) -> float:
    """99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def bars(measured: Json) -> list[Bar]:
    """What has to hold."""
    return [
        Bar("operator/start-seconds", measured["start_seconds"], "<=", 30),
        Bar("operator/memory-mib", measured["peak_mib"], "<=", 250),
        Bar("operator/spec-change-p99-seconds", p99(measured["change_seconds"]), "<=", 2),
    ]


def main() -> None:
    """Measure, keep it, and say it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--changes", type=int, default=100)
    options = parser.parse_args()
    load, ended = Load(options.objects, options.active, options.changes), World().run_all().object["status"]
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(measure(load, ended, Path(folder)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2))
    for title in ("start_requests", "requests"):
        counted = Counter(measured[title])
        print(f"{title}: {counted.total()}; " + ", ".join(f"{name} {count}" for name, count in counted.most_common(8)))
    print("\n".join(map(str, bars(measured))))


if __name__ == "__main__":
    main()
