"""Times as the status stores them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def render(moment: datetime) -> str:
    """As text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str) -> datetime:
    """From text. Raises ValueError."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def seconds_since(text: str, now: datetime) -> float:
    """Seconds between a stored time and now; never negative, since clocks jump."""
    return max((now - parse(text)).total_seconds(), 0.0)


def duration(seconds: int) -> str:
    """`5h58m`, `12m`, `40s`: two units at most."""
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        amount, seconds = divmod(seconds, size)
        if amount or parts:
            parts.append(f"{amount}{name}" if amount else "")
        if len(parts) == 2:
            break
    return "".join(parts) or "0s"
