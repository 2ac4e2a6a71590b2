"""A training whose workspace is a bucket that goes away, and writers that die between two requests of a publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from faults import Proxy
from test_checkpoint import IDENTITY, RUN, Training, build_manifest, take_fence
from test_export import NAME, export
from test_s3_store import PulledPlugError, dying
from workshops import Workshop, build_workshop

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage, export_path
from draftyard_api.reasons import Reason
from draftyard_api.schema import S3Access
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint
from draftyard_trainer.checkpoint import Found
from draftyard_trainer.export import open_export
from draftyard_trainer.fence import Fence
from draftyard_trainer.hidden_states.codec import PackedSample
from draftyard_trainer.hidden_states.source import OfflineSource, Reading
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage import bucket as buckets
from draftyard_trainer.storage import s3
from draftyard_trainer.storage.bucket import WAITS_SECONDS, Bucket
from draftyard_trainer.storage.s3 import S3Store
from draftyard_trainer.train import train

FASTER = 40
"""Waits between tries, and what the store is away for, are so many times shorter than they are."""
A_MINUTE = 60 / FASTER
WORKSPACE = "team/workspace"
Reads = Sequence[Future[PackedSample]]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    torch.set_num_threads(1)
    return build_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def model(workshop: Workshop) -> bytes:
    """The draft of a training in a folder that nobody disturbs."""
    workshop.train(workshop.task("tiny", mode="Offline"))
    return workshop.model("tiny").read_bytes()


class Outage(Reporter):
    """The store goes away while one step is reported, when the checkpoint before it has been written.

    It is away for some time, which begins when `steps` more steps were taken without it, from `reads` that had ended.
    """

    def __init__(
        self, store: S3Store, proxy: Proxy, step: int, seconds: float, steps: int = 0, reads: Reads = ()
    ) -> None:
        super().__init__(Stage.TRAIN)
        self.store = store
        self.proxy = proxy
        self.step = step
        self.seconds = seconds
        self.steps = steps
        self.reads = reads
        self.steps_meanwhile = 0

    def update(self, **fields: int | str | None) -> None:
        super().update(**fields)
        if "step" in fields and self.proxy.gone.is_set():
            self.steps_meanwhile += 1
            if self.steps_meanwhile == self.steps:
                self.proxy.leave(self.seconds)
        if fields.get("step") == self.step and not self.proxy.refused:
            deadline = time.monotonic() + 60
            while not checkpoint.steps_of(self.store, "tiny"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if self.steps:
                assert not wait(self.reads, timeout=60).not_done
                self.proxy.gone.set()
            else:
                self.proxy.leave(self.seconds)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Every record that is read ahead."""
    found: list[Future[PackedSample]] = []
    begin = OfflineSource._begin

    def remember(source: OfflineSource, doc_id: int, threads: ThreadPoolExecutor) -> Reading:
        reading = begin(source, doc_id, threads)
        found.append(reading.packed)
        return reading

    monkeypatch.setattr(OfflineSource, "_begin", remember)
    return found


@pytest.fixture
def task(
    workshop: Workshop, store: S3Store, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrainTask]:
    """A training from stored states whose workspace is the bucket behind the proxy."""
    monkeypatch.setattr(buckets, "ATTEMPTS", 1)
    monkeypatch.setattr(buckets, "WAITS_SECONDS", tuple(wait / FASTER for wait in WAITS_SECONDS))
    monkeypatch.setattr(s3, "default_downloads", lambda: tmp_path / "downloads")
    workshop.upload(store)
    access = S3Access(endpoint=proxy.endpoint)
    yield workshop.task("tiny", mode="Offline").model_copy(
        update={"workspace": f"s3://{store.bucket.name}/{WORKSPACE}", "workspace_s3": access}
    )
    proxy.gone.clear()


