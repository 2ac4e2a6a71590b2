"""What is read of a conversation while its text is written, and by which part of the text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any


class Watch:
    """What one rendering did: its text in pieces, cut into parts, each with the one answer that was read in it."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.starts = [0]
        """The first piece of each part: what stands between loops, and each iteration."""
        self.readers: list[int | None] = [None]
        self.is_apart = True
        """Whether every answer keeps to its own parts."""
        self.prompt_pieces: list[int] = []
        """Where what only a generation prompt writes begins and ends, in turns."""
        self._in_loop = False

    def enter(self) -> None:
        """An iteration begins."""
        self._part(in_loop=True)

    def leave(self) -> None:
        """A loop is over."""
        self._part(in_loop=False)

    def _part(self, in_loop: bool) -> None:
        self.starts.append(len(self.pieces))
        self.readers.append(None)
        self._in_loop = in_loop

    def mark_prompt(self) -> None:
        """A part that only a generation prompt writes begins or ends."""
        self.prompt_pieces.append(len(self.pieces))

    def read(self, message: int) -> None:
        """Something of a watched message was read."""
        reader = self.readers[-1]
        if not self._in_loop or reader not in (None, message):
            self.is_apart = False
        self.readers[-1] = message

    def wrote(self) -> None:
        """Something that outlives the iteration was changed."""
        self.is_apart = self.is_apart and self.readers[-1] is None


class WatchedMessage(dict[str, Any]):
    """A message that tells when anything but its role is read. Every way of reading a dict is here."""

    __slots__ = ("_place", "_watch")

    def __init__(self, message: Mapping[str, Any], place: int, watch: Watch) -> None:
        super().__init__(message)
        self._place, self._watch = place, watch

    def __getitem__(self, key: str) -> Any:
        if key != "role":
            self._watch.read(self._place)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of a dict."""
        if key != "role":
            self._watch.read(self._place)
        return super().get(key, default)


def watched(name: str) -> Any:
    """The method of dict by that name, which tells first that the message is read."""
    method = getattr(dict, name)

    @functools.wraps(method)
    def read(self: WatchedMessage, *args: Any, **kwargs: Any) -> Any:
        self._watch.read(self._place)
        return method(self, *args, **kwargs)

    return read


for _name in (
    "__contains__", "__eq__", "__ge__", "__gt__", "__iter__", "__le__", "__len__", "__lt__", "__ne__", "__or__",
    "__repr__", "__reversed__", "__ror__", "copy", "items", "keys", "values",
):  # fmt: skip
    setattr(WatchedMessage, _name, watched(_name))
