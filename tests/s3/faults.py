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

    def inject(self, what: str, method: str = "", path: str = "", times: int = 1) -> None:
        """Do this to the requests that come."""
        self.faults.append(Fault(what, method, path, times))

    def take(self, method: str, path: str) -> str | None:
        """What to do to a request."""
        with self.lock:
            self.seen.append(f"{method} {path}")
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path in path:
                    fault.times -= 1
                    return fault.what
        return None


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    upstream = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def forward(self) -> None:
            fault = proxy.take(self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault in STATUS:
                self.refuse(fault)
                return
            if fault == "hang":
                time.sleep(3)
                self.close_connection = True
                return
            connection = http.client.HTTPConnection(upstream, timeout=30)
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
            self.answer(answer, content, fault)

        def refuse(self, code: str) -> None:
            document = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self.send_response_only(STATUS[code])
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(document)

        def answer(self, answer: http.client.HTTPResponse, content: bytes, fault: str | None) -> None:
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            if "content-length" not in {name.lower() for name, _ in answer.getheaders()}:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if fault == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif fault == "slow":
                for start in range(0, len(content), max(1, len(content) // 10)):
                    self.wfile.write(content[start : start + max(1, len(content) // 10)])
                    self.wfile.flush()
                    time.sleep(0.02)
            else:
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
