"""Peak memory of processes that store states of many short documents, and read them.

    python bench/states_memory.py prepare|generate|read FOLDER DOCUMENTS

is one step, in a process of its own; it prints its peak in bytes. The target is tiny, so that the number of documents
is what grows; parts and what is read ahead are so small that a thousand documents fill them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from draftyard_api.names import Stage
from draftyard_api.spec import Target
from draftyard_api.task import GenerateTask, StoredStatesRef
from draftyard_trainer import inventory, testing
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.generate import generate_in
from draftyard_trainer.hidden_states import source
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.testing import PREPARED, prepare_documents, tiny_document
from draftyard_trainer.order import RowPlan
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target import capture

LENGTHS = range(20, 37)
PART_BYTES, AHEAD_BYTES = 2**20, 2**20
BATCH_TOKENS = 2048
"""Several documents at a time, as on a GPU: one by one they would take an hour."""
ROW_TOKENS = 512


def documents(count: int) -> Iterator[Document]:
    """Short documents, one after another."""
    return (tiny_document(number, LENGTHS[number % len(LENGTHS)]) for number in range(count))


def generate(store: LocalStore, target: Path) -> None:
    """The whole stage, one shard."""
    capture.CPU_BATCH_TOKENS = BATCH_TOKENS
    task = GenerateTask(
        run="memory", uid="u", workspace=store.uri, target=Target(model=f"file://{target}"), prepared=PREPARED,
        aux_layers=(2, 4, 5), codec="balanced", num_shards=1, shard=0,
    )  # fmt: skip
    generate_in(store, task, Reporter(Stage.GENERATE), PART_BYTES)


def read(store: LocalStore) -> None:
    """An epoch of rows in their order, read ahead."""
    source.PREFETCH_BYTES = AHEAD_BYTES
    (cache,) = inventory.caches(store)
    dataset = PreparedDataset.open(store, PREPARED)
    stored = open_stored(store, StoredStatesRef(key=cache.key, shards=(0,), num_shards=1), dataset)
    ids = stored.available(dataset.train_ids)
    rows = RowPlan(ids, dataset.lengths[ids], ROW_TOKENS, seed=0).rows(0)
    seen = sum(len(samples) for samples in stored.stream(rows))
    assert seen == len(ids)


def peak_bytes() -> int:
    """Of this program alone: what `getrusage` says includes the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def peaks(folder: Path, sizes: Sequence[int]) -> dict[str, dict[int, int]]:
    """Peaks of `generate` and of `read`, bytes, by number of documents."""
    found: dict[str, dict[int, int]] = {"generate": {}, "read": {}}
    for count in sizes:
        for step in ("prepare", *found):
            command = [sys.executable, __file__, step, str(folder), str(count)]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            if step in found:
                found[step][count] = int(said.split()[-1])
        shutil.rmtree(folder)
    return found


def main(step: str, folder: Path, count: int) -> None:
    """One step of one size."""
    store = LocalStore(folder / "workspace")
    if step == "prepare":
        testing.write_target(folder / "target")
        prepare_documents(store, documents(count))
    elif step == "generate":
        generate(store, folder / "target")
    else:
        read(store)
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3]))
