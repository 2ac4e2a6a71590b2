"""One optimizer step on one, two and four processes; reading ahead; scoring without a trace.

Run as a program, this file forks groups of processes that take the steps of `SCENES` and leave what came of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_order import scalar_mix
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Train
from draftyard_operator.testing.ports import free_port
from draftyard_trainer import parallel
from draftyard_trainer.data.document import Document, Ids
from draftyard_trainer.draft.testing import TINY, tiny_draft, tiny_embedding
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.source import one_ahead
from draftyard_trainer.loop import HELD_OUT_DOCUMENTS, Consumed, StepReport, Trainer
from draftyard_trainer.loss import Teacher
from draftyard_trainer.on_path import PathRule
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.order import Step
from draftyard_trainer.parallel import World
from draftyard_trainer.rows import build_row, gate_counts
from draftyard_trainer.target.head import TargetHead

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
FIRST_HELD_OUT = 40
NUM_DOCUMENTS = 60
CONFIG = Train(ttt_steps=3, learning_rate=0.01, grad_clip=1e6, row_tokens=64, tokens_per_batch=256)
# What AdamW keeps of the first gradient.
FIRST_SHARE = 0.1
SIZES = (2, 4)


@dataclass
class Conversations:
    """Documents of 8 to 23 random tokens, two turns each; what training asks a prepared data set for."""

    count: int = NUM_DOCUMENTS
    first_held_out: int = FIRST_HELD_OUT

    @property
    def lengths(self) -> Ids:
        return np.array([8 + doc_id * 7 % 16 for doc_id in range(self.count)])

    @property
    def held_out_ids(self) -> Ids:
        return np.arange(self.first_held_out, self.count)

    def document(self, doc_id: int) -> Document:
        length = int(self.lengths[doc_id])
        tokens = np.random.default_rng(doc_id).integers(0, TINY.vocab_size, length)
        return Document(doc_id, tokens, np.array([[2, 2], [5, length - 6]]))


def build_head() -> TargetHead:
    lm_head = torch.randn(TINY.vocab_size, TINY.target_hidden_size, generator=torch.Generator().manual_seed(5))
    return TargetHead(lm_head, tiny_embedding(), torch.ones(TINY.target_hidden_size), {})


@dataclass
class RandomStates:
    """A source whose states depend on the document alone; it counts what it is asked for."""

    dataset: Conversations
    head: TargetHead = field(default_factory=build_head)
    target_identity: str = "c" * 40
    asked: list[tuple[int, ...]] = field(default_factory=list)
    readers: set[int] = field(default_factory=set)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def available(self, doc_ids: Ids) -> Ids:
        return doc_ids

    def samples(self, doc_ids: Sequence[int]) -> list[Sample]:
        self.asked.append(tuple(doc_ids))
        self.readers.add(threading.get_ident())
        return [self._sample(doc_id) for doc_id in doc_ids]

    def stream(self, rows: Sequence[Sequence[int]]) -> Generator[list[Sample], None, None]:
        return one_ahead(self.thread, self.samples, rows)

    def _sample(self, doc_id: int) -> Sample:
        document = self.dataset.document(doc_id)
        generator = torch.Generator().manual_seed(1000 + doc_id)
        aux = torch.randn(document.num_tokens, TINY.num_aux * TINY.target_hidden_size, generator=generator)
        last = torch.randn(len(document.label_rows()), TINY.target_hidden_size, generator=generator)
        labels = self.head.tok_lse(last)
        return Sample(document, aux, last, labels.tok, labels.lse)


def build_trainer(world: World = ALONE, config: Train = CONFIG, dataset: Conversations | None = None) -> Trainer:
    dataset = dataset or Conversations()
    draft = tiny_draft()
    source = RandomStates(dataset)
    optimizer = Optimizer(draft.trained_parameters(), config, total_steps=50)
    teacher = Teacher.of(source.head, draft.target_ids())
    return Trainer(draft, optimizer, source, dataset, teacher, world, config)  # type: ignore[arg-type]


def build_step(*rows: tuple[int, ...], first_row: int = 0, index: int = 0) -> Step:
    return Step(index=index, epoch=0, first_row=first_row, rows=rows, num_rows=1000)


FOUR_ROWS = build_step((1, 2), (3,), (4, 5, 6), (7, 8))
SCENES: dict[str, list[Step]] = {
    "four rows": [FOUR_ROWS],
    "a row for one process only": [build_step((9, 10), first_row=5)],
    "three rows, from the middle of the processes": [build_step((1,), (2, 3), (4,), first_row=6)],
    "three steps, one after the other": [
        FOUR_ROWS, build_step((9,), (10, 11), first_row=4, index=1), build_step((12,), first_row=6, index=2),
    ],
}  # fmt: skip


FAILURE = Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, "workspace: no space left on the d\u00e9vice")


def said(failure: Failure) -> tuple[int, str, str]:
    return int(failure.code), str(failure.reason), failure.message


def gradients_of(trainer: Trainer, step: Step) -> dict[str, Tensor]:
    """The summed gradient of a first step, from what the optimizer remembers of it."""
    trainer.step(step)
    names = [name for name, _ in trainer.draft.named_parameters()]
    moments = trainer.optimizer.moments(names)
    return {name: moments[f"exp_avg.{name}"] / FIRST_SHARE for name in names}


def play(world: World) -> dict[str, Any]:
    """Every scene on a fresh trainer, then a score: what one process sees."""
    seen: dict[str, Any] = {}
    for name, steps in SCENES.items():
        trainer = build_trainer(world)
        reports = [trainer.step(step) for step in steps]
        names = [name for name, _ in trainer.draft.named_parameters()]
        seen[name] = {
            "moments": trainer.optimizer.moments(names),
            "weights": dict(trainer.draft.state_dict()),
            "sums": [report.sums.flat() for report in reports],
            "tokens": [report.tokens for report in reports],
            "trained": [report.trained for report in reports],
            "norms": [report.update.grad_norm for report in reports],
        }
    many = build_trainer(world, dataset=Conversations(count=160))
    seen["score"] = many.score(7, draft_tokens=2, row_tokens=256)
    seen["any"] = [world.any(False), world.any(True), world.any(False, world.rank == world.size - 1, False)]
    seen["failure"] = said(world.told_failure(FAILURE if world.leads else None))
    seen["sum"] = world.sum(torch.tensor([1.0, float(world.rank)])).tolist()
    world.barrier()
    return seen


def fork(size: int, rank: int, port: int, folder: Path) -> int:
    """A child that plays as one process of a group, and leaves what it saw. Returns its id."""
    child = os.fork()
    if child:
        return child
    group = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in group.items()}, GLOO_SOCKET_IFNAME="lo")
    with parallel.join() as world:
        torch.save(play(world), folder / f"{size}-{rank}.pt")
    os._exit(0)


def play_in_groups(folder: Path, sizes: Sequence[int]) -> None:
    """Groups of processes that share one import of torch, which takes longer than all they do."""
    torch.set_num_threads(1)
    for size in sizes:
        port = free_port()
        children = [fork(size, rank, port, folder) for rank in range(size)]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * size


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """What each process of groups of 1, 2 and 4 saw."""
    folder = tmp_path_factory.mktemp("groups")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A program of its own: a test process has threads, and must not be forked.
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True, timeout=200)
    found = {
        size: [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)] for size in SIZES
    }
    return {1: [play(ALONE)], **found}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], rtol: float = 1e-6) -> None:
    """Equal tensor by tensor, relative to the largest number of each."""
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        difference = (found[name].double() - tensor.double()).abs().max()
        assert difference <= rtol * tensor.double().abs().max(), name


# -- Processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4], ids=["2 processes", "4 processes"])
@pytest.mark.parametrize("scene", SCENES)
def test_any_number_of_processes_makes_the_same_step(seen, scene, size):
    (alone,) = seen[1]
    # Behind an update of AdamW, which divides by the gradient's size, differences of rounding are larger.
    rtol = 1e-6 if len(SCENES[scene]) == 1 else 2e-5
    for process in seen[size]:
        assert_close(process[scene]["moments"], alone[scene]["moments"], rtol)
        assert_close(process[scene]["weights"], alone[scene]["weights"], 2e-5)
        assert process[scene]["tokens"] == alone[scene]["tokens"]
        assert process[scene]["trained"] == alone[scene]["trained"]
        assert process[scene]["norms"] == pytest.approx(alone[scene]["norms"], rel=rtol)
        for found, wanted in zip(process[scene]["sums"], alone[scene]["sums"], strict=True):
            torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("size", [2, 4], ids=["2 processes", "4 processes"])
@pytest.mark.parametrize("scene", SCENES)
def test_all_processes_hold_the_same_bits(seen, scene, size):
    """Only one of them saves: the others must not drift away."""
    first, *others = (process[scene] for process in seen[size])
    for other in others:
        for part in ("moments", "weights"):
            assert [name for name, tensor in first[part].items() if not torch.equal(tensor, other[part][name])] == []


@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_processes_agree(seen, size):
    (alone,) = seen[1]
    for process in seen[size]:
        assert process["any"] == [[False], [True], [False, True, False]]
        assert process["failure"] == said(FAILURE)
        assert process["sum"] == [size, size * (size - 1) / 2]
        # Sums of whole numbers: equal, not only close.
        assert process["score"] == alone["score"]
    assert alone["score"].tau_sim > 1.0


def test_alone_there_is_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with parallel.join() as world:
        assert (world.rank, world.size, world.leads) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        assert world.any(True, False) == [True, False]
        assert world.told_failure(FAILURE) is FAILURE


# -- One step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 2, 3, 4, 5, 6, 7, 8)],
        [(1,), (2,), (3,), (4,), (5,), (6,), (7,), (8,)],
        [(8, 1), (6, 3), (5, 4), (2, 7)],
    ],
    ids=["one micro-batch", "eight micro-batches", "other neighbours"],
)
def test_the_gradient_does_not_depend_on_micro_batches(rows):
    assert_close(gradients_of(build_trainer(), build_step(*rows)), gradients_of(build_trainer(), FOUR_ROWS), rtol=2e-6)


def test_the_path_of_a_row_does_not_depend_on_its_company():
    """Which rows leave the unroll is drawn by document and position: other neighbours, the same gradient."""
    step = build_step((8, 1), (6, 3), (5, 4), (2, 7))
    assert_close(gradients_of(on_path(), step), gradients_of(on_path(), FOUR_ROWS), rtol=2e-6)
    (asked,) = {tuple(on_path().step(each).sums.asked.tolist()) for each in (step, FOUR_ROWS)}
    gated = build_trainer().count_supervised(FOUR_ROWS).tolist()
    assert asked[0] == gated[0]
    assert 0 < asked[2] < asked[1] < gated[1]


def on_path() -> Trainer:
    """A draft that knows nothing: it is the floor that lets rows go on."""
    trainer = build_trainer(config=CONFIG.model_copy(update={"unroll": "onPath"}))
    return replace(trainer, path=PathRule(floor=0.4))


def test_another_epoch_draws_another_path():
    trainer = on_path()
    samples = trainer.source.samples((1, 2))
    row = build_row(samples, trainer.config.ttt_steps)
    first, second = (trainer.goes_on(replace(FOUR_ROWS, epoch=epoch), samples, row) for epoch in (0, 1))
    assert first is not None
    assert second is not None
    assert not torch.equal(first.draws_TN, second.draws_TN)


def test_normalisers_count_the_pairs_of_the_whole_step():
    trainer = build_trainer()
    wanted = sum(gate_counts(trainer.dataset.document(doc_id), 3, "runtime") for doc_id in range(1, 9))
    assert isinstance(wanted, Tensor)
    assert trainer.count_supervised(FOUR_ROWS).tolist() == wanted.tolist()
    report = build_trainer().step(FOUR_ROWS)
    assert report.sums.gated.tolist() == wanted.tolist()
    assert report.tokens == sum(trainer.dataset.lengths[1:9])


def test_a_step_counts_the_documents_that_it_was_handed():
    """Not those that were planned: one that is lost, doubled or another one gives another number."""
    report = build_trainer().step(FOUR_ROWS)
    wanted = [scalar_mix(doc_id) >> 32 for doc_id in range(1, 9)]
    assert report.trained == Consumed(documents=8, hash=sum(wanted))
    for read in ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 7], [1, 2, 3, 4, 5, 6, 7, 9]):
        assert Consumed.of(read) != report.trained
    trainer = build_trainer()
    swapped = trainer.source.stream([(1, 2), (3,), (4, 5, 6), (7, 9)])
    assert trainer.step(FOUR_ROWS, swapped).trained == Consumed.of([1, 2, 3, 4, 5, 6, 7, 9])


def test_the_alignment_reaches_masks_and_normalisers():
    trainer = build_trainer(config=CONFIG.model_copy(update={"loss_mask_alignment": "specforge"}))
    counted = trainer.count_supervised(FOUR_ROWS).tolist()
    assert counted == trainer.step(FOUR_ROWS).sums.gated.tolist()
    assert counted != build_trainer().count_supervised(FOUR_ROWS).tolist()


def test_steps_learn():
    trainer = build_trainer()
    losses = [trainer.step(build_step((1, 2), (3, 4), index=index)).sums.total_loss() for index in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_broken_state_is_skipped_and_said():
    trainer = build_trainer()
    with torch.no_grad():
        trainer.draft.fc.weight[0, 0] = float("inf")
    before = {name: parameter.clone() for name, parameter in trainer.draft.named_parameters()}
    report: StepReport = trainer.step(FOUR_ROWS)
    assert report.update.skipped
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.draft.named_parameters())


# -- Reading ahead ----------------------------------------------------------------------------

ROWS = [(1, 2), (3,), (4, 5), (6,), (7,)]


def test_rows_come_in_order_and_one_is_read_ahead():
    trainer = build_trainer()
    source = trainer.source
    assert isinstance(source, RandomStates)
    taken = 0
    for samples in trainer.source.stream(ROWS):
        assert tuple(sample.document.doc_id for sample in samples) == ROWS[taken]
        taken += 1
        wanted = ROWS[: taken + 1]
        deadline = time.monotonic() + 5
        while len(source.asked) < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.001)
        # A reader that ran further ahead would show here.
        time.sleep(0.01)
        assert source.asked == wanted
    assert taken == len(ROWS)
    assert threading.get_ident() not in source.readers


@pytest.mark.parametrize("rank", [0, 1])
def test_rows_of_the_next_step_are_read_during_this_one(rank):
    """With as many processes as rows per step, a reader that stops at the end of a step is never ahead."""
    trainer = build_trainer(World(rank, 2, torch.device("cpu")))
    steps = [build_step((1,), (2,)), build_step((3,), first_row=2), build_step((4,), (5,), first_row=3)]
    wanted = [row for step in steps for row in step.share(rank, 2)]
    assert isinstance(trainer.source, RandomStates)
    read = trainer.read_ahead(steps)
    for taken, row in enumerate(wanted, start=1):
        assert tuple(sample.document.doc_id for sample in next(read)) == row
        trainer.source.thread.submit(int).result()
        assert trainer.source.asked == wanted[: taken + 1]
    assert list(read) == []


def test_steps_that_read_ahead_are_the_same_steps():
    steps = SCENES["three steps, one after the other"]
    plain, ahead = build_trainer(), build_trainer()
    read = ahead.read_ahead(steps)
    for step in steps:
        assert torch.equal(plain.step(step).sums.flat(), ahead.step(step, read).sums.flat())
    left, right = plain.draft.state_dict(), ahead.draft.state_dict()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_a_score_between_steps_asks_the_source_in_the_same_thread():
    trainer = build_trainer()
    read = trainer.read_ahead([FOUR_ROWS])
    next(read)
    trainer.score(1, draft_tokens=3, row_tokens=64)
    assert tuple(sample.document.doc_id for sample in next(read)) == (3,)
    assert isinstance(trainer.source, RandomStates)
    assert len(trainer.source.readers) == 1


def test_without_rows_nothing_is_read():
    trainer = build_trainer()
    assert list(trainer.source.stream([])) == []
    assert isinstance(trainer.source, RandomStates)
    assert trainer.source.asked == []


def test_an_error_of_the_source_reaches_the_step():
    trainer = build_trainer()
    with pytest.raises(IndexError):
        trainer.step(build_step((1,), (NUM_DOCUMENTS + 1,)))
    fetched = build_trainer().source.stream([(1,), (NUM_DOCUMENTS + 1,), (2,)])
    assert [sample.document.doc_id for sample in next(fetched)] == [1]
    with pytest.raises(IndexError):
        next(fetched)


# -- Scoring ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_training", [True, False], ids=["in training mode", "in evaluation mode"])
def test_scoring_leaves_no_trace(is_training):
    trainer = build_trainer()
    trainer.step(FOUR_ROWS)
    trainer.draft.train(is_training)
    for parameter in trainer.draft.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    names = [name for name, _ in trainer.draft.named_parameters()]
    before = {name: tensor.clone() for name, tensor in trainer.draft.state_dict().items()}
    moments = {name: tensor.clone() for name, tensor in trainer.optimizer.moments(names).items()}
    trainer.score(1, draft_tokens=3, row_tokens=64)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.draft.state_dict().items())
    assert all(torch.equal(tensor, moments[name]) for name, tensor in trainer.optimizer.moments(names).items())
    assert all(bool((parameter.grad == 0.5).all()) for parameter in trainer.draft.parameters())  # type: ignore[union-attr]
    assert all(parameter.requires_grad for parameter in trainer.draft.parameters())
    assert {module.training for module in trainer.draft.modules()} == {is_training}
    assert torch.is_grad_enabled()


def test_a_score_is_about_held_out_documents_only():
    trainer = build_trainer()
    score = trainer.score(11, draft_tokens=2, row_tokens=64)
    assert isinstance(trainer.source, RandomStates)
    read = sorted(doc_id for row in trainer.source.asked for doc_id in row)
    assert read == list(range(FIRST_HELD_OUT, NUM_DOCUMENTS))
    assert (score.step, score.documents, len(score.per_position)) == (11, NUM_DOCUMENTS - FIRST_HELD_OUT, 2)
    assert score.tau_sim == pytest.approx(1 + sum(score.per_position))


def test_a_score_does_not_depend_on_the_rows_and_is_repeatable():
    trainer = build_trainer()
    scores = [trainer.score(1, 3, row_tokens) for row_tokens in (64, 64, 23, 4096)]
    assert scores[0] == scores[1]
    assert all(score.tau_sim == pytest.approx(scores[0].tau_sim) for score in scores)


def test_a_better_draft_has_a_better_score():
    """Trained on the held-out documents themselves: a check of the score, not of the draft."""
    trainer = build_trainer()
    before = trainer.score(0, 3, 64)
    held_out = tuple(range(FIRST_HELD_OUT, NUM_DOCUMENTS))
    for index in range(40):
        trainer.step(build_step(held_out, index=index))
    after = trainer.score(40, 3, 64)
    assert after.tau_sim > before.tau_sim + 0.2
    assert all(late >= early for early, late in zip(before.per_position, after.per_position, strict=True))


def test_a_score_reads_at_most_so_many_documents():
    trainer = build_trainer(dataset=Conversations(count=HELD_OUT_DOCUMENTS + 30, first_held_out=10))
    score = trainer.score(1, 3, row_tokens=2048)
    assert isinstance(trainer.source, RandomStates)
    assert score.documents == HELD_OUT_DOCUMENTS == sum(len(row) for row in trainer.source.asked)


if __name__ == "__main__":
    play_in_groups(Path(sys.argv[1]), SIZES)
