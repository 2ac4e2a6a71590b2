"""One table of changes and whether they are let through: our Python and an API server are both judged by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rule_cases import COMMIT, GONE, OFFLINE, Json, changed

FROZEN_TIME = {"frozenTime": "2026-11-20T08:00:03Z"}
FROZEN_WORDS = (
    "spec.%s: spec.%s decides the result, and is frozen since status.frozenTime (a GPU stage started, or the run ended); "
    "create a DraftTraining with another name"
)


@dataclass(frozen=True)
class Update:
    """A change of a stored object, and every message that it gets: none when it is accepted."""

    name: str
    before: dict[str, Any]
    after: dict[str, Any]
    words: tuple[str, ...] = ()
    is_frozen: bool = True

    @property
    def old(self) -> Json:
        """The object as it is stored."""
        return changed(OFFLINE, self.before)

    @property
    def new(self) -> Json:
        """The object as somebody wants it."""
        return changed(self.old, self.after)


def frozen_case(path: str, before: Any, after: Any) -> Update:
    """A frozen field; its block is the first part of the path."""
    block = path.partition(".")[0]
    return Update(f"{path} is frozen", {path: before}, {path: after}, (FROZEN_WORDS % (block, block),))


PINNED_TARGET = {"model": "org/name", "revision": COMMIT}
S3_DATA = {"data.source": {"s3": {"uri": "s3://corpora/chat", "region": "a"}}}
S3_WORK = {"workspace": {"s3": {"uri": "s3://models/x", "region": "a"}}}
BUCKET = {"endpoint": "https://s3.example", "region": "b", "credentialsSecretRef": {"name": "s3"}}

UPDATES = (
    Update("nothing changes", {}, {}),
    Update("everything may change before", {"train.seed": 1}, {"train.seed": 2, "draft.vocabSize": 8192}, is_frozen=False),
    Update(
        "the mode is frozen", {}, {"mode": "Online", "hiddenStates": GONE},
        (FROZEN_WORDS % ("mode", "mode"), FROZEN_WORDS % ("hiddenStates", "hiddenStates")),
    ),
    frozen_case("backend", "Auto", "Job"),
    frozen_case("target.model", "org/a", "org/b"),
    frozen_case("target.revision", "main", "other"),
    frozen_case("target.dtype", "bfloat16", "float16"),
    frozen_case("target", PINNED_TARGET, PINNED_TARGET | {"trustRemoteCode": True}),
    frozen_case("draft.profile", "eagle3", "eagle3.1"),
    frozen_case("draft.keepTokens", ["a"], ["b"]),
    frozen_case("draft", {}, {"auxLayers": [2, 16, 29]}),
    frozen_case("draft", {"initFrom": "org/a"}, {}),
    frozen_case("data.source", {"preset": {"name": "a"}}, {"preset": {"name": "b"}}),
    frozen_case("data.source", {"preset": {"name": "a"}}, {"file": {"uri": "pvc://a/b"}}),
    frozen_case("data.source", {"s3": {"uri": "s3://bucket/a"}}, {"s3": {"uri": "s3://bucket/b"}}),
    frozen_case("data.maxSamples", 1, 2),
    frozen_case("data.templateKwargs", {"enable_thinking": True}, {"enable_thinking": False}),
    frozen_case("data.regenerate", {}, {"temperature": 0.7}),
    frozen_case("data.regenerate", {}, {"engine": {"url": "http://a/v1"}}),
    frozen_case("data.regenerate", {"shards": 4}, {"shards": 5}),
    frozen_case(
        "data.regenerate.engine", {"url": "http://a/v1", "model": "a"}, {"url": "http://a/v1", "model": "b"},
    ),
    frozen_case("data.stopTokens", [], ["</s>"]),
    frozen_case("data.evalFraction", 0.01, 0.02),
    frozen_case("workspace.pvc.path", "a", "b"),
    frozen_case("workspace.pvc", {"existingClaim": "a"}, {"existingClaim": "b"}),
    frozen_case("workspace.pvc", {"existingClaim": "a"}, {"claimTemplate": {"size": "1Gi"}}),
    frozen_case("workspace.pvc.claimTemplate.storageClassName", "a", "b"),
    frozen_case("workspace.pvc.claimTemplate.accessModes", ["ReadWriteOnce"], ["ReadWriteMany"]),
    frozen_case("workspace", {"s3": {"uri": "s3://bucket/a"}}, {"s3": {"uri": "s3://bucket/b"}}),
    frozen_case("workspace", {"pvc": {"existingClaim": "a"}}, {"s3": {"uri": "s3://bucket/b"}}),
    frozen_case("hiddenStates.shards", 4, 5),
    frozen_case("hiddenStates.codec", "none", "compact"),
    frozen_case("hiddenStates", {"shards": 4}, {"shards": 4, "maxFailedShards": 1}),
    frozen_case("hiddenStates", {}, {"shards": 4}),
    frozen_case("export.ifExists", "Skip", "Overwrite"),
    *(
        frozen_case(f"train.{name}", before, after)
        for name, before, after in (
            ("epochs", 1, 2), ("tokensPerBatch", 65536, 8192), ("rowTokens", 8192, 65536), ("tttSteps", 7, 4),
            ("unroll", "full", "onPath"),
            ("lossMaskAlignment", "runtime", "specforge"), ("objective", "kl", "lk_alpha"),
            ("outOfVocab", "mask", "keep"), ("learningRate", 0.0001, 0.001), ("warmupRatio", 0.015, 0.1),
            ("gradClip", 0.5, 1), ("weightDecay", 0, 0.1), ("seed", 42, 7),
            ("earlyStop", {"patience": 5}, {"patience": 6}), ("earlyStop", {}, GONE),
        )
    ),
    frozen_case("evaluate.minAcceptanceLength", 2.0, 1.5),
    frozen_case("evaluate.draftTokens", 3, 4),
    frozen_case("evaluate.maxPrompts", 256, 64),
    frozen_case("evaluate.maxNewTokens", 512, 64),
    frozen_case("evaluate.promptSets", ["heldOut", "humaneval"], ["humaneval", "heldOut"]),
    frozen_case("evaluate.temperature", 0, 1),
    frozen_case("evaluate", {"proposal": "tree", "tree": {}}, {}),
    frozen_case("evaluate", {"proposal": "tree", "tree": {}}, {"proposal": "tree", "tree": {"steps": 4}}),
    frozen_case(
        "evaluate", {"promptSets": ["file"], "promptFile": {"uri": "pvc://a/b"}},
        {"promptSets": ["file"], "promptFile": {"uri": "pvc://a/c"}},
    ),
    Update("a gate that is added", {}, {"evaluate": {}}, (FROZEN_WORDS % ("evaluate", "evaluate"),)),
    Update("a gate that is removed", {"evaluate": {}}, {"evaluate": GONE}, (FROZEN_WORDS % ("evaluate", "evaluate"),)),
    Update(
        "what decides where and how may change", {"evaluate": {}, "generate": {}},
        {
            "suspend": True, "hiddenStates.reclaim": "Delete", "retry.maxAttempts": 5, "retry.backoffSeconds": 60,
            "deadlines.activeSeconds": 3600, "cleanup.children": "Never", "train.checkpoint.everySteps": 100,
            "train.pod.nodeSelector": {"gpu": "h100"}, "evaluate.gpusPerPod": 4, "generate.retriesPerShard": 1,
            "evaluate.engine": {"url": "http://vllm:8000"},
            "target.tensorParallel": 2, "generate.gpusPerPod": 2, "target.tokenSecretRef": {"name": "hf"},
            "tracking.reportTo": ["tensorboard"], "scheduling.queueName": "gpu", "train.gpusPerNode": 2,
            "workspace.pvc.claimTemplate": {"size": "300Gi", "reclaim": "Delete"}, "target.s3": BUCKET,
            "draft.s3": BUCKET,
        },
    ),
    Update("how a bucket of data is reached may change", S3_DATA, {"data.source": {"s3": BUCKET | {"uri": "s3://corpora/chat"}}}),
    Update("how a bucket of results is reached may change", S3_WORK, {"workspace": {"s3": BUCKET | {"uri": "s3://models/x"}}}),
    Update(
        "how an engine is reached may change", {"data.regenerate.engine": {"url": "http://a/v1", "model": "a"}},
        {
            "data.regenerate.engine": {"url": "http://b/v1", "model": "a", "secretRef": {"name": "b"}, "concurrency": 8},
            "regenerate": {"retriesPerShard": 1},
        },
    ),
    Update("a claim grows", {}, {"workspace.pvc.claimTemplate.size": "0.5Ti"}),
    Update(
        "a claim shrinks", {}, {"workspace.pvc.claimTemplate.size": "204799Mi"},
        ("spec.workspace.pvc.claimTemplate.size: given 204799Mi; accepted: at least 200Gi, since a claim can grow, not shrink",),
        is_frozen=False,
    ),
    Update(
        "attempts shrink", {"retry.maxAttempts": 5}, {"retry.maxAttempts": 4},
        ("spec.retry.maxAttempts: given 4; accepted: at least 5, since attempts that were allowed may be used up",),
        is_frozen=False,
    ),
)  # fmt: skip
