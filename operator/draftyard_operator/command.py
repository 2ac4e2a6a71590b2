"""`draftyard operator`: the operator's process, from its arguments to a running kopf."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from draftyard_api.exit_codes import ExitCode
from draftyard_operator import backends, census, handlers, logs, metrics, rest
from draftyard_operator import config as configs
from draftyard_operator.budget import Budget
from draftyard_operator.census import Census, Surveys
from draftyard_operator.cluster import KubernetesCluster
from draftyard_operator.config import OperatorConfig
from draftyard_operator.kinds import RUN
from draftyard_operator.logs import LOG
from draftyard_operator.metrics import Metrics
from draftyard_operator.reconcile import Operator, reconcile
from draftyard_operator.refusals import ApiError
from draftyard_operator.shell import Rhythm, Shell
from draftyard_operator.work_queue import Key

Json = Any
CONFIG = Path("/etc/draftyard/config.yaml")
"""Where the chart mounts it."""
ANYWHERE = "0.0.0.0"  # noqa: S104  probes and Prometheus come from outside the pod
INSTANCE = "POD_NAME"
"""Environment variable with the name of the operator's pod."""


@dataclass(frozen=True)
class Setup:
    """What one operator is started with."""

    config: OperatorConfig
    kubeconfig: Path | None = None
    """None: the ServiceAccount of the pod."""
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    host: str = ANYWHERE
    metrics_port: int = 9090
    health_port: int = 8081
    rhythm: Rhythm | None = None
    """None: as the config says."""
    budget: Budget | None = None


def operator(arguments: Sequence[str]) -> int:
    """Run the operator: in a cluster with the rights of its pod, or anywhere with a kubeconfig."""
    parser = argparse.ArgumentParser(prog="draftyard operator", description=operator.__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help=f"its settings ({CONFIG})")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="outside a cluster")
    parser.add_argument("--namespace", nargs="+", default=(), metavar="NS", help="watch these, in place of all")
    parser.add_argument("--metrics-port", type=int, default=9090, metavar="PORT", help="/metrics and /readyz (9090)")
    parser.add_argument("--health-port", type=int, default=8081, metavar="PORT", help="/healthz (8081)")
    options = parser.parse_args(arguments)
    # kopf asks for the user's name, and the user of a pod is a number without one
    os.environ["USER"] = os.environ.get("USER") or parser.prog.partition(" ")[0]
    try:
        config = configs.load(options.config)
        if options.kubeconfig is not None and not options.kubeconfig.is_file():
            raise ValueError(f"--kubeconfig: given {options.kubeconfig}, which is no file")
    except ValueError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_TASK
    logs.configure()
    setup = Setup(
        config,
        options.kubeconfig,
        tuple(options.namespace) or config.watch_namespaces,
        metrics_port=options.metrics_port,
        health_port=options.health_port,
    )
    try:
        asyncio.run(Process(setup).run())
    except ConfigException as error:
        print(f"{' '.join(str(error).split())}; outside a cluster, --kubeconfig FILE is needed", file=sys.stderr)
        return ExitCode.BAD_TASK
    except Exception as error:
        LOG.critical("the operator ends", extra={"action": "exit", "error": error})
        return ExitCode.ERROR
    return ExitCode.OK


class Process:
    """Everything of one operator, wired."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.metrics = Metrics()
        self.shell = Shell(
            self.look,
            self.list_runs,
            self.at_rest,
            self.metrics,
            setup.rhythm or Rhythm(setup.config.resync_seconds, 10.0 * setup.config.resync_seconds),
        )
        self.surveys = Surveys(self.survey)
        self.stop = asyncio.Event()
        """Ends it, as a signal does."""
        self.cluster: KubernetesCluster | None = None
        self._operator: Operator | None = None
        self._server: web.AppRunner | None = None

    async def run(self) -> None:
        """Run until a signal or `stop`. Raises what ends it otherwise; ConfigException without a way to log in."""
        setup = self.setup
        hooks = handlers.Hooks(self.begin, self.end, uses_kubeconfig=setup.kubeconfig is not None)
        client = await log_in(setup.kubeconfig)
        self.cluster = KubernetesCluster(client, self.metrics, setup.budget)
        instance = os.environ.get(INSTANCE) or "draftyard-operator"
        self._operator = Operator(self.cluster, setup.config, self.metrics, instance)
        try:
            children = [row.kind for row in backends.allowed(setup.config).values()]
            registry = handlers.registry(self.shell, hooks, setup.namespaces, children)
            liveness = f"http://{setup.host}:{setup.health_port}/healthz"
            await handlers.run(registry, setup.namespaces, liveness, self.stop)
        finally:
            await self.cluster.close()

    async def begin(self) -> None:
        """What runs beside the watches."""
        self._server = await metrics.serve(self.metrics, self.shell, self.setup.host, self.setup.metrics_port)

    async def end(self) -> None:
        """Nothing is served any more."""
        if self._server is not None:
            await self._server.cleanup()

    async def look(self, key: Key) -> float | None:
        """One pass over one object. Raises ApiError."""
        assert self._operator is not None
        queue = self.shell.queue
        # a person who has changed a spec does not wait for what the others need
        shared = None if queue.is_urgent(key) else await self.surveys.since(queue.since(key), queue.depth)
        return await reconcile(self._operator, key.namespace, key.name, datetime.now(UTC), shared)

    async def survey(self) -> Census:
        """What exists of all runs. Raises ApiError."""
        assert self.cluster is not None
        return await census.take(self.cluster, self.setup.config, self.setup.namespaces)

    async def at_rest(self) -> Callable[[Json], bool]:
        """Whether an ended run may be left alone. Raises ApiError."""
        assert self._operator is not None
        try:
            found = await self.surveys.anew()
        except ApiError as error:
            if not error.is_final:
                raise
            # a right is missing: every run must come to a pass, which says which one
            LOG.warning("no census", extra={"action": "list", "error": error})
            return lambda _run: False
        return rest.at_rest(self._operator, found, datetime.now(UTC))

    async def list_runs(self) -> AsyncIterator[Json]:
        """Every DraftTraining of the watched namespaces. Raises ApiError."""
        assert self.cluster is not None
        for namespace in self.setup.namespaces or ("",):
            async for run in self.cluster.each(RUN, namespace, {}):
                yield run


async def log_in(kubeconfig: Path | None) -> ApiClient:
    """A client of the cluster that a kubeconfig names, or of the one around. Raises ConfigException."""
    configuration = Configuration()
    if kubeconfig is None:
        load_incluster_config(client_configuration=configuration)
    else:
        # kopf reads it from there
        os.environ["KUBECONFIG"] = str(kubeconfig)
        await load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    return ApiClient(configuration)
