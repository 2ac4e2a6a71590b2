"""A proxy in front of an S3 server that does to chosen requests what networks and services do."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

STATUS = {
    "SlowDown": 503, "InternalError": 500, "ExpiredToken": 403, "AccessDenied": 403, "InvalidAccessKeyId": 403,
    "RequestTimeTooSkewed": 403,
}  # fmt: skip
"""Answers with an error document of this code."""


@dataclass
class Fault:
    """What happens to the next `times` requests of `method` whose path holds `path`.

    `what` is a code of STATUS, or cut (half the body, then the end), slow (the body in small pieces), hang (no answer),
    lost (done, but the answer never comes).
    """

    what: str
    method: str = ""
    path: str = ""
    times: int = 1


@dataclass
class Proxy:
    """A proxy that is up."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Method and path of every request."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    gone: threading.Event = field(default_factory=threading.Event)
    """While it is set every connection breaks off, as when the store, or the way to it, is away."""
    refused: int = 0
    """Requests that found it gone."""

    def leave(self, seconds: float) -> None:
        """Be gone for so long, from now on."""
        self.gone.set()
        timer = threading.Timer(seconds, self.gone.clear)
        timer.daemon = True
        timer.start()

    def inject(self, what: str, method: str = "", path: str = "", times: int = 1) -> None:
        """Do this to the requests that come."""
        self.faults.append(Fault(what, method, path, times))

    def take(self, method: str, path: str) -> str | None:
        """What to do to a request."""
        with self.lock:
            self.seen.append(f"{method} {path}")
            if self.gone.is_set():
                self.refused += 1
                return "gone"
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path in path:
                    fault.times -= 1
                    return fault.what
        return None


class Handler(BaseHTTPRequestHandler):
    """Forwards a request as it is, or does what the proxy says to it."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: str

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def forward(self) -> None:
        fault = self.proxy.take(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in STATUS:
            self.refuse(fault)
        elif fault == "gone":
            self.close_connection = True
        elif fault == "hang":
            time.sleep(3)
            self.close_connection = True
        else:
            self.pass_on(body, fault)

    def pass_on(self, body: bytes, fault: str | None) -> None:
        connection = http.client.HTTPConnection(self.upstream, timeout=30)
        # the signature covers the host that the client sees
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "expect":
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lost":
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        headers = {name.lower(): value for name, value in answer.getheaders()}
        for name, value in {"content-length": str(len(content)), **headers}.items():
            if name not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.write(content, fault)

    def refuse(self, code: str) -> None:
        document = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(STATUS[code])
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(document)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(document)

    def write(self, content: bytes, fault: str | None) -> None:
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        size = max(1, len(content) // 10) if fault == "slow" else len(content)
        for start in range(0, len(content), max(size, 1)):
            self.wfile.write(content[start : start + size])
            self.wfile.flush()
            time.sleep(0.02 if fault == "slow" else 0)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    handler = type("Forwarding", (Handler,), {"upstream": urlsplit(endpoint).netloc})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy = handler.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
