"""Task files: they survive JSON, say which stage they are for, and hold nothing that nobody knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from draftyard_api import plan, task
from draftyard_api.names import Stage
from draftyard_api.progress import MAX_TERMINATION_BYTES, Counts, Prepared, StageResult
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.targets import WELL_KNOWN, TargetShape
from draftyard_api.task import (
    ConversationsRef,
    EvaluateTask,
    GenerateTask,
    PrepareTask,
    RegenerateTask,
    StoredStatesRef,
    TrainTask,
)

RUN = plan.RunIdentity("llama-r1", "4c1e")
PLACE = plan.Place("file:///work", lambda text: text)
STATES = StoredStatesRef(key="9d2f", shards=(0, 1, 3), num_shards=4)
COUNTS = Counts(
    rows=12, documents=10, train_documents=9, held_out_documents=1, skipped={"empty": 2}, truncated_documents=0,
    tokens=1000, train_tokens=900, loss_tokens=600, label_rows=610, steps=4,
)  # fmt: skip
PREPARED = Prepared(
    prepared="71ab", counts=COUNTS, vocab_size=512, vocab_coverage="0.99", aux_layers=(2, 4, 6), target_commit="c0ffee",
    data_sha256="d1", tokens_sha256="d2", fingerprint="sha256:f1", free_bytes=None,
)  # fmt: skip
SPEC = DraftTrainingSpec.model_validate_json(
    json.dumps(
        {
            "mode": "Offline",
            "target": {"model": "org/name", "tokenSecretRef": {"name": "hf"}},
            "data": {
                "source": {"preset": {"name": "sharegpt"}},
                "templateKwargs": {"enable_thinking": False},
                "regenerate": {
                    "temperature": 0.7,
                    "engine": {"url": "http://llama/v1", "secretRef": {"name": "llama"}},
                },
            },
            "workspace": {"pvc": {"existingClaim": "scratch"}},
            "hiddenStates": {"shards": 4, "reclaim": "Delete"},
            "evaluate": {"minAcceptanceLength": 2.5},
            "tracking": {"reportTo": ["wandb"], "wandb": {"project": "p", "secretRef": {"name": "wandb"}}},
        }
    )
)
TASKS: dict[str, tuple[task.BaseTask, type[task.BaseTask]]] = {
    "regenerate": (plan.regenerate_task(RUN, SPEC, PLACE, num_shards=4), RegenerateTask),
    "prepare": (plan.prepare_task(RUN, SPEC, PLACE, 2, ConversationsRef(key="c1", num_shards=4)), PrepareTask),
    "generate": (plan.generate_task(RUN, SPEC, PLACE, PREPARED, shard=3), GenerateTask),
    "train": (plan.train_task(RUN, SPEC, PLACE, PREPARED, STATES), TrainTask),
    "evaluate": (plan.evaluate_task(RUN, SPEC, PLACE, PREPARED, STATES), EvaluateTask),
}


def as_json(stage: str) -> Any:
    return json.loads(TASKS[stage][0].model_dump_json(by_alias=True))


@pytest.mark.parametrize("stage", TASKS)
def test_round_trip(stage: str):
    given, kind = TASKS[stage]
    read = task.parse(given.model_dump_json(by_alias=True))
    assert isinstance(read, kind)
    assert read == given
    assert read.stage == stage


@pytest.mark.parametrize("stage", TASKS)
def test_without_empty_fields_it_is_the_same_task(stage: str):
    given, _ = TASKS[stage]
    assert task.parse(given.model_dump_json(by_alias=True, exclude_none=True)) == given


@pytest.mark.parametrize("stage", TASKS)
def test_an_unknown_field_is_refused(stage: str):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted") as caught:
        task.parse(json.dumps(as_json(stage) | {"retries": 3}))
    assert caught.value.errors()[0]["loc"] == (stage, "retries")


@pytest.mark.parametrize("stage", TASKS)
def test_a_missing_field_is_refused(stage: str):
    given = as_json(stage)
    del given["workspace"]
    with pytest.raises(ValidationError, match="Field required"):
        task.parse(json.dumps(given))


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        task.parse(json.dumps(as_json("train") | {"stage": "distil"}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_task_is_refused(text: str):
    with pytest.raises(ValidationError):
        task.parse(text)


@pytest.mark.parametrize("stage", TASKS)
def test_a_task_cannot_be_changed(stage: str):
    with pytest.raises(ValidationError, match="frozen"):
        TASKS[stage][0].run = "other"  # type: ignore[misc]


def test_a_task_names_secrets_and_never_holds_one():
    given = as_json("train")
    assert given["target"]["tokenSecretRef"] == {"name": "hf", "key": None}
    assert given["tracking"]["wandb"]["secretRef"] == {"name": "wandb", "key": None}
    assert as_json("regenerate")["data"]["regenerate"]["engine"]["secretRef"] == {"name": "llama", "key": None}


def test_what_prepare_found_survives_the_termination_message():
    """The plan's bytes follow from the target's shape, which only prepare has read."""
    shape = TargetShape.from_config(WELL_KNOWN["Qwen/Qwen3-8B"])
    result = StageResult(stage=Stage.PREPARE, prepared=PREPARED.model_copy(update={"target_shape": shape}))
    text = result.model_dump_json(by_alias=True, exclude_none=True)
    assert len(text) < MAX_TERMINATION_BYTES
    assert StageResult.model_validate_json(text) == result
    assert PREPARED.documents == COUNTS.documents
