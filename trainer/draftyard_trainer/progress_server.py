"""What a pod answers while its stage works: `GET /progress` as JSON, `GET /metrics` for Prometheus.

It runs in the first process of the pod and reads the file that the working rank replaces, so a restart of ranks never
closes the port, and a rank that hangs keeps no one waiting. Nothing that it says is secret; it accepts nothing.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from draftyard_api.names import ENV_PROGRESS_PORT, PROGRESS_PATH
from draftyard_trainer.reporting import read_progress

METRICS_PATH = "/metrics"
ANSWER_SECONDS = 5
"""Until a client that asks nothing is let go."""
GAUGES = {
    "done": "Finished work of the present activity, in its unit.",
    "total": "All work of the present activity, where it is known.",
    "step": "Optimizer step.",
    "total_steps": "Optimizer steps of the whole run.",
    "epoch": "Position in epochs.",
    "loss": "Loss of the last optimizer step.",
    "skipped_steps": "Optimizer steps without an update, since the gradient was not finite.",
    "loss_spikes": "Optimizer steps whose loss stood far above that of the steps before.",
    "resumed_from_step": "Checkpoint that this process went on from.",
    "checkpoint_step": "Newest checkpoint.",
    "best_step": "Checkpoint with the highest acceptance length.",
    "on_policy": "Share of the tokens that the target itself would have said (train).",
    "acceptance": "Last acceptance length: simulated in train, measured in evaluate.",
    "tokens_per_second": "Rate since the stage started.",
    "estimated_remaining_seconds": "Time left at that rate.",
    "heartbeat": "Unix time of the last reading.",
}
"""Fields of a reading that are numbers, or texts of numbers."""


@contextmanager
def serving(state: Path) -> Iterator[None]:
    """Answer while the stage works, on the port that the pod was given; outside a pod there is none.

    A port that cannot be had costs the readings, not the training.
    """
    port = os.environ.get(ENV_PROGRESS_PORT)
    server = None if port is None else bind(state, int(port))
    if server is None:
        yield
        return
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def bind(state: Path, port: int) -> Server | None:
    """A server on all addresses; None, and a line, where the port cannot be had."""
    try:
        return Server(state, port)
    except OSError as error:
        print(f"progress is not served on port {port}: {error.strerror}", file=sys.stderr)
        return None


class Server(ThreadingHTTPServer):
    """One thread per question; none of them outlives the process."""

    daemon_threads = True

    def __init__(self, state: Path, port: int) -> None:
        self.state = state
        self.registry = CollectorRegistry()
        self.registry.register(Readings(state))
        if socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        super().__init__(("", port), Handler)

    def server_bind(self) -> None:
        """On IPv4 and IPv6, where both are there."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Handler(BaseHTTPRequestHandler):
    """Two paths, GET alone."""

    server: Server
    timeout = ANSWER_SECONDS

    def do_GET(self) -> None:
        """Answer, or say that there is nothing yet."""
        if self.path == METRICS_PATH:
            self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        elif self.path != PROGRESS_PATH:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", f"accepted: {PROGRESS_PATH}, {METRICS_PATH}\n".encode())
        elif (reading := read_progress(self.server.state)) is None:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"no reading yet\n")
        else:
            self._answer(HTTPStatus.OK, "application/json", reading.model_dump_json(by_alias=True).encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Nothing: the log is the stage's."""


class Readings(Collector):
    """The last reading as gauges; what it does not say is left out."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge for each number."""
        reading = read_progress(self._state)
        if reading is None:
            return
        for field, meaning in GAUGES.items():
            value = getattr(reading, field)
            if value is not None:
                gauge = GaugeMetricFamily(f"draftyard_stage_{field}", meaning, labels=["stage"])
                gauge.add_metric([reading.stage], float(value))
                yield gauge
