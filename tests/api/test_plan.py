"""From a spec to stages and tasks, and what a result is known by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from draftyard_api import plan, storage_uri
from draftyard_api.names import Stage
from draftyard_api.plan import Place, RunIdentity
from draftyard_api.progress import Counts, Prepared
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.task import CacheRef, ConversationsRef, StoredStatesRef

RUN = RunIdentity("llama31-8b-r1", "uid-1")
CLAIMS = {"models": Path("/mnt/models"), "data": Path("/mnt/data")}
PLACE = Place("file:///mnt/.draftyard", lambda uri: storage_uri.resolve(uri, Path("/mnt/runs"), CLAIMS))
STATES = StoredStatesRef(key="abc", shards=(0, 1, 2), num_shards=3)
SMALLEST: dict[str, Any] = {
    "mode": "Offline",
    "target": {"model": "pvc://models/llama"},
    "data": {"source": {"file": {"uri": "pvc://data/chat.jsonl"}}},
    "workspace": {"pvc": {"existingClaim": "scratch"}},
    "hiddenStates": {},
}


def spec(**blocks: Any) -> DraftTrainingSpec:
    """The smallest spec with some blocks replaced; None takes one out."""
    given = {name: value for name, value in (SMALLEST | blocks).items() if value is not None}
    return DraftTrainingSpec.model_validate_json(json.dumps(given))


ONLINE = {"mode": "Online", "hiddenStates": None}
OWN = SMALLEST["data"] | {"regenerate": {}}


def prepared(documents: int = 100) -> Prepared:
    counts = Counts(
        rows=120, documents=documents, train_documents=90, held_out_documents=10, skipped={"empty": 20},
        truncated_documents=3, tokens=40000, train_tokens=36000, loss_tokens=20000, label_rows=21000, steps=9,
    )  # fmt: skip
    return Prepared(
        prepared="p1", counts=counts, vocab_size=32000, vocab_coverage="0.98", aux_layers=(2, 16, 29),
        target_commit="c0ffee", data_sha256="d1", tokens_sha256="t1", fingerprint="sha256:f1", free_bytes=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(spec(), [Stage.PREPARE, Stage.GENERATE, Stage.TRAIN], id="Offline"),
        pytest.param(spec(evaluate={}), [*Stage][1:], id="Offline with a gate"),
        pytest.param(spec(data=OWN, evaluate={}), [*Stage], id="Offline with the target's own answers"),
        pytest.param(spec(**ONLINE), [Stage.PREPARE, Stage.TRAIN], id="Online"),
        pytest.param(
            spec(**ONLINE, evaluate={}), [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE], id="Online with a gate"
        ),
    ],
)
def test_stages(wanted, expected):
    assert plan.stages(wanted) == tuple(expected)


def test_the_targets_own_answers_are_told_to_prepare():
    wanted = spec(data=OWN, train={"seed": 7}, regenerate={"parallelism": 3})
    shards = plan.default_conversation_shards(wanted)
    task = plan.regenerate_task(RUN, wanted, PLACE, shards, shard=1)
    assert (task.num_shards, task.shard, task.seed) == (3, 1, 7)
    assert plan.default_conversation_shards(spec(data=OWN | {"regenerate": {"shards": 8}})) == 8
    ref = ConversationsRef(key="c1", num_shards=shards)
    assert plan.prepare_task(RUN, wanted, PLACE, conversations=ref).conversations == ref
    assert plan.prepare_task(RUN, spec(), PLACE).conversations is None


# -- Identity ---------------------------------------------------------------------------------------

DECIDES = {
    "the mode": ONLINE,
    "the backend": {"backend": "Job"},
    "the target": {"target": {"model": "pvc://models/other"}},
    "its revision": {"target": {"model": "pvc://models/llama", "revision": "v2"}},
    "its dtype": {"target": {"model": "pvc://models/llama", "dtype": "float32"}},
    "the draft": {"draft": {"vocabSize": 8192}},
    "who answers": {"data": OWN},
    "how": {"data": OWN | {"regenerate": {"temperature": 0.7}}},
    "in which words": {"data": OWN | {"regenerate": {"engine": {"url": "http://a/v1"}}}},
    "the data": {"data": {"source": {"file": {"uri": "pvc://data/other.jsonl"}}}},
    "a bucket of data": {"data": {"source": {"s3": {"uri": "s3://bucket/chat"}}}},
    "another bucket of data": {"data": {"source": {"s3": {"uri": "s3://bucket/other"}}}},
    "the length of samples": {"data": SMALLEST["data"] | {"maxLength": 512}},
    "the template's arguments": {"data": SMALLEST["data"] | {"templateKwargs": {"enable_thinking": False}}},
    "the workspace": {"workspace": {"pvc": {"existingClaim": "other"}}},
    "its folder": {"workspace": {"pvc": {"existingClaim": "scratch", "path": "other"}}},
    "a claim that is made": {"workspace": {"pvc": {"claimTemplate": {"size": "1Gi"}}}},
    "the codec": {"hiddenStates": {"codec": "none"}},
    "the shards": {"hiddenStates": {"shards": 4}},
    "the shards that may fail": {"hiddenStates": {"maxFailedShards": 1}},
    "what happens to an export": {"export": {"ifExists": "Overwrite"}},
    "the epochs": {"train": {"epochs": 3}},
    "the seed": {"train": {"seed": 7}},
    "the learning rate": {"train": {"learningRate": 0.001}},
    "that it is judged": {"evaluate": {}},
    "the gate": {"evaluate": {"minAcceptanceLength": 2.5}},
    "what is asked": {"evaluate": {"promptSets": ["heldOut", "humaneval"]}},
    "what is asked first": {"evaluate": {"promptSets": ["humaneval", "heldOut"]}},
    "prompts of one's own": {"evaluate": {"promptSets": ["file"], "promptFile": {"uri": "pvc://prompts/a.jsonl"}}},
    "the temperature": {"evaluate": {"temperature": 1}},
    "a tree": {"evaluate": {"proposal": "tree", "tree": {}}},
    "its depth": {"evaluate": {"proposal": "tree", "tree": {"steps": 4}}},
}
DECIDES_NOTHING = {
    "nothing": {},
    "a default that is written": {"train": {"epochs": 2}, "backend": "Auto"},
    "a pause": {"suspend": True},
    "the Secret": {"target": {"model": "pvc://models/llama", "tokenSecretRef": {"name": "hf"}}},
    "how many GPUs hold the target": {"target": {"model": "pvc://models/llama", "tensorParallel": 4}},
    "how many shards at a time": {"hiddenStates": {"parallelism": 4, "reclaim": "Delete"}},
    "nodes and GPUs": {"train": {"nodes": 2, "gpusPerNode": 8}},
    "checkpoints": {"train": {"checkpoint": {"everySteps": 10}}},
    "pods": {"pod": {"image": "x"}, "prepare": {"pod": {"image": "y"}}, "generate": {"retriesPerShard": 1}},
    "the rest": {"retry": {"maxAttempts": 9}, "deadlines": {"startSeconds": 60}, "cleanup": {"children": "Never"}},
    "curves and queues": {"tracking": {"reportTo": ["tensorboard"]}, "scheduling": {"queueName": "q"}},
}


def test_every_decision_has_its_own_hash():
    hashes = [plan.frozen_sha256(spec(**blocks)) for blocks in ({}, *DECIDES.values())]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("blocks", DECIDES_NOTHING.values(), ids=DECIDES_NOTHING.keys())
def test_what_decides_nothing_keeps_the_hash(blocks):
    assert plan.frozen_sha256(spec(**blocks)) == plan.frozen_sha256(spec())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            {"data": {"source": {"s3": {"uri": "s3://bucket/chat"}}}},
            {"data": {"source": {"s3": {"uri": "s3://bucket/chat", "region": "x", "endpoint": "https://y"}}}},
            id="data",
        ),
        pytest.param(
            {"workspace": {"s3": {"uri": "s3://bucket/w"}}},
            {"workspace": {"s3": {"uri": "s3://bucket/w", "credentialsSecretRef": {"name": "s3"}}}},
            id="workspace",
        ),
        pytest.param(
            {"workspace": {"pvc": {"claimTemplate": {"size": "1Gi"}}}},
            {"workspace": {"pvc": {"claimTemplate": {"size": "2Gi", "reclaim": "Delete"}}}},
            id="claim",
        ),
    ],
)
def test_how_something_is_reached_decides_nothing(before, after):
    assert plan.frozen_sha256(spec(**before)) == plan.frozen_sha256(spec(**after))


def test_the_hash_is_the_same_tomorrow():
    """A changed hash trains every run again: only with a new version of the API."""
    assert plan.frozen_sha256(spec()) == "fd7e7508ef725ae2800398e4ee202da8e9119c7afaf8838a0ca2ac18ede0e56a"


def test_canonical_json_knows_no_order():
    assert plan.canonical({"b": [1, 2.5], "a": {"d": None, "c": "é"}}) == '{"a":{"c":"é","d":null},"b":[1,2.5]}'


def test_a_fingerprint_is_of_all_that_was_resolved():
    prints = {
        plan.fingerprint("f", "c", "d", (2, 3)), plan.fingerprint("g", "c", "d", (2, 3)),
        plan.fingerprint("f", "b", "d", (2, 3)), plan.fingerprint("f", "c", "e", (2, 3)),
        plan.fingerprint("f", "c", "d", (2, 4)),
    }  # fmt: skip
    assert len(prints) == 5
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", found) for found in prints)
    assert plan.fingerprint("f", "c", "d", (2, 3)) in prints
    assert plan.fingerprint("f", "c", "d", (2, 3), initial="e") not in prints
    assert plan.fingerprint("f", "c", "d", (2, 3), initial=None) in prints


# -- Tasks ------------------------------------------------------------------------------------------


def test_prepare_is_told_where_things_are():
    task = plan.prepare_task(RUN, spec(draft={"initFrom": "pvc://models/draft"}, evaluate={}), PLACE, attempt=2)
    assert (task.run, task.uid, task.attempt, task.workspace) == (
        "llama31-8b-r1",
        "uid-1",
        2,
        "file:///mnt/.draftyard",
    )
    assert task.target.model == "file:///mnt/models/llama"
    assert task.draft.init_from == "file:///mnt/models/draft"
    assert task.data.source.file is not None
    assert task.data.source.file.uri == "file:///mnt/data/chat.jsonl"
    assert task.evaluates
    assert task.frozen_sha256 == plan.frozen_sha256(spec(draft={"initFrom": "pvc://models/draft"}, evaluate={}))


def test_prepare_without_a_gate_needs_no_held_out_documents():
    assert not plan.prepare_task(RUN, spec(), PLACE).evaluates


def test_a_preset_needs_no_folder():
    wanted = spec(data={"source": {"preset": {"name": "sharegpt"}}}, target={"model": "org/name"})
    task = plan.prepare_task(RUN, wanted, PLACE)
    assert task.data == wanted.data
    assert task.target.model == "hf://org/name"


def test_an_unknown_claim_is_said():
    with pytest.raises(ValueError, match="--claim other=DIRECTORY"):
        plan.prepare_task(RUN, spec(target={"model": "pvc://other/x"}), PLACE)


@pytest.mark.parametrize("shard", [None, 3])
def test_generate(shard):
    task = plan.generate_task(RUN, spec(hiddenStates={"shards": 4, "codec": "none"}), PLACE, prepared(), shard)
    assert (task.prepared, task.aux_layers, task.codec) == ("p1", (2, 16, 29), "none")
    assert (task.num_shards, task.shard) == (4, shard)
    assert task.target.model == "file:///mnt/models/llama"


@pytest.mark.parametrize(
    ("blocks", "publishes", "draft_tokens"),
    [
        pytest.param({}, True, 3, id="without a gate"),
        pytest.param({"evaluate": {}}, False, 3, id="with a gate"),
        pytest.param({"evaluate": {"draftTokens": 5}}, False, 5, id="with five tokens"),
    ],
)
def test_train(blocks, publishes, draft_tokens):
    task = plan.train_task(RUN, spec(**blocks, train={"epochs": 4}), PLACE, prepared(), STATES)
    assert (task.publishes, task.draft_tokens) == (publishes, draft_tokens)
    assert (task.mode, task.hidden_states, task.train.epochs) == ("Offline", STATES, 4)
    assert (task.fingerprint, task.aux_layers, task.prepared) == ("sha256:f1", (2, 16, 29), "p1")


def test_train_online_reads_no_states():
    task = plan.train_task(RUN, spec(**ONLINE), PLACE, prepared(), None)
    assert (task.mode, task.hidden_states) == ("Online", None)


def test_evaluate():
    task = plan.evaluate_task(RUN, spec(evaluate={"maxPrompts": 9}, train={"seed": 7}), PLACE, prepared(), STATES)
    assert (task.evaluate.max_prompts, task.fingerprint, task.prepared) == (9, "sha256:f1", "p1")
    assert task.target.model == "file:///mnt/models/llama"
    assert (task.seed, task.chat_template) == (7, "auto")


JUDGED = "3bfca636afbe699ffa6abea112e3795a1c68c2cb6c634f2be77d87fdea2bd9b3"
"""Hash of a run with a gate, as the first version of the contract made it."""
OWN_PROMPTS = {"promptSets": ["heldOut", "file", "gsm8k"], "promptFile": {"uri": "pvc://data/mine.jsonl"}}


def test_prompts_of_one_s_own_lie_where_a_process_finds_them():
    judged = plan.evaluate_task(RUN, spec(evaluate=OWN_PROMPTS), PLACE, prepared(), None).evaluate
    assert judged.prompt_file is not None
    assert judged.prompt_file.uri == "file:///mnt/data/mine.jsonl"
    asked = plan.prepare_task(RUN, spec(evaluate=OWN_PROMPTS), PLACE).other_prompts
    assert asked is not None
    assert (asked.sets, asked.file) == (("file", "gsm8k"), judged.prompt_file)


def test_prepare_is_told_nothing_of_held_out_prompts():
    """Or every task that an earlier version gave would be another one today, and prepare would start again."""
    given = plan.prepare_task(RUN, spec(evaluate={}), PLACE)
    assert "otherPrompts" not in given.model_dump_json(by_alias=True, exclude_none=True)


def test_an_engine_decides_nothing():
    engine = {"engine": {"url": "http://vllm:8000", "secretRef": {"name": "engine"}}}
    assert plan.frozen_sha256(spec(evaluate=engine)) == plan.frozen_sha256(spec(evaluate={}))


def test_a_judged_run_has_the_hash_that_it_had_before_there_were_sets_and_trees():
    assert plan.frozen_sha256(spec(evaluate={"minAcceptanceLength": 2.5})) == JUDGED


@pytest.mark.parametrize(
    ("evaluate", "tokens"),
    [({"draftTokens": 5}, 5), ({"proposal": "tree", "tree": {"steps": 6}}, 6), (None, 3)],
    ids=["a chain", "the depth of a tree", "without a gate"],
)
def test_how_far_the_draft_looks_ahead(evaluate, tokens):
    assert plan.draft_tokens(spec(evaluate=evaluate) if evaluate else spec()) == tokens


@pytest.mark.parametrize("evaluate", [None, {}], ids=["train publishes", "evaluate publishes"])
@pytest.mark.parametrize("reclaim", ["Delete", "Retain"])
def test_the_stage_that_publishes_removes_states_that_shall_go(reclaim, evaluate):
    given = spec(hiddenStates={"reclaim": reclaim}, **({} if evaluate is None else {"evaluate": evaluate}))
    told = CacheRef(key=STATES.key, num_shards=STATES.num_shards) if reclaim == "Delete" else None
    train = plan.train_task(RUN, given, PLACE, prepared(), STATES)
    assert train.reclaims == (told if evaluate is None else None)
    if evaluate is not None:
        assert plan.evaluate_task(RUN, given, PLACE, prepared(), STATES).reclaims == told


@pytest.mark.parametrize(
    ("states", "documents", "expected"),
    [
        pytest.param({}, 100, 1, id="one at a time is one"),
        pytest.param({"parallelism": 4}, 100, 4, id="as many as work at the same time"),
        pytest.param({"parallelism": 4, "shards": 24}, 100, 24, id="as asked for"),
        pytest.param({"shards": 24}, 5, 5, id="no more than documents"),
        pytest.param({"shards": 24}, 0, 1, id="one where there is nothing"),
    ],
)
def test_shards(states, documents, expected):
    assert plan.default_shards(spec(hiddenStates=states), prepared(documents)) == expected
