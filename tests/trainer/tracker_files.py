"""What trackers wrote, read by programs that are not ours: per curve, its steps and values as they were written."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from mlflow.tracking import MlflowClient
from swanlab.converter.wb.wbdatastore import WBDataStoreReader
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
from swanlab.sdk.internal.core_python.store import DataStoreReader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

Curves = dict[str, list[tuple[int, float]]]
"""A step that is twice in a curve is twice in the list."""


def of_tensorboard(folder: Path) -> Curves:
    """With TensorBoard's own reader."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


def of_wandb(folder: Path) -> Curves:
    """W&B's records, in the order in which `wandb sync` takes files.

    W&B itself reads these files in Go alone; SwanLab has a reader in Python, for those who move.
    """
    curves: Curves = defaultdict(list)
    for file in sorted(folder.rglob("*.wandb"), key=lambda path: path.parent.name):
        with WBDataStoreReader() as reader:
            reader.open(file)
            while (data := reader.scan()) is not None:
                record = wandb_internal_pb2.Record.FromString(data)
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                for name, value in items.items():
                    if not name.startswith("_"):
                        curves[name].append((int(items["_step"]), float(json.loads(value))))
    return curves


def of_swanlab(folder: Path) -> Curves:
    """With SwanLab's own reader."""
    curves: Curves = defaultdict(list)
    for file in sorted(folder.rglob("*.swanlab"), key=lambda path: path.parent.name):
        reader = DataStoreReader()
        reader.open(file)
        while (data := reader.scan()) is not None:
            record = Record.FromString(data)
            if record.HasField("scalar"):
                curves[record.scalar.key].append((record.scalar.step, record.scalar.value.number))
        reader.close()
    return curves


def of_mlflow(uri: str, experiment: str) -> Curves:
    """Through MLflow's client, of the only run."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
