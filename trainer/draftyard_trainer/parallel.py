"""The processes of one training: who this one is, and the few things that all of them do together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=20)
"""Finite: a process that waits for a dead one must end, or the whole job hangs unseen."""


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
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, vector: Tensor) -> Tensor:
        """Add a vector up over all processes."""
        if self.size == 1:
            return vector
        total = vector.to(self.device).clone()
        dist.all_reduce(total)
        return total.to(vector.device)

    def any(self, flag: bool) -> bool:
        """Whether any process says so: all stop at the same step, or none does."""
        if self.size == 1:
            return flag
        asked = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    def told(self, value: int) -> int:
        """What the leading process gives, whatever the others do."""
        if self.size == 1:
            return value
        word = torch.tensor([value], device=self.device)
        dist.broadcast(word, src=0)
        return int(word.item())

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
