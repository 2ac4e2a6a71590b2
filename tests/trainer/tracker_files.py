"""What trackers wrote, read by what they bring themselves: per curve, the values by step."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Curves = dict[str, list[tuple[int, float]]]
"""Of each curve, steps and values in the order in which they were written: a step that is twice in it is seen."""
BLOCK = 32768
FULL, FIRST, LAST = 1, 2, 4


def of_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


def of_swanlab(folder: Path) -> Curves:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    curves: Curves = defaultdict(list)
    for file in sorted(folder.rglob("*.swanlab")):
        reader = DataStoreReader()
        reader.open(file)
        while (data := reader.scan()) is not None:
            record = Record.FromString(data)
            print(record)
        reader.close()
    return curves


def of_wandb(folder: Path) -> Curves:
    """Rows of the history, sessions in the order in which `wandb sync` takes them."""
    import json

    curves: Curves = defaultdict(list)
    for file in sorted(folder.rglob("*.wandb"), key=lambda path: path.parent.name):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for name, value in row.items():
                    if not name.startswith("_"):
                        curves[name].append((row["_step"], float(value)))
    return curves


def wandb_records(file: Path) -> Iterator[Any]:
    """The library reads these files in Go alone: blocks of LevelDB's log, with records of its own protocol."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def of_mlflow(uri: str, experiment: str) -> Curves:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    number = client.get_experiment_by_name(experiment).experiment_id
    (run,) = client.search_runs([number])
    names = run.data.metrics
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }
