"""What Kueue's webhooks do to jobs: a new one with a queue is suspended, and some changes are refused.

An HTTPS server on loopback, which the API server calls before it stores a job.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import control_plane
import job_kinds
from api_server import ApiServer
from control_plane import ControlPlane
from job_kinds import KINDS, JobKind

Json = Any
CONFIGURATIONS = "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
NAME = "kueue-stand-in"


def judge(kind: JobKind, asked: Json) -> Json:
    """The answer to one request for admission."""
    job, before = asked["object"], asked.get("oldObject")
    problem = refusal_of_new(job) if before is None else refusal_of_change(kind, before, job)
    if problem:
        return {"uid": asked["uid"], "allowed": False, "status": {"code": 422, "message": problem}}
    answer = {"uid": asked["uid"], "allowed": True}
    if before is not None or not job_kinds.queue_of(job) or kind.is_suspended(job):
        return answer
    kind.suspend(job, value=True)
    patch = [{"op": "add", "path": "/spec", "value": job["spec"]}]
    return answer | {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}


def refusal_of_new(job: Json) -> str:
    """Why a new job is refused; empty when it is not."""
    least, (most, *_) = job_kinds.min_count(job), job_kinds.counts(job).values()
    if least is not None and not 0 < least < most:
        return f"metadata.annotations[{job_kinds.MIN_PARALLELISM}]: {least}: should be between 0 and {most - 1}"
    return ""


def refusal_of_change(kind: JobKind, before: Json, job: Json) -> str:
    """Why a change of a job is refused; empty when it is not."""
    if kind.is_suspended(before) or not job_kinds.queue_of(before):
        return ""
    if not kind.is_suspended(job) and job_kinds.queue_of(before) != job_kinds.queue_of(job):
        return f"metadata.labels[{job_kinds.QUEUE}]: field is immutable"
    if job_kinds.min_count(before) is not None and job_kinds.counts(before) != job_kinds.counts(job):
        return "spec.parallelism: cannot change when partial admission is enabled and the job is not suspended"
    return ""


class Handler(BaseHTTPRequestHandler):
    """One request of the API server; the path says the kind."""

    def do_POST(self) -> None:
        """Read, judge, answer."""
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = next(one for one in KINDS if one.plural == self.path.strip("/").partition("?")[0])
        told = {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": judge(kind, review["request"])}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(plane: ControlPlane, server: ApiServer) -> Iterator[None]:
    """The webhook, known to the API server until the block is left."""
    pair = plane.authority.issue(NAME, hosts=(control_plane.LOOPBACK,))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    listener = ThreadingHTTPServer((control_plane.LOOPBACK, 0), Handler)
    listener.socket = context.wrap_socket(listener.socket, server_side=True)
    thread = threading.Thread(target=listener.serve_forever, name=NAME)
    thread.start()
    try:
        server.post(CONFIGURATIONS, configuration(plane, listener.server_port)).made()
        yield
        server.delete(f"{CONFIGURATIONS}/{NAME}").made()
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def configuration(plane: ControlPlane, port: int) -> Json:
    """What tells the API server whom to ask about which objects."""
    authority = base64.b64encode(plane.authority.certificate.read_bytes()).decode()
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [
            {
                "name": f"{kind.plural}.kueue.test",
                "clientConfig": {
                    "url": f"https://{control_plane.LOOPBACK}:{port}/{kind.plural}",
                    "caBundle": authority,
                },
                "rules": [
                    {
                        "apiGroups": [kind.group], "apiVersions": [kind.version], "resources": [kind.plural],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ],
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
            }
            for kind in KINDS
        ],
    }  # fmt: skip