@pytest.mark.parametrize(
    ("step", "steps"), [(6, 2), (18, 0)], ids=["two steps before a checkpoint", "where an epoch ends"]
)
def test_a_minute_without_the_store_costs_time_and_nothing_else(
    task: TrainTask, store: S3Store, proxy: Proxy, model: bytes, reads: Reads, *, step: int, steps: int
) -> None:
    """What was read ahead is trained on meanwhile: the store comes back when the steps to the checkpoint are taken."""
    outage = Outage(store, proxy, step, A_MINUTE, steps, reads)
    result = train(task, outage)
    assert result.exit_code == ExitCode.OK
    assert proxy.refused > 2
    assert store.read(f"{export_path('tiny')}/model.safetensors") == model
    assert outage.steps_meanwhile >= steps


def test_a_store_that_stays_away_ends_the_training_and_the_next_one_ends_alike(
    task: TrainTask, store: S3Store, proxy: Proxy, model: bytes
) -> None:
    with pytest.raises(Failure, match="out of reach") as caught:
        train(task, Outage(store, proxy, 6, seconds=1000))
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
    assert checkpoint.steps_of(store, "tiny") == [4]
    proxy.gone.clear()
    train(task, Reporter(Stage.TRAIN))
    assert store.read(f"{export_path('tiny')}/model.safetensors") == model


# -- Where a writer dies --------------------------------------------------------------------------

MAX_REQUESTS = 60


def find_outcomes(
    bucket: Bucket, store: S3Store, answered: bool, publish: Callable[[S3Store, int], None], read: Callable[[], str]
) -> list[str]:
    """What a reader finds when the writer of version n dies before each request in turn; the next attempt ends it."""
    seen = []
    for survives in range(MAX_REQUESTS):
        writer = S3Store(dying(bucket, survives, answered), store.prefix, store.downloads)
        with suppress(PulledPlugError):
            publish(writer, survives)
            return seen
        seen.append(read())
        publish(store, survives)
        assert read() == "new"
    raise AssertionError(f"more than {MAX_REQUESTS} requests")


@pytest.mark.parametrize("answered", [False, True])
def test_a_checkpoint_is_the_old_one_or_the_new_one(
    bucket: Bucket, store: S3Store, tmp_path: Path, answered: bool
) -> None:
    """Wherever its writer dies, with the removal of old ones behind it."""
    training = Training(tmp_path / "training")
    fence = take_fence(store)
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def publish(writer: S3Store, number: int) -> None:
        step = number + 1
        training.train(max(0, step - training.step))
        weights[step] = {name: tensor.clone() for name, tensor in training.draft.state_dict().items()}
        snapshot = checkpoint.take_snapshot(training.draft, training.optimizer, build_manifest(step))
        checkpoint.write(writer, Fence(writer, fence.name, fence.token), RUN, snapshot)
        checkpoint.prune(writer, RUN, step, 2, [])

    def read() -> str:
        found: Found | None = checkpoint.newest(store, RUN, IDENTITY)
        assert found is not None
        step = found.manifest.step
        assert [name for name, tensor in weights[step].items() if not torch.equal(found.weights[name], tensor)] == []
        return "new" if step == training.step else "old"

    publish(store, 0)
    seen = find_outcomes(bucket, store, answered, lambda writer, number: publish(writer, number + 1), read)
    assert len(seen) > 5
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, key=["old", "new"].index)
    assert checkpoint.folders_of(store, RUN) == [training.step - 1, training.step]


@pytest.mark.parametrize("answered", [False, True])
def test_an_export_is_the_old_one_the_new_one_or_none(bucket: Bucket, store: S3Store, answered: bool) -> None:
    """S3 has no rename: where one replaces another there is none for a moment, and never a mixture."""

    versions = [0]
    export(store, seed=0, fingerprint="f0")

    def publish(writer: S3Store, number: int) -> None:
        versions.append(number + 1)
        export(writer, seed=number + 1, fingerprint=f"f{number + 1}")

    def read() -> str:
        found = []
        for version in set(versions):
            with suppress(Failure):
                open_export(store, RUN, f"f{version}")
                found.append(version)
        assert len(found) <= 1
        return "none" if not found else "new" if found == [versions[-1]] else "old"

    seen = find_outcomes(bucket, store, answered, publish, read)
    assert set(seen) <= {"old", "none", "new"}
    assert seen == sorted(seen, key=["old", "none", "new"].index)
    assert {"none", "new" if answered else "old"} <= set(seen)
    assert len(store.list(NAME)) == 5
