"""The processes of one training: who this one is, and the few things that all of them do together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_PEER_SECONDS
from draftyard_api.reasons import Reason

PEER_SECONDS = 1200
"""Finite: who waits for a process that hangs must end, or the whole job hangs unseen. Long enough for an export."""


@dataclass(frozen=True)
class World:
    """Rank and size. One process needs no group, and no communication."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add gradients up over all processes, in place, as one flat message."""
        if self.size == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with self._exchanging():
            dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, vector: Tensor) -> Tensor:
        """Add a vector up over all processes."""
        if self.size == 1:
            return vector
        total = vector.to(self.device).clone()
        with self._exchanging():
            dist.all_reduce(total)
        return total.to(vector.device)

    def any(self, *flags: bool) -> list[bool]:
        """Which of the flags any process has set: all stop at the same step, or none does."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags], device=self.device)
        with self._exchanging():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def told(self, value: int) -> int:
        """What the leading process gives, whatever the others do."""
        if self.size == 1:
            return value
        word = torch.tensor([value], device=self.device)
        with self._exchanging():
            dist.broadcast(word, src=0)
        return int(word.item())

    def told_failure(self, failure: Failure | None) -> Failure:
        """The failure of the leading process, word for word, so that all end alike, also on other machines."""
        if self.size == 1:
            assert failure is not None
            return failure
        said = json.dumps([failure.code, failure.reason, failure.message]).encode() if failure else b""
        text = torch.zeros(self.told(len(said)), dtype=torch.uint8, device=self.device)
        if self.leads:
            text.copy_(torch.frombuffer(bytearray(said), dtype=torch.uint8))
        with self._exchanging():
            dist.broadcast(text, src=0)
        code, reason, message = json.loads(bytes(text.tolist()))
        return Failure(ExitCode(code), Reason(reason), message)

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            with self._exchanging():
                dist.barrier()

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """Say what a broken exchange means. Raises Failure(ERROR): another attempt goes on at the last checkpoint."""
        try:
            yield
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0]
            message = (
                f"process {self.rank} of {self.size} lost another one, which ended or does not answer for "
                f"{peer_seconds()} s ({why}); its own log says more"
            )
            raise Failure(ExitCode.ERROR, Reason.DISRUPTED, message) from error


def peer_seconds() -> int:
    """Seconds that a process waits for another one. Raises Failure(BAD_TASK)."""
    given = os.environ.get(ENV_PEER_SECONDS, str(PEER_SECONDS))
    if not given.isdecimal() or int(given) == 0:
        message = f"{ENV_PEER_SECONDS}: given {given}; accepted: whole seconds, from 1"
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
    return int(given)


def leads() -> bool:
    """Whether this process will lead, before they have met."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join() -> Iterator[World]:
    """The world that torchrun describes in the environment; alone without it."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(rank, size, device)
        return
    timeout = timedelta(seconds=peer_seconds())
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
