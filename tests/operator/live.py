"""A real operator, with kopf and its client, on a fake cluster in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time

from world import CONFIG, NAMESPACE, well

from draftyard_api.names import LABEL_STAGE, Stage
from draftyard_operator.budget import Budget
from draftyard_operator.command import Process, Setup
from draftyard_operator.run import read_status
from draftyard_operator.shell import Rhythm
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.kinds import JOB, PYTORCH_JOB
from draftyard_operator.testing.ports import free_port

QUICK = Rhythm(resync_seconds=1.0, full_seconds=5.0)
SLOW = Rhythm(resync_seconds=300.0)
UNLIMITED = 1e9
PROGRAM = "import sys; from draftyard_operator.command import operator; sys.exit(operator(sys.argv[1:]))"
PATIENCE = 60.0


def ends_well(after=0.05):
    """A script of the kubelet: every pod does its work."""

    def script(pod):
        stage = Stage(pod["metadata"]["labels"][LABEL_STAGE])
        return dataclasses.replace(well(stage, pod), after=after)

    return script


class Scene:
    """A fake cluster, and operators that come and go."""

    def __init__(self, fake: FakeCluster, folder) -> None:
        self.fake = fake
        self.kubeconfig = fake.kubeconfig(folder)
        self.processes: list[Process] = []
        self.tasks: dict[Process, asyncio.Task[None]] = {}

    @contextlib.asynccontextmanager
    async def operator(self, rhythm=QUICK, namespaces=(), config=CONFIG, budget=None, ends_by_itself=False):
        """An operator while the block runs; it stops as at a signal, or `ends_by_itself` before."""
        process = Process(
            Setup(
                config, self.kubeconfig, namespaces, "127.0.0.1", free_port(), free_port(), rhythm,
                budget or Budget(UNLIMITED, UNLIMITED),
            )
        )  # fmt: skip
        self.processes.append(process)
        task = self.tasks[process] = asyncio.create_task(process.run())
        try:
            await self.until(lambda: process.shell.is_ready or task.done())
            if task.done():
                task.result()
            yield process
        finally:
            process.stop.set()
            with contextlib.suppress(*([Exception] if ends_by_itself else [])):
                await asyncio.wait_for(task, 30)

    @contextlib.asynccontextmanager
    async def other_process(self):
        """An operator in a process of its own: at its end kopf cancels every task of its loop."""
        file = self.kubeconfig.parent / "config.yaml"
        file.write_text(json.dumps({"trainerImage": CONFIG.trainer_image, "resyncSeconds": 5}))
        given = ["--config", file, "--kubeconfig", self.kubeconfig, "--metrics-port", free_port()]
        given += ["--health-port", free_port()]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, *map(str, given), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    async def until(self, holds, seconds=PATIENCE, told=lambda: ""):
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"not within {seconds} s: {told()}"
            await asyncio.sleep(0.02)

    async def until_over(self, name):
        """Wait for the end of a run. Returns its status."""
        await self.until(lambda: self.status(name).completion_time, told=lambda: self.status(name))
        return self.status(name)

    def status(self, name):
        return read_status(self.fake.run(NAMESPACE, name).get("status") or {})

    def children(self):
        """Names of Jobs and PyTorchJobs."""
        served = [kind for kind in (JOB, PYTORCH_JOB) if kind in self.fake.api.kinds()]
        return sorted(one["metadata"]["name"] for kind in served for one in self.fake.store.every(kind, NAMESPACE))

    def calls(self):
        """Group, resource and verb of everything that was asked."""
        return self.fake.server.record.granted


def play(story, folder, **options):
    """Run a story with a scene."""

    async def played():
        async with FakeCluster(**options) as fake:
            fake.add_namespace(NAMESPACE)
            fake.kubelet.script = ends_well()
            await asyncio.wait_for(story(Scene(fake, folder)), 120)

    asyncio.run(played())
