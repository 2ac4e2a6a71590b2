"""What a preset says, and the ways in which rows become conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Mapper = Callable[[Row], Row]


@dataclass(frozen=True)
class Published:
    """A table on the hub."""

    hub_id: str
    """`organisation/name`."""
    config: str | None = None
    """Which of its configurations."""
    split: str = "train"
    """Which of its splits."""
    files: str | None = None
    """Names of its data files, where it has no loader configuration of its own."""


@dataclass(frozen=True)
class Preset:
    """A data set: one table, or several one after the other.

    No commit is written down here: it is resolved when it is prepared, and recorded in the status and the manifest.
    """

    name: str
    about: str
    """One line for people."""
    licence: str
    """As its card says it."""
    to_conversation: Mapper
    """From a published row to one that `conversation.read_row` takes."""
    tables: tuple[Published, ...]


def as_it_is(row: Row) -> Row:
    """Rows that are conversations already."""
    return row


def columns(messages: str, identity: str | None = None) -> Mapper:
    """Rows with a list of messages under another name."""

    def mapper(row: Row) -> Row:
        return identified({"messages": row[messages]}, row, identity)

    return mapper


def pair(question: str, answer: str, more: str | None = None, identity: str | None = None) -> Mapper:
    """Rows with one question and one answer; `more` is a column with what the question is about, often empty."""

    def mapper(row: Row) -> Row:
        asked = row[question]
        if more and row.get(more):
            asked = f"{asked}\n\n{row[more]}"
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": row[answer]}]
        return identified({"messages": said}, row, identity)

    return mapper


def identified(conversation: dict[str, Any], row: Row, identity: str | None) -> Row:
    """With the row's own id, where its data set has one: the held-out split hangs on it."""
    if identity is not None and row.get(identity) is not None:
        return {**conversation, "id": str(row[identity])}
    return conversation
