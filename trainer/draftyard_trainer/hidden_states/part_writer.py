"""Parts are committed in the background: compressing, hashing, writing and fsync do not stop the target."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

from draftyard_trainer.hidden_states.codec import StateCodec
from draftyard_trainer.hidden_states.shard import CapturedPart, Part, Shard, StoredPart


class PartWriter(AbstractContextManager["PartWriter"]):
    """Commits one part while the next is captured, in order. Failures come out of `put` and `wait`."""

    def __init__(self, shard: Shard, codec: StateCodec, parts: dict[int, StoredPart]) -> None:
        self._shard = shard
        self._codec = codec
        self._parts = parts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._pending: tuple[int, Future[Part]] | None = None

    def put(self, number: int, captured: CapturedPart) -> None:
        """Commit a part, once the one before is committed: two are in memory at most."""
        self.wait()
        self._pending = number, self._thread.submit(self._shard.commit, number, captured, self._codec)

    def wait(self) -> None:
        """Until every part is committed. Raises what went wrong."""
        if self._pending is None:
            return
        (number, part), self._pending = self._pending, None
        self._parts[number] = StoredPart.of(part.result())

    def __exit__(self, *_: object) -> None:
        """A part that is whole is committed even when the next one ends the attempt."""
        self._thread.shutdown()
