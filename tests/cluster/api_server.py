"""Requests to an API server, and its answers as tests read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from certificates import KeyPair

Json = Any

TIMEOUT_SECONDS = 60
READY_SECONDS = 2
"""Somebody else on its port may take a connection and never answer."""
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    body: Json

    @property
    def is_ok(self) -> bool:
        """Whether it did what was asked."""
        return self.status < requests.codes.bad_request

    @property
    def reason(self) -> str:
        """Why it did not, in one word."""
        return str(self.body.get("reason", ""))

    @property
    def message(self) -> str:
        """Why it did not, for people."""
        return str(self.body.get("message", ""))

    @property
    def errors(self) -> list[str]:
        """Every reason with the field it is about, as the server tells it to a program."""
        if self.is_ok:
            return []
        causes = self.body.get("details", {}).get("causes", ())
        return [f"{cause['field']}: {cause['message']}" for cause in causes] or [self.message]

    def made(self) -> Json:
        """The object. Raises AssertionError with the server's words when there is none."""
        assert self.is_ok, f"{self.status} {self.message}"
        return self.body


class ApiServer:
    """A client that asks for strict field validation, as kubectl does."""

    def __init__(self, url: str, authority: Path, user: KeyPair) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(authority)
        self.session.cert = (str(user.certificate), str(user.key))

    def acting_as(self, user: str) -> ApiServer:
        """A client with the rights of somebody else."""
        other = copy.deepcopy(self)
        other.session.headers["Impersonate-User"] = user
        return other

    def is_ready(self) -> bool:
        """Whether it serves."""
        try:
            return self.session.get(f"{self.url}/readyz", timeout=READY_SECONDS).ok
        except requests.RequestException:
            return False

    def request(
        self, method: str, path: str, body: Json = None, headers: Mapping[str, str] | None = None, **query: str
    ) -> Answer:
        """One request. `query` are parameters such as `dryRun="All"`."""
        strict = {"fieldValidation": "Strict"} if body is not None and method != "DELETE" else {}
        answer = self.session.request(
            method, f"{self.url}/{path}", json=body, params=strict | query, headers=headers, timeout=TIMEOUT_SECONDS
        )
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        # A kind that is not served yet is told in plain text.
        return Answer(answer.status_code, answer.json() if is_json else {"message": answer.text})

    def get(self, path: str) -> Answer:
        """Read."""
        return self.request("GET", path)

    def post(self, path: str, body: Json, **query: str) -> Answer:
        """Create."""
        return self.request("POST", path, body, **query)

    def put(self, path: str, body: Json, **query: str) -> Answer:
        """Replace."""
        return self.request("PUT", path, body, **query)

    def patch(self, path: str, body: Json, **query: str) -> Answer:
        """Merge."""
        return self.request("PATCH", path, body, {"Content-Type": MERGE_PATCH}, **query)

    def apply(self, path: str, body: Json, manager: str, **query: str) -> Answer:
        """Server-side apply, in the name of a manager."""
        return self.request("PATCH", path, body, {"Content-Type": APPLY_PATCH}, fieldManager=manager, **query)

    def delete(self, path: str, policy: str = "Background") -> Answer:
        """Delete; the policy says what becomes of what it owns."""
        return self.request("DELETE", path, {"propagationPolicy": policy})
