"""A target over several processes: process 0 decides what is computed, the others compute along.

Before process 0 runs the target, for calibration, probes and captures alike, it sends an order with the inputs; the
others wait for orders, and see nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

WAIT = timedelta(hours=1)
"""How long a process waits for the first one, which may be writing a part meanwhile."""


class Order(IntEnum):
    """What process 0 tells the others to do."""

    STOP = 0
    LOAD = 1
    BACKBONE = 2
    MODEL = 3


@dataclass(frozen=True)
class Ranks:
    """The processes of one copy of the target. With one process nothing is sent."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  a value

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def order(self, order: Order, ids_BT: Tensor | None = None) -> None:
        """Tell the others what to do next; `ids_BT` is on the device of the processes."""
        if self.size == 1:
            return
        shape = (0, 0) if ids_BT is None else tuple(ids_BT.shape)
        dist.broadcast(torch.tensor([order, *shape], device=self.device), src=0)
        if ids_BT is not None:
            dist.broadcast(ids_BT.contiguous(), src=0)

    def follow(self, load: Callable[[], tuple[Any, Any]]) -> None:
        """Compute along until process 0 stops; `load` gives the backbone and the whole model."""
        backbone = model = None
        while True:
            said = torch.empty(3, dtype=torch.int64, device=self.device)
            dist.broadcast(said, src=0)
            order, rows, length = said.tolist()
            if order == Order.STOP:
                return
            if order == Order.LOAD:
                backbone, model = load()
                continue
            ids_BT = torch.empty(rows, length, dtype=torch.int64, device=self.device)
            dist.broadcast(ids_BT, src=0)
            module = backbone if order == Order.BACKBONE else model
            assert module is not None
            with torch.no_grad():
                module(input_ids=ids_BT, use_cache=False)


ALONE = Ranks()


@contextmanager
def join(size: int) -> Iterator[Ranks]:
    """Join the other processes of this target, if there are any; those that follow are let go at the end."""
    if size == 1:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
    try:
        yield ranks
    finally:
        # also after a failure: the others must not wait for one that has ended
        if ranks.leads:
            ranks.order(Order.STOP)
        dist.destroy_process_group()


def whole(weight: Tensor) -> Tensor:
    """A weight whose parts lie with several processes, as one tensor; all of them call this together."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
