"""The operator under load: thousands of DraftTrainings, fifty of them training.

    PYTHONPATH=tests/operator:tests/cluster python bench/operator_load.py real --out build/bench/operator-real.json
    PYTHONPATH=tests/operator:tests/cluster python bench/operator_load.py fake --objects 5000 --out ...

The operator is a process of its own, started as in a pod. Measured: its start, until it is ready and has looked at
every object; its peak of resident memory; the time from a change of a spec to what follows from it (the Job deleted, or
the next one made); and its requests while nothing happens. `operator_report.py` says which of that has a bar.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from live import PROGRAM
from world import World

from draftyard_operator.testing.ports import free_port
from operator_sites import Site, answering, fake_site, real_site

Json = Any
CONFIG = "trainerImage: registry.example/trainer@sha256:00\nresyncSeconds: 60\n"
PATIENCE = 240.0
SITES = {"real": real_site, "fake": fake_site}


@dataclass(frozen=True)
class Load:
    """How much."""

    objects: int
    active: int
    changes: int
    """Pairs: suspended, and resumed."""
    idle_seconds: float


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

    def processor_seconds(self) -> float:
        """Time of its processor so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


@contextlib.asynccontextmanager
async def started(site: Site, folder: Path) -> AsyncIterator[Operator]:
    """An operator while the block runs."""
    config, port = folder / "config.yaml", free_port()
    config.write_text(CONFIG)
    given = ["--config", config, "--kubeconfig", site.kubeconfig]
    given += ["--metrics-port", port, "--health-port", free_port()]
    with (folder / "operator.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, *map(str, given), stderr=log)
    try:
        yield Operator(process, port)
    except TimeoutError as error:
        raise TimeoutError((folder / "operator.log").read_text()[-2000:]) from error
    finally:
        process.terminate()
        await process.wait()


async def until(holds: Callable[[], bool]) -> float:
    """Wait until something holds. Returns the seconds it took. Raises TimeoutError."""
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > PATIENCE:
            raise TimeoutError
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


async def begin(site: Site, load: Load, ended: Json, folder: Path) -> list[str]:
    """All objects: most have ended, some train. Returns the names of those that train."""
    for number in range(load.objects - load.active):
        site.add(f"ended-{number}", ended)
    names = [f"active-{number}" for number in range(load.active)]
    for name in names:
        site.add(name)
    async with started(site, folder):
        for name in names:
            await until(lambda name=name: site.trains(name))
            await until(lambda name=name: site.status(name).get("phase") == "Running")
    return names


async def change(site: Site, name: str, *, suspend: bool) -> float:
    """Suspend a run that trains, or resume it. Returns the seconds until its Job is deleted, or made."""
    site.suspend(name, wanted=suspend)
    took = await until(lambda: site.trains(name) is not suspend)
    # the others go on meanwhile: there are never fewer than all but one
    await until(lambda: site.status(name).get("phase") == ("Suspended" if suspend else "Running"))
    return took


async def measure(site: Site, load: Load, ended: Json, folder: Path) -> Json:
    """All figures."""
    names = await begin(site, load, ended, folder)
    before, began = site.requests(), time.monotonic()
    async with started(site, folder) as operator:
        while not await operator.knows(load.objects):
            if time.monotonic() - began > PATIENCE:
                raise TimeoutError
            await asyncio.sleep(0.25)
        start, start_requests = time.monotonic() - began, site.requests() - before
        seconds = []
        for number in range(load.changes):
            name = names[number % len(names)]
            seconds += [await change(site, name, suspend=suspend) for suspend in (True, False)]
        await asyncio.sleep(5)
        before, used, began = site.requests(), operator.processor_seconds(), time.monotonic()
        await asyncio.sleep(load.idle_seconds)
        lasted = time.monotonic() - began
        return {
            "load": asdict(load), "start_seconds": start, "start_requests": start_requests, "change_seconds": seconds,
            "idle_requests": site.requests() - before, "idle_seconds": lasted,
            "idle_processor_share": (operator.processor_seconds() - used) / lasted, "peak_mib": operator.peak_mib(),
        }  # fmt: skip


async def measured_on(server: str, load: Load, ended: Json, folder: Path) -> Json:
    """All figures on one kind of server."""
    with answering():
        async with SITES[server](folder) as site:
            return {"server": server} | await measure(site, load, ended, folder)


def main() -> None:
    """Measure, keep it, and say it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=SITES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--active", type=int, default=50)
    parser.add_argument("--changes", type=int, default=50, help="each is a suspension and a resumption")
    parser.add_argument("--idle", type=float, default=120, metavar="SECONDS")
    options = parser.parse_args()
    load = Load(options.objects, options.active, options.changes, options.idle)
    ended = World().run_all().object["status"]
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(measured_on(options.server, load, ended, Path(folder)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(measured, indent=2))
    for title in ("start_requests", "idle_requests"):
        counted = Counter(measured[title])
        print(f"{title}: {counted.total()}; " + ", ".join(f"{name} {count}" for name, count in counted.most_common(9)))


if __name__ == "__main__":
    main()
