"""A workspace in which everything before `train` is done, for tests of what follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from draftyard_api.names import MANIFEST, METRICS, PUBLISHED, Stage, checkpoint_path, export_path, train_path
from draftyard_api.progress import Prepared, StageResult
from draftyard_api.spec import Checkpoint, Data, DataSource, Draft, Export, FileSource, Target, Train
from draftyard_api.task import GenerateTask, PrepareTask, StoredStatesRef, TrainTask
from draftyard_trainer import checkpoint, testing
from draftyard_trainer.generate import generate
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.store import Store
from draftyard_trainer.train import train

TRAIN = Train(
    row_tokens=128, tokens_per_batch=256, ttt_steps=3, epochs=2, learning_rate=0.003,
    checkpoint=Checkpoint(every_steps=4, keep_last=3),
)  # fmt: skip


class StoppingReporter(Reporter):
    """Asks for a stop, as SIGTERM does, while one step is reported."""

    def __init__(self, step: int) -> None:
        super().__init__(Stage.TRAIN)
        self.step = step

    def update(self, **fields: int | str | None) -> None:
        super().update(**fields)
        self.stop_requested = self.stop_requested or fields.get("step") == self.step


@dataclass(frozen=True)
class Workshop:
    """Prepared documents and stored states of a tiny target; runs of different names do not disturb one another."""

    store: LocalStore
    target: Target
    prepared: Prepared
    states: StoredStatesRef

    def task(self, run: str, mode: str = "Online", publishes: bool = True, **changes: Any) -> TrainTask:
        """A training of all documents; `changes` are fields of `train`."""
        return TrainTask(
            run=run, uid=f"uid-{run}", workspace=self.store.uri, mode=mode, target=self.target,
            draft=Draft(vocab_size=256), aux_layers=self.prepared.aux_layers, prepared=self.prepared.prepared,
            hidden_states=self.states if mode == "Offline" else None, train=TRAIN.model_copy(update=changes),
            publishes=publishes, export=Export(), fingerprint=self.prepared.fingerprint,
        )  # fmt: skip

    def train(self, task: TrainTask, reporter: Reporter | None = None) -> StageResult:
        return train(task, reporter or Reporter(Stage.TRAIN))

    def stopping_at(self, step: int) -> Reporter:
        return StoppingReporter(step)

    def upload(self, store: Store) -> None:
        """Copy what was prepared, and the states, to another workspace."""
        for name in (*self.store.list("prepare"), *self.store.list("hidden-states")):
            store.publish(name, self.store.read(name))

    def path(self, name: str) -> Path:
        return self.store.root / name

    def metrics(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path(f"{train_path(run)}/{METRICS}").read_text().splitlines()]

    def model(self, run: str) -> Path:
        return self.path(f"{export_path(run)}/model.safetensors")

    def tensors(self, run: str) -> dict[str, Tensor]:
        return load_file(self.model(run))

    def manifest(self, run: str) -> dict[str, Any]:
        return json.loads(self.path(f"{export_path(run)}/{MANIFEST}").read_text())

    def published(self, run: str) -> Path:
        return self.path(f"{export_path(run)}/{PUBLISHED}")

    def steps(self, run: str) -> list[int]:
        return checkpoint.steps_of(self.store, run)

    def checkpoint(self, run: str, step: int) -> Path:
        return self.path(f"{checkpoint_path(run, step)}/{MANIFEST}")


def build_workshop(folder: Path, eval_fraction: float = 0.2) -> Workshop:
    target = Target(model=f"file://{testing.write_target(folder / 'target')}", dtype="float32")
    chat = testing.write_conversations(folder / "chat.json", count=48)
    common = {"run": "shared", "uid": "u", "workspace": f"file://{folder / 'workspace'}", "target": target}
    wanted = PrepareTask(
        **common,
        mode="Offline",
        draft=Draft(vocab_size=256),
        data=Data(source=DataSource(file=FileSource(uri=f"file://{chat}")), max_length=96, eval_fraction=eval_fraction),
        train=TRAIN,
        evaluates=eval_fraction > 0,
        export=Export(),
        frozen_sha256="0" * 64,
    )
    prepared = prepare(wanted, Reporter(Stage.PREPARE)).prepared
    assert prepared is not None
    keys = set()
    for shard in range(2):
        task = GenerateTask(
            **common,
            prepared=prepared.prepared,
            aux_layers=prepared.aux_layers,
            codec="none",
            num_shards=2,
            shard=shard,
        )
        stored = generate(task, Reporter(Stage.GENERATE)).hidden_states
        assert stored is not None
        keys.add(stored.key)
    (key,) = keys
    states = StoredStatesRef(key=key, shards=(0, 1), num_shards=2)
    return Workshop(LocalStore(folder / "workspace"), target, prepared, states)
