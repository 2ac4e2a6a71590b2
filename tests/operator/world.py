"""A run on a fake cluster with a clock of its own, and builders for what its pods leave behind."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from draftyard_api.names import Stage
from draftyard_api.progress import (
    Acceptance,
    Counts,
    Prepared,
    Progress,
    Regenerated,
    StageResult,
    StoredStates,
    Trained,
)
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, DraftTrainingStatus
from draftyard_api.targets import WELL_KNOWN, TargetShape
from draftyard_operator.config import OperatorConfig
from draftyard_operator.reconcile import Operator, reconcile
from draftyard_operator.run import read_status, stage_of
from draftyard_operator.testing.direct import DirectCluster
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.kinds import CLAIM, CONFIG_MAP, EVENT, JOB, PYTORCH_JOB
from draftyard_operator.testing.pods import Ends

Json = Any
NAMESPACE = "team"
NAME = "llama-r1"
EXPORT = f"file:///data/workspace/draftyard/export/{NAME}"
START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
CONFIG = OperatorConfig(trainer_image="registry.example/trainer@sha256:00")
SHAPE = TargetShape.from_config(WELL_KNOWN["Qwen/Qwen3-8B"])

ONLINE: Json = {
    "mode": "Online",
    "target": {"model": "meta-llama/Llama-3.1-8B-Instruct"},
    "data": {"source": {"preset": {"name": "sharegpt"}}},
    "workspace": {"pvc": {"claimTemplate": {"size": "200Gi"}}},
}
OFFLINE: Json = ONLINE | {
    "mode": "Offline",
    "workspace": {"pvc": {"claimTemplate": {"size": "4Ti", "accessModes": ["ReadWriteMany"]}}},
    "hiddenStates": {"shards": 4, "parallelism": 2},
}
OWN: Json = {
    "data": ONLINE["data"] | {"regenerate": {"shards": 4}},
    "regenerate": {"parallelism": 2},
    "workspace": OFFLINE["workspace"],
}
"""Blocks with which the target answers before anything is prepared."""
GATED = {"evaluate": {"minAcceptanceLength": 2.0}}


def spec(base: Json = ONLINE, **changes: Any) -> Json:
    """A spec with some blocks replaced; None takes one out."""
    made = copy.deepcopy(base) | changes
    return {name: value for name, value in made.items() if value is not None}


# -- What pods leave ------------------------------------------------------------------------------------------------


def counts(documents: int = 1000) -> Counts:
    return Counts(
        rows=documents + 5, documents=documents, train_documents=documents - 10, held_out_documents=10,
        skipped={"empty": 5}, truncated_documents=3, tokens=740 * documents, train_tokens=730 * documents,
        loss_tokens=400 * documents, label_rows=410 * documents, steps=24,
    )  # fmt: skip


def prepared(**changes: Any) -> Prepared:
    made = Prepared(
        prepared="p1", counts=counts(), vocab_size=32000, vocab_coverage="0.9840", aux_layers=(2, 18, 33),
        target_commit="c0ffee", data_sha256="d1", tokens_sha256="t1", fingerprint="sha256:f1",
        free_bytes=2**42, target_shape=SHAPE,
    )  # fmt: skip
    return made.model_copy(update=changes)


ACCEPTANCE = Acceptance(length="2.71", per_position=("0.78", "0.55"), draft_tokens=3, prompts=64, source="Simulated")


def index_of(pod: Json | None) -> int:
    """Which shard a pod makes."""
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]) if pod else 0


def regenerated(shard: int = 0, **changes: Any) -> Regenerated:
    made = Regenerated(
        key="c1", shard=shard, shards=4, conversations=250, answers=500, unfinished=2, tokens=90000, skipped={},
        target_commit="0e9e39f249a16976918f6564b8830bc894c89659", tokens_per_second=100.0,
    )  # fmt: skip
    return made.model_copy(update=changes)


def result(stage: Stage, pod: Json | None = None, **changes: Any) -> StageResult:
    """The result of a stage that ended well."""
    made = StageResult(stage=stage, manifest_sha256="ab12", bytes=1000, seconds=5.0)
    match stage:
        case Stage.REGENERATE:
            made = made.model_copy(update={"regenerated": regenerated(index_of(pod))})
        case Stage.PREPARE:
            made = made.model_copy(update={"prepared": prepared()})
        case Stage.GENERATE:
            states = StoredStates(
                key="k1", shard=index_of(pod), shards=4, documents=250, tokens=185000, label_rows=102500, bytes=10**9,
                tokens_per_second=100.0, argmax_agreement="0.994",
            )  # fmt: skip
            made = made.model_copy(update={"hidden_states": states})
        case Stage.TRAIN:
            trained = Trained(steps=24, best_step=20, loss="1.9", acceptance=ACCEPTANCE)
            made = made.model_copy(
                update={"trained": trained, "published": f"file:///data/workspace/draftyard/export/{NAME}"}
            )
        case Stage.EVALUATE:
            measured = ACCEPTANCE.model_copy(update={"source": "Measured"})
            made = made.model_copy(update={"acceptance": measured, "published": EXPORT})
    return made.model_copy(update=changes)


def message(made: StageResult) -> str:
    return made.model_dump_json(by_alias=True, exclude_none=True)


def well(stage: Stage, pod: Json | None = None, **changes: Any) -> Ends:
    """A pod that ends well."""
    return Ends(0, message(result(stage, pod, **changes)))


def badly(code: int, stage: Stage = Stage.TRAIN, reason: str = "PodFailed", text: str = "it went wrong") -> Ends:
    """A pod that ends with a code and says why."""
    made = StageResult(stage=stage, exit_code=code, reason=Reason(reason), message=text)
    return Ends(code, message(made))


def reading(stage: Stage = Stage.TRAIN, heartbeat: float = 100.0, **fields: Any) -> Progress:
    return Progress(stage=stage, heartbeat=heartbeat, **fields)


# -- The world ------------------------------------------------------------------------------------------------------


class World:
    """One run, one operator, one clock."""

    def __init__(
        self, given: Json | None = None, config: OperatorConfig = CONFIG, *, pytorch_jobs: bool = False
    ) -> None:
        self.now = START
        self.fake = FakeCluster(self.clock, pytorch_jobs=pytorch_jobs)
        self.fake.add_namespace(NAMESPACE)
        self.cluster = DirectCluster(self.fake)
        self.operator = Operator(self.cluster, config)
        self.fake.add_run(NAMESPACE, NAME, given or spec())
        self.due: float | None = 0.0

    def clock(self) -> float:
        """The cluster's time."""
        return self.now.timestamp()

    # -- Time and passes ---------------------------------------------------------------------------------------------

    def look(self) -> float | None:
        """One pass."""
        self.due = asyncio.run(reconcile(self.operator, NAMESPACE, NAME, self.now))
        return self.due

    def later(self, seconds: float) -> None:
        """Time passes, and pods end whose time has come."""
        self.now += timedelta(seconds=seconds)
        self.fake.tick()

    def settle(self, most: int = 50) -> None:
        """Passes until nothing more is decided or done at this moment."""
        for _ in range(most):
            before = len(self.cluster.writes)
            self.look()
            # a second of time, since something was asked for that takes its time
            if self.due != 0.0 and len(self.cluster.writes) == before:
                return
        raise AssertionError(f"still something to do after {most} passes: {self.cluster.writes[-3:]}")

    def at_stage(self, stage: Stage) -> World:
        """Go on until the stage's child runs."""
        self.settle()
        while self.status.stage is not stage:
            self.finish(self.status.stage)
        return self

    def finish(self, stage: Stage, **changes: Any) -> None:
        """Let every pod of a stage end well, one after the other, and look."""
        for _ in range(100):
            pods = [pod for pod in self.fake.pods(NAMESPACE) if is_live(pod, stage)]
            if not pods:
                break
            self.fake.kubelet.end(NAMESPACE, pods[0]["metadata"]["name"], well(stage, pods[0], **changes))
        self.settle()

    def end(self, end: Ends, stage: Stage | None = None) -> None:
        """Let every pod of a stage that runs end so, and look."""
        for pod in self.fake.pods(NAMESPACE):
            if is_live(pod, stage or self.status.stage):
                self.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], end)
        self.settle()

    def run_all(self) -> World:
        """Go on to the end, with all well."""
        self.settle()
        while self.status.completion_time is None:
            self.finish(self.status.stage)
        return self

    # -- What is there -----------------------------------------------------------------------------------------------

    @property
    def object(self) -> Json:
        return self.fake.run(NAMESPACE, NAME)

    @property
    def uid(self) -> str:
        return self.object["metadata"]["uid"]

    @property
    def status(self) -> DraftTrainingStatus:
        return read_status(self.object.get("status") or {})

    def stage(self, stage: Stage):
        return stage_of(self.status, stage)

    def condition(self, kind: ConditionType | str):
        return next((one for one in self.status.conditions or () if one.type == kind), None)

    def reason(self, kind: ConditionType | str) -> str:
        return self.condition(kind).reason

    @property
    def jobs(self) -> list[str]:
        return sorted(one["metadata"]["name"] for one in self.fake.store.every(JOB, NAMESPACE))

    @property
    def pytorch_jobs(self) -> list[str]:
        return sorted(one["metadata"]["name"] for one in self.fake.store.every(PYTORCH_JOB, NAMESPACE))

    def job(self, name: str) -> Json:
        return self.fake.store.get(JOB, NAMESPACE, name)

    def task(self, name: str) -> str:
        return self.fake.store.get(CONFIG_MAP, NAMESPACE, name)["data"]["task.json"]

    def claim(self, name: str = f"{NAME}-workspace") -> Json | None:
        return self.fake.store.find(CLAIM, NAMESPACE, name)

    @property
    def events(self) -> list[str]:
        return [one["reason"] for one in self.fake.store.every(EVENT, NAMESPACE)]

    def live_pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.fake.pods(NAMESPACE) if is_live(pod)]

    def edit(self, **blocks: Any) -> None:
        self.fake.edit_run(NAMESPACE, NAME, blocks)


def is_live(pod: Json, stage: Stage | None = None) -> bool:
    """Whether a pod runs, and is of a stage."""
    ours = stage is None or pod["metadata"]["labels"].get("draftyard.dev/stage") == stage
    return ours and pod["status"].get("phase") not in ("Succeeded", "Failed")
