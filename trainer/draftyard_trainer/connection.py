"""A server that is asked over HTTP: every way in which it can refuse is one clear error, and no key is ever told."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_ENGINE_KEY
from draftyard_api.reasons import Reason

TIMEOUT_SECONDS = 900.0
"""Of one request: a long answer of a large model."""
MAX_BYTES = 64 << 20
SHOWN_CHARACTERS = 200


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A server that sends us elsewhere would get the key for elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        """Never follow."""
        return


@dataclass(frozen=True)
class Connection:
    """One server; `key` goes into a header and nowhere else."""

    url: str
    key: str | None = field(default=None, repr=False)

    def get(self, path: str, *others: str) -> dict[str, Any]:
        """A JSON object; of several paths the first that the server has. Raises Failure."""
        for other in others:
            try:
                return as_object(self._send(path, None), f"{self.url}{path}")
            except MissingError:
                path = other
        return as_object(self._send(path, None), f"{self.url}{path}")

    def text(self, path: str) -> str:
        """A text. Raises Failure."""
        return self._send(path, None).decode("utf-8", "replace")

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers another one. Raises Failure."""
        return as_object(self._send(path, json.dumps(body).encode()), f"{self.url}{path}")

    def _send(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        address = f"{self.url.rstrip('/')}{path}"
        # The rule of the contract takes http and https only.
        request = urllib.request.Request(address, data=body, headers=headers)  # noqa: S310
        try:
            with urllib.request.build_opener(NoRedirects).open(request, timeout=TIMEOUT_SECONDS) as answer:
                content: bytes = answer.read(MAX_BYTES)
                return content
        except urllib.error.HTTPError as error:
            with error:
                raise refused(address, error.code, error.read(MAX_BYTES).decode("utf-8", "replace")) from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error or type(error).__name__
            raise unavailable(f"{address} does not answer ({why})") from None


class MissingError(Failure):
    """A path that the server does not have."""


def as_object(content: bytes, address: str) -> dict[str, Any]:
    """A JSON object. Raises Failure(BAD_TASK)."""
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise rejected(f"{address} does not answer with a JSON object; accepted: a server of vLLM or SGLang")
    return found


def refused(address: str, status: int, said: str) -> Failure:
    """What an HTTP status means to the user."""
    if status in (401, 403):
        message = (
            f"evaluate.engine: {address} refuses access ({status}); set evaluate.engine.secretRef to a Secret with the "
            f"server's key under {ENV_ENGINE_KEY}"
        )
        return Failure(ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED, message)
    if status == 404:
        message = f"evaluate.engine.url: {address} does not exist; accepted: a server of vLLM or SGLang"
        return MissingError(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
    if status >= 500 or status == 429:
        return unavailable(f"{address} answers {status}")
    if 300 <= status < 400:
        return rejected(f"{address} leads elsewhere ({status}); accepted: the address of the server itself")
    return rejected(f"{address} answers {status}: {' '.join(said.split())[:SHOWN_CHARACTERS]}")


def rejected(what: str) -> Failure:
    """A server that will answer alike at the next attempt."""
    return Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"evaluate.engine.url: {what}")


def unavailable(what: str) -> Failure:
    """A server that may answer at the next attempt."""
    message = f"evaluate.engine.url: {what}; start it with the exported draft, and let this pod reach it"
    return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)
