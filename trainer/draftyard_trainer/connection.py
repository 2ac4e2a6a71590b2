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
"""Of an answer: more is no answer."""
URL_FIELD = "evaluate.engine.url"
SHOWN_CHARACTERS = 200


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A server that sends us elsewhere would get the key for elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer is an error like any other."""


def send(address: str, body: bytes | None, key: str | None, timeout: float) -> bytes:
    """What a server answers, to a POST where there is a body; `key` goes to that host and to nobody else.

    Raises OSError, HTTPError among them, and HTTPException.
    """
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    # Rules of the contract take http and https only.
    request = urllib.request.Request(address, data=body, headers=headers)  # noqa: S310
    with urllib.request.build_opener(NoRedirects).open(request, timeout=timeout) as answer:
        content: bytes = answer.read(MAX_BYTES)
        return content


def usable(key: str | None, field_path: str) -> str | None:
    """The key as a header holds it; Secrets made from files end in a line feed. Raises Failure(BAD_TASK)."""
    key = (key or "").strip()
    # The library would refuse it too, with a message that shows it.
    if not (key.isascii() and key.isprintable()):
        why = f"the key in {ENV_ENGINE_KEY} has characters that no header can hold; accepted: printable ASCII"
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"{field_path}: {why}")
    return key or None


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
        address = f"{self.url.rstrip('/')}{path}"
        try:
            return send(address, body, self.key, TIMEOUT_SECONDS)
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
        message = f"{URL_FIELD}: {address} does not exist; accepted: a server of vLLM or SGLang"
        return MissingError(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
    if status >= 500 or status == 429:
        return unavailable(f"{address} answers {status}")
    if 300 <= status < 400:
        return rejected(f"{address} leads elsewhere ({status}); accepted: the address of the server itself")
    return rejected(f"{address} answers {status}: {' '.join(said.split())[:SHOWN_CHARACTERS]}")


def rejected(what: str) -> Failure:
    """A server that will answer alike at the next attempt."""
    return Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"{URL_FIELD}: {what}")


def unavailable(what: str) -> Failure:
    """A server that may answer at the next attempt."""
    message = f"{URL_FIELD}: {what}; start it with the exported draft, and let this pod reach it"
    return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)
