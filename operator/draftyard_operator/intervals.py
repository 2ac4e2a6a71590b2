"""Sets of shards as Kubernetes writes them: `0-9,12`."""

from __future__ import annotations

from collections.abc import Iterable


def parse(text: str) -> tuple[int, ...]:
    """The numbers of `0-9,12`, in order."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def count(text: str) -> int:
    """How many numbers there are, without making them."""
    total = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def shorten(text: str, most: int) -> str:
    """A set in at most so many characters: `0,2,4,… (5000 in all)` where it is longer. For people, not for `parse`."""
    if len(text) <= most:
        return text
    tail = f"… ({count(text)} in all)"
    begin, comma, _ = text[: most - len(tail)].rpartition(",")
    return f"{begin}{comma}{tail}"


def render(numbers: Iterable[int]) -> str:
    """Numbers as intervals."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
