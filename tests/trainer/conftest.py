"""A workspace for the tests of training and its export, and a training in it that nobody disturbs.

One for each file: a name of a run need not be another one than those in other files, which may run in the same worker.
"""

from __future__ import annotations

import pytest
import torch
from attempts import UNDISTURBED
from workshops import Workshop, build_workshop

from draftyard_api.progress import StageResult


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in one order, here and in the programs that tests start; and tiny tensors are slower in many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def workshop_without_held_out(tmp_path_factory) -> Workshop:
    return build_workshop(tmp_path_factory.mktemp("workshop"), eval_fraction=0.0)


@pytest.fixture(scope="module")
def undisturbed(workshop) -> StageResult:
    """A whole training of one process, under the name `undisturbed`."""
    return workshop.train(workshop.task(UNDISTURBED))
