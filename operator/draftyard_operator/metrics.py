"""What the operator tells Prometheus: itself, and one set of series per DraftTraining that goes with the object.

Loss and acceptance are the trainer's own metrics; here is what only the operator knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from draftyard_api import __version__
from draftyard_api.names import Stage
from draftyard_api.status import Phase
from draftyard_operator.work_queue import Key

PREFIX = "draftyard"
STAGE_SECONDS = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)
PASS_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


@dataclass(frozen=True)
class RunLabels:
    """What is said about a run as long as its object exists."""

    mode: str
    backend: str
    """Empty before it is resolved."""
    phase: Phase


class Metrics:
    """All series of one operator, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs: dict[Key, RunLabels] = {}
        self._make_own()
        self._make_of_runs()

    def _make_own(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.reconcile_total = counter("reconcile_total", "Passes by result: ok or error.", "result")
        self.reconcile_duration = histogram("reconcile_duration_seconds", "Time of a pass.", PASS_SECONDS)
        self.workqueue_depth = gauge("workqueue_depth", "Objects that wait to be looked at.")
        self.workqueue_retries = counter("workqueue_retries_total", "Passes that failed and are tried again.")
        self.api_requests = counter("api_requests_total", "Requests to the API server.", "verb", "resource", "code")
        self.api_duration = histogram("api_request_duration_seconds", "Time of a request.", PASS_SECONDS)
        self.last_resync = gauge("last_resync_timestamp_seconds", "When all objects were listed last.")
        self.build_info = gauge("build_info", "Always 1.", "version", "kopf")
        self.build_info.labels(__version__, version("kopf")).set(1)

    def _make_of_runs(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        run = ("namespace", "name")
        self.info = gauge("drafttraining_info", "Always 1.", *run, "mode", "backend")
        self.phase = gauge("drafttraining_phase", "1 for the phase that a run is in, else 0.", *run, "phase")
        self.attempts = counter("drafttraining_attempts_total", "Ended attempts.", "namespace", "stage", "reason")
        self.finished = counter("drafttraining_finished_total", "Ended runs.", "result", "reason")
        self.stage_duration = histogram("stage_duration_seconds", "Time of a finished stage.", STAGE_SECONDS, "stage")
        self.gpu_seconds = counter("gpu_seconds_total", "GPUs held, times seconds.", "namespace", "stage")

    # -- The operator -----------------------------------------------------------------------------------------------

    def request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """A request was answered; code 0 when no answer came."""
        self.api_requests.labels(verb, resource, str(code)).inc()
        self.api_duration.observe(seconds)

    def reconciled(self, result: str, seconds: float) -> None:
        """A pass has ended: `ok` or `error`."""
        self.reconcile_total.labels(result).inc()
        self.reconcile_duration.observe(seconds)

    # -- Runs -------------------------------------------------------------------------------------------------------

    def see(self, namespace: str, name: str, labels: RunLabels) -> None:
        """Say what a run is like now; what was said before is taken back."""
        key = Key(namespace, name)
        known = self.runs.get(key)
        if known == labels:
            return
        if known is not None and (known.mode, known.backend) != (labels.mode, labels.backend):
            self.info.remove(namespace, name, known.mode, known.backend)
        self.info.labels(namespace, name, labels.mode, labels.backend).set(1)
        for phase in Phase:
            self.phase.labels(namespace, name, phase.value).set(phase is labels.phase)
        self.runs[key] = labels

    def forget(self, namespace: str, name: str) -> None:
        """The object is gone: so are its series."""
        known = self.runs.pop(Key(namespace, name), None)
        if known is None:
            return
        self.info.remove(namespace, name, known.mode, known.backend)
        for phase in Phase:
            self.phase.remove(namespace, name, phase.value)

    def keep_only(self, existing: set[Key]) -> None:
        """Forget runs that are not there any more: a watch may miss that an object was deleted."""
        for key in set(self.runs) - existing:
            self.forget(*key)

    def attempt_ended(self, namespace: str, stage: Stage, reason: str) -> None:
        """An attempt went into the history."""
        self.attempts.labels(namespace, stage.value, reason).inc()

    def stage_finished(self, stage: Stage, seconds: float) -> None:
        """A stage is done and verified."""
        self.stage_duration.labels(stage.value).observe(seconds)

    def run_finished(self, result: str, reason: str) -> None:
        """A run is over: `Complete` or `Failed`."""
        self.finished.labels(result, reason).inc()

    def gpus_held(self, namespace: str, stage: Stage, seconds: float) -> None:
        """GPUs times seconds of an attempt."""
        self.gpu_seconds.labels(namespace, stage.value).inc(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    # -- Making -----------------------------------------------------------------------------------------------------

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", about, labels, buckets=buckets, registry=self.registry)


class Health(Protocol):
    """Who knows whether the operator is ready."""

    @property
    def is_ready(self) -> bool:
        """The first LIST is done."""
        ...


def application(metrics: Metrics, health: Health) -> web.Application:
    """`/metrics` for Prometheus, `/readyz` for the kubelet."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def ready(_: web.Request) -> web.Response:
        if health.is_ready:
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the first list of DraftTrainings is not done\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", show), web.get("/readyz", ready)])
    return app


async def serve(metrics: Metrics, health: Health, host: str, port: int) -> web.AppRunner:
    """Serve until `cleanup` of what is returned. Port 0 takes a free one. Raises OSError when the port is in use."""
    runner = web.AppRunner(application(metrics, health), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
