"""One JSON line per action: what was done, to which run, for how long. Never bodies, never values of Secrets."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

FIELDS = (
    "namespace", "name", "uid", "generation", "stage", "attempt", "action", "kind", "child", "duration_ms", "error",
)  # fmt: skip
"""What a line may say beside its time, level and message, in this order."""
ATTRIBUTES = {"name": "run"}
"""Where a record has a field that it needs itself: the name of a record is its logger's."""
MAX_TEXT = 1024

LOG = logging.getLogger("draftyard.operator")


def short(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of its text, since some print whole answers."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")[:MAX_TEXT]


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """`ts`, `level`, `msg`, then those of FIELDS that the record has."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "msg": record.getMessage().partition("\n")[0][:MAX_TEXT],
        }
        given = {name: getattr(record, ATTRIBUTES.get(name, name), None) for name in FIELDS}
        line |= {name: told(value) for name, value in given.items() if value is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line.setdefault("error", short(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=False)


def told(value: Any) -> str | int:
    """A value as a line says it: text or a number."""
    if isinstance(value, BaseException):
        return short(value)
    return value if isinstance(value, int) else str(value)[:MAX_TEXT]


def configure(stream: TextIO | None = None) -> None:
    """Send every log line of the process through here. kopf speaks from INFO up: its debug lines hold whole objects."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # One line per handled event would say what the pass says better.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
