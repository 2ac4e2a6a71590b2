"""One table of documents and what is wrong with them: our Python and an API server are both judged by it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from draftyard_api import document
from draftyard_api.document import SpecErrors
from draftyard_api.pod_rules import PODS

Json = Any
GONE = object()
"""In place of a value: the field is taken out."""

ONLINE = {
    "apiVersion": "draftyard.dev/v1alpha1",
    "kind": "DraftTraining",
    "metadata": {"name": "llama31-8b-r1"},
    "spec": {
        "mode": "Online",
        "target": {"model": "meta-llama/Llama-3.1-8B-Instruct"},
        "data": {"source": {"preset": {"name": "sharegpt"}}},
        "workspace": {"pvc": {"claimTemplate": {"size": "200Gi"}}},
    },
}


def changed(base: Json, changes: dict[str, Any]) -> Json:
    """A copy of a document with values at dotted paths of its spec replaced, or taken out."""
    made = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        block = made if parents[:1] == ["metadata"] else made["spec"]
        for part in parents:
            block = block.setdefault(part, {})
        if value is GONE:
            del block[last]
        else:
            block[last] = value
    return made


def errors_of(made: Json, local: bool = False) -> list[str]:
    """What our Python says is wrong with a document; nothing when it is good."""
    try:
        document.check(made, local)
    except SpecErrors as error:
        return error.errors
    return []


OFFLINE = changed(ONLINE, {"mode": "Offline", "hiddenStates": {}})


@dataclass(frozen=True)
class Case:
    """A document, and every message that it gets: none when it is accepted."""

    name: str
    changes: dict[str, Any]
    refused: tuple[str, ...] = ()
    base: Json = field(default_factory=lambda: ONLINE)

    @property
    def document(self) -> Json:
        return changed(self.base, self.changes)


def offline(name: str, changes: dict[str, Any], *refused: str) -> Case:
    return Case(name, changes, refused, OFFLINE)


def online(name: str, changes: dict[str, Any], *refused: str) -> Case:
    return Case(name, changes, refused)


NAME = 'accepted: at most 40 of a-z, 0-9 and "-", a letter first, so that pod names fit into 63'
URI = "accepted: org/name, hf://org/name, pvc://claim/path, s3://bucket/prefix (file:// works in draftyard run only)"
CLAIM = (
    "spec.workspace: given a claim without ReadWriteMany, and train.nodes, hiddenStates.parallelism or "
    "regenerate.parallelism above 1, so several pods write; accepted: claimTemplate.accessModes [ReadWriteMany], or workspace.s3"
)
ENGINE = {"url": "https://llama.example:8000/v1", "model": "llama", "secretRef": {"name": "llama"}, "concurrency": 64}
SHARED = {"workspace.pvc.claimTemplate.accessModes": ["ReadWriteMany"]}
COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
PINNED = (
    "spec.target.revision: given trustRemoteCode without a pinned revision; accepted: a full commit (40 hex digits), "
    "since code of the model repository runs"
)
LAYERS = (
    "spec.draft.auxLayers: given layers that do not start with 2 or do not ascend; accepted: ascending numbers that start "
    "with 2, such as [2, 16, 29]: no other first layer is read alike by all versions of both engines"
)
BOTH = "spec.tracking.%s: given %s in only one of tracking.reportTo and tracking.%s; accepted: both, or neither"
SETS = ["heldOut", "mt-bench", "gsm8k", "humaneval", "file"]
PROMPTS = (
    "spec.evaluate.promptFile: given file in only one of evaluate.promptSets and evaluate.promptFile; accepted: both, or "
    "neither"
)
TREE = (
    "spec.evaluate.tree: given only one of proposal tree and the block tree; accepted: both, or neither (tree: {} takes "
    "every default)"
)
QUEUE = (
    "spec.scheduling.workloadPriorityClass: given workloadPriorityClass without queueName; accepted: both, or neither "
    "(only Kueue reads it)"
)
GPU_LIMIT = "given a limit on GPUs; accepted: train.gpusPerNode, generate.gpusPerPod, evaluate.gpusPerPod"
ENV = (
    "accepted: DRAFTYARD_CACHE, DRAFTYARD_DATASETS, DRAFTYARD_PEER_SECONDS, and any name but PET_*, DRAFTYARD_*, RANK, "
    "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which the operator sets"
)
VOLUME = "given none or several; accepted: exactly one of persistentVolumeClaim, configMap, secret, emptyDir"
MOUNT = "accepted: any path but /data, /run/draftyard and what is below them"
KEY = "given a key of draftyard.dev, *kubernetes.io or *k8s.io; accepted: any other key"

EVERY_BLOCK_ONLINE = {
    "target": {
        "model": "meta-llama/Llama-3.1-8B-Instruct", "revision": COMMIT, "tokenSecretRef": {"name": "hf", "key": "HF_TOKEN"},
    },
    "draft": {"profile": "eagle3", "vocabSize": 32000, "auxLayers": [2, 16, 29], "initFrom": "s3://drafts/r0/export"},
    "data": {
        "source": {"s3": {"uri": "s3://corpora/chat", "region": "us-east-1", "credentialsSecretRef": {"name": "s3"}}},
        "maxSamples": 70000, "chatTemplate": "auto", "templateKwargs": {"enable_thinking": False}, "evalFraction": 0.01,
    },
    "workspace": {
        "pvc": {
            "path": "draftyard",
            "claimTemplate": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "size": "200Gi", "reclaim": "Retain"},
        }
    },
    "prepare": {"pod": {"resources": {"requests": {"cpu": "8", "memory": "32Gi"}}}},
    "train": {
        "nodes": 1, "gpusPerNode": 8, "epochs": 2, "tokensPerBatch": 65536, "rowTokens": 8192, "learningRate": 0.0001,
        "checkpoint": {"everySteps": 500, "keepLast": 3},
        "pod": {
            "resources": {"requests": {"cpu": "32", "memory": "256Gi"}, "limits": {"memory": "256Gi"}}, "shmSize": "64Gi",
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "DRAFTYARD_CACHE", "value": "/nvme/c:2GiB"}],
            "terminationGracePeriodSeconds": 300,
        },
    },
    "evaluate": {"minAcceptanceLength": 2.5, "draftTokens": 3},
    "export": {"ifExists": "Skip"},
    "tracking": {
        "reportTo": ["tensorboard", "wandb"],
        "wandb": {"project": "drafts", "entity": "ml-team", "secretRef": {"name": "wandb", "key": "WANDB_API_KEY"}},
    },
    "scheduling": {"queueName": "gpu-queue", "workloadPriorityClass": "high", "priorityClassName": "training"},
    "retry": {"maxAttempts": 3, "backoffSeconds": 30},
    "deadlines": {"startSeconds": 3600, "activeSeconds": 172800, "progressSeconds": 1800},
    "cleanup": {"children": "OnSuccess", "ttlSecondsAfterFinished": 86400},
    "pod": {"nodeSelector": {"gpu": "h100"}, "serviceAccountName": "draftyard-trainer"},
}  # fmt: skip
EVERY_BLOCK_OFFLINE = {
    "target": {"model": "meta-llama/Llama-3.3-70B-Instruct", "tensorParallel": 4, "tokenSecretRef": {"name": "hf"}},
    "workspace": {
        "pvc": {"claimTemplate": {"storageClassName": "shared", "accessModes": ["ReadWriteMany"], "size": "4Ti"}}
    },
    "hiddenStates": {"shards": 24, "parallelism": 4, "codec": "balanced", "reclaim": "Delete", "maxFailedShards": 0},
    "generate": {"gpusPerPod": 4, "retriesPerShard": 3, "pod": {"nodeSelector": {"gpu": "h100"}}},
    "train": {"nodes": 1, "gpusPerNode": 1, "epochs": 2, "pod": {"nodeSelector": {"gpu": "l40s"}}},
    "evaluate": {"minAcceptanceLength": 2.4, "gpusPerPod": 4, "pod": {"nodeSelector": {"gpu": "h100"}}},
}

CASES = (
    online("the smallest online run", {}),
    offline("the smallest offline run", {}),
    online("every block online", EVERY_BLOCK_ONLINE),
    offline("every block offline", EVERY_BLOCK_OFFLINE),
    online("a name of 40", {"metadata.name": "a" * 40}),
    online("a name of 41", {"metadata.name": "a" * 41}, f'metadata.name: given "{"a" * 41}"; {NAME}'),
    online("a name with a dot", {"metadata.name": "a.b"}, f'metadata.name: given "a.b"; {NAME}'),
    online("a name with a digit first", {"metadata.name": "3b"}, f'metadata.name: given "3b"; {NAME}'),
    online("a name with a dash last", {"metadata.name": "a-"}, f'metadata.name: given "a-"; {NAME}'),
    online(
        "online with hidden states", {"hiddenStates": {}},
        "spec.hiddenStates: given mode Online with hiddenStates; accepted: only with mode Offline, which stores hidden "
        "states: remove the block, or set mode: Offline",
    ),
    offline(
        "offline without hidden states", {"hiddenStates": GONE},
        "spec.hiddenStates: given mode Offline without hiddenStates; accepted: hiddenStates: {} takes every default, or "
        "mode: Online",
    ),
    online(
        "online with generate", {"generate": {}},
        "spec.generate: given generate with mode Online; accepted: only with mode Offline (Online makes hidden states "
        "inside train)",
    ),
    offline("offline with generate", {"generate.retriesPerShard": 0}),
    online("the target's own answers", {"data.regenerate": {}, "regenerate": {}}),
    online(
        "regenerate without a word in data", {"regenerate": {}},
        "spec.regenerate: given regenerate without data.regenerate; accepted: both (data.regenerate: {} takes every default), "
        "or neither",
    ),
    online(
        "answers of a target on 4 GPUs", {"data.regenerate": {}, "target.tensorParallel": 4, "train.gpusPerNode": 4},
        "spec.target.tensorParallel: given tensorParallel 4 with data.regenerate; accepted: 1, or data.regenerate.engine, a "
        "server that holds the target on several GPUs",
    ),
    online(
        "an engine with a target on 4 GPUs",
        {"data.regenerate.engine": ENGINE, "target.tensorParallel": 4, "train.gpusPerNode": 4},
    ),
    online(
        "an engine and another template", {"data.regenerate.engine": ENGINE, "data.chatTemplate": "llama3"},
        "spec.data.chatTemplate: given llama3 with regenerate.engine; accepted: auto, since an engine renders conversations "
        "with its own template",
    ),
    *(
        online(
            f"an engine at {url}", {"data.regenerate.engine": {"url": url}},
            f'spec.data.regenerate.engine.url: given "{url}"; accepted: http:// or https:// with a host and a path, such as '
            "https://llama.example/v1; a key belongs into secretRef",
        )
        for url in ("llama:8000", "https://me:key@llama.example/v1", "https://llama.example/v1?key=1", "file:///etc")
    ),
    online("two shards of answers on a claim of one", {"data.regenerate": {}, "regenerate.parallelism": 2}, CLAIM),
    online("a Job on one node", {"backend": "Job"}),
    online(
        "a Job on two nodes", {"backend": "Job", "train.nodes": 2} | SHARED,
        "spec.backend: given Job with train.nodes 2; accepted: Auto or PyTorchJob (Job trains on one node)",
    ),
    online("8 GPUs for a target on 4", {"target.tensorParallel": 4, "train.gpusPerNode": 8}),
    online(
        "6 GPUs for a target on 4", {"target.tensorParallel": 4, "train.gpusPerNode": 6},
        "spec.train.gpusPerNode: given gpusPerNode 6; accepted: a multiple of target.tensorParallel (4)",
    ),
    offline("offline training needs no target", {"target.tensorParallel": 4, "train.gpusPerNode": 1}),
    offline(
        "generate and evaluate on 6 GPUs for a target on 4",
        {"target.tensorParallel": 4, "generate.gpusPerPod": 6, "evaluate.gpusPerPod": 2},
        "spec.generate.gpusPerPod: given gpusPerPod 6; accepted: a multiple of target.tensorParallel (4)",
        "spec.evaluate.gpusPerPod: given gpusPerPod 2; accepted: a multiple of target.tensorParallel (4)",
    ),
    online("rows as long as samples", {"data.maxLength": 8192}),
    online(
        "rows shorter than samples", {"data.maxLength": 8193},
        "spec.train.rowTokens: given rowTokens 8192; accepted: at least data.maxLength (8193), since a row must hold the "
        "longest sample",
    ),
    online(
        "a batch that is no whole number of rows", {"train.tokensPerBatch": 65537},
        "spec.train.tokensPerBatch: given tokensPerBatch 65537; accepted: a multiple of rowTokens (8192)",
    ),
    online("two nodes on a claim of one", {"train.nodes": 2}, CLAIM),
    offline("two shards at a time on a claim of one", {"hiddenStates.parallelism": 2}, CLAIM),
    offline("several writers on a shared claim", {"train.nodes": 2, "hiddenStates.parallelism": 9} | SHARED),
    offline(
        "several writers on a claim that exists",
        {"hiddenStates.parallelism": 2, "workspace.pvc": {"existingClaim": "team-scratch"}},
    ),
    online("no workspace", {"workspace": {}}, "spec.workspace: given none or both; accepted: exactly one of pvc, s3"),
    online(
        "two workspaces", {"workspace.s3": {"uri": "s3://bucket"}},
        "spec.workspace: given none or both; accepted: exactly one of pvc, s3",
    ),
    online(
        "two claims", {"workspace.pvc.existingClaim": "team-scratch"},
        "spec.workspace.pvc: given none or both; accepted: exactly one of existingClaim, claimTemplate",
    ),
    online(
        "no claim", {"workspace": {"pvc": {}}},
        "spec.workspace.pvc: given none or both; accepted: exactly one of existingClaim, claimTemplate",
    ),
    online(
        "no source", {"data.source": {}},
        "spec.data.source: given none or several; accepted: exactly one of preset, file, s3",
    ),
    online(
        "two sources", {"data.source.file.uri": "pvc://a/b"},
        "spec.data.source: given none or several; accepted: exactly one of preset, file, s3",
    ),
    online("a claim of a whole size", {"workspace.pvc.claimTemplate.size": "1.5Ti"}),
    online(
        "a claim of a size with a blank", {"workspace.pvc.claimTemplate.size": "200 GB"},
        'spec.workspace.pvc.claimTemplate.size: given "200 GB"; accepted: a size such as 200Gi or 4Ti',
    ),
    *(
        online(f"the model {uri}", {"target.model": uri})
        for uri in ("org/name", "hf://org/name", "pvc://models/llama/8b", "s3://my-bucket", "s3://b.c.d/x/y")
    ),
    *(
        online(f"the model {uri}", {"target.model": uri}, f'spec.target.model: given "{uri}"; {URI}')
        for uri in (
            "llama", "file:///models/x", "./models/x", "pvc://claim", "pvc://claim//x", "pvc://claim/../other", "s3://b",
            "s3://Bucket/x", "gs://bucket/x", "org/name/more", "hf://name", "s3://bucket/a/../../b", "a/..",
        )
    ),
    online(
        "a warm start from a file", {"draft.initFrom": "file://x"}, f'spec.draft.initFrom: given "file://x"; {URI}'
    ),
    online("a warm start from a bucket", {"draft.initFrom": "s3://drafts/r0/export", "draft.s3": {"region": "a"}}),
    online("an early stop", {"train.earlyStop": {"patience": 3, "minDelta": 0.01}}),
    online("an early stop with its defaults", {"train.earlyStop": {}}),
    online(
        "an early stop with nothing to judge by", {"train.earlyStop": {}, "data.evalFraction": 0},
        "spec.data.evalFraction: given evalFraction 0 with train.earlyStop; accepted: above 0 (it is decided by held-out "
        "documents), or no earlyStop",
    ),
    online(
        "a file that is no file", {"data.source": {"file": {"uri": "s3://bucket/x"}}},
        'spec.data.source.file.uri: given "s3://bucket/x"; accepted: pvc://claim/path (file:// works in draftyard run only)',
    ),
    online(
        "a bucket that is none", {"data.source": {"s3": {"uri": "pvc://bucket/x"}}},
        'spec.data.source.s3.uri: given "pvc://bucket/x"; accepted: s3://bucket/prefix',
    ),
    online(
        "a workspace that is no bucket", {"workspace": {"s3": {"uri": "file:///tmp/x"}}},
        'spec.workspace.s3.uri: given "file:///tmp/x"; accepted: s3://bucket/prefix',
    ),
    online("remote code of a branch", {"target.trustRemoteCode": True}, PINNED),
    online("remote code of half a commit", {"target.trustRemoteCode": True, "target.revision": COMMIT[:20]}, PINNED),
    online("remote code of a commit", {"target.trustRemoteCode": True, "target.revision": COMMIT}),
    online("a gate that only a perfect draft passes", {"evaluate.minAcceptanceLength": 4}),
    online(
        "a gate that no draft passes", {"evaluate.minAcceptanceLength": 4.5},
        "spec.evaluate.minAcceptanceLength: given 4.50; accepted: at most draftTokens + 1 = 4, the acceptance length of a "
        "draft that is always right",
    ),
    online("every set of prompts", {"evaluate": {"promptSets": SETS, "promptFile": {"uri": "pvc://prompts/mine.jsonl"}}}),
    online(
        "a set of prompts twice", {"evaluate.promptSets": ["gsm8k", "heldOut", "gsm8k"]},
        "spec.evaluate.promptSets: given a set twice; accepted: each once",
    ),
    online("own prompts without a file", {"evaluate.promptSets": ["file"]}, PROMPTS),
    online("a file of prompts that nobody reads", {"evaluate.promptFile.uri": "pvc://prompts/mine.jsonl"}, PROMPTS),
    online(
        "prompts that are no file", {"evaluate": {"promptSets": ["file"], "promptFile": {"uri": "s3://bucket/x"}}},
        'spec.evaluate.promptFile.uri: given "s3://bucket/x"; accepted: pvc://claim/path (file:// works in draftyard run '
        "only)",
    ),
    online("answers that are sampled", {"evaluate.temperature": 1}),
    online("a tree", {"evaluate": {"proposal": "tree", "tree": {}, "minAcceptanceLength": 6}}),
    online("a tree without its block", {"evaluate.proposal": "tree"}, TREE),
    online("the block of a tree for a chain", {"evaluate.tree": {}}, TREE),
    online(
        "a gate that no tree passes", {"evaluate": {"proposal": "tree", "tree": {}, "minAcceptanceLength": 6.5}},
        "spec.evaluate.minAcceptanceLength: given 6.50; accepted: at most tree.steps + 1 = 6, the acceptance length of a "
        "draft that is always right",
    ),
    online(
        "a tree for answers that are sampled", {"evaluate": {"proposal": "tree", "tree": {}, "temperature": 1}},
        "spec.evaluate.temperature: given temperature 1 with proposal tree; accepted: temperature 0, or proposal chain",
    ),
    online("a tree that is a chain", {"evaluate": {"proposal": "tree", "tree": {"topK": 1, "draftTokens": 6}}}),
    online(
        "a tree with more tokens than it has",
        {"evaluate": {"proposal": "tree", "tree": {"steps": 2, "topK": 2, "draftTokens": 8}}},
        "spec.evaluate.tree.draftTokens: given 8; accepted: at most 7, all that a tree of these steps and topK has",
    ),
    *(
        online(f"the engine {url}", {"evaluate.engine": {"url": url, "secretRef": {"name": "engine"}}})
        for url in ("http://vllm:8000", "https://sglang.team.svc.cluster.local/draft/r1", "http://10.0.0.7:30000/")
    ),
    *(
        online(
            f"the engine {url}", {"evaluate.engine.url": url},
            "spec.evaluate.engine.url: given an address that is none, or one with a user, a query or a fragment; accepted: "
            "http://host:port or https://host/path; a key goes into the Secret of evaluate.engine.secretRef",
        )
        for url in ("vllm:8000", "http://ada:secret@vllm", "http://vllm?key=secret", "file:///etc/passwd", "http://")
    ),
    offline("some shards may fail", {"hiddenStates": {"shards": 4, "maxFailedShards": 3}}),
    offline(
        "all shards may fail", {"hiddenStates": {"shards": 4, "maxFailedShards": 4}},
        "spec.hiddenStates.maxFailedShards: given maxFailedShards 4; accepted: below shards (4)",
    ),
    online("eight layers", {"draft.auxLayers": [2, 3, 4, 5, 6, 7, 8, 9]}),
    online("one layer", {"draft.auxLayers": [2]}),
    online("layers that do not start with 2", {"draft.auxLayers": [1, 16, 29]}, LAYERS),
    online("layers that do not ascend", {"draft.auxLayers": [2, 29, 16]}, LAYERS),
    online("a layer twice", {"draft.auxLayers": [2, 3, 4, 5, 6, 7, 8, 8]}, LAYERS),
    online("nothing held out, nothing evaluated", {"data.evalFraction": 0}),
    online(
        "nothing held out to evaluate", {"data.evalFraction": 0, "evaluate": {}},
        "spec.data.evalFraction: given evalFraction 0 with evaluate; accepted: above 0 (evaluate needs held-out prompts), "
        "or no evaluate block",
    ),
    online("a tracker", {"tracking": {"reportTo": ["tensorboard", "wandb"], "wandb": {"project": "drafts"}}}),
    online("a tracker without a block", {"tracking.reportTo": ["swanlab"]}, BOTH % (("swanlab",) * 3)),
    online("a block without a tracker", {"tracking.wandb": {"project": "drafts"}}, BOTH % (("wandb",) * 3)),
    online(
        "another tracker", {"tracking.mlflow": {"uri": "https://m", "experiment": "e"}}, BOTH % (("mlflow",) * 3)
    ),
    online(
        "a class of the system", {"scheduling.priorityClassName": "system-node-critical"},
        "spec.scheduling.priorityClassName: given system-node-critical; accepted: a class that does not start with system-",
    ),
    online("a class without a queue", {"scheduling.workloadPriorityClass": "high"}, QUEUE),
    online("a class with a queue", {"scheduling": {"workloadPriorityClass": "high", "queueName": "gpu"}}),
    online("memory", {"pod.resources": {"requests": {"cpu": 8, "memory": "32Gi"}, "limits": {"memory": "1e10"}}}),
    online("GPUs by limit", {"train.pod.resources.limits": {"nvidia.com/gpu": 8}}, f"spec.train.pod.resources: {GPU_LIMIT}"),
    online("GPUs by request", {"pod.resources.requests": {"amd.com/gpu": "1"}}, f"spec.pod.resources: {GPU_LIMIT}"),
    online("an environment", {"pod.env": [{"name": "NCCL_DEBUG", "value": ""}, {"name": "RANKS", "value": "1"}]}),
    online(
        "two names of the operator's",
        {"pod.env": [{"name": "A", "value": ""}, {"name": "RANK", "value": "1"}, {"name": "PET_X", "value": "1"}]},
        f"spec.pod.env[1].name: given RANK; {ENV}", f"spec.pod.env[2].name: given PET_X; {ENV}",
    ),
    online(
        "a variable of nothing", {"prepare.pod.env": [{"name": "A"}]},
        "spec.prepare.pod.env[0]: given none or both; accepted: exactly one of value, valueFrom",
    ),
    online(
        "a variable of two Secrets",
        {"pod.env": [{"name": "A", "valueFrom": {k: {"name": "n", "key": "k"} for k in ("secretKeyRef", "configMapKeyRef")}}]},
        "spec.pod.env[0].valueFrom: given none or both; accepted: exactly one of secretKeyRef, configMapKeyRef",
    ),
    online(
        "volumes",
        {"pod.volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "c"}}]},
    ),
    online("a volume of nothing", {"pod.volumes": [{"name": "a"}]}, f"spec.pod.volumes[0]: {VOLUME}"),
    online(
        "a volume of two", {"pod.volumes": [{"name": "a", "emptyDir": {}, "secret": {"secretName": "s"}}]},
        f"spec.pod.volumes[0]: {VOLUME}",
    ),
    online("a mount", {"pod.volumeMounts": [{"name": "a", "mountPath": "/database"}]}),
    *(
        online(
            f"a mount at {path}", {"pod.volumeMounts": [{"name": "a", "mountPath": path}]},
            f"spec.pod.volumeMounts[0].mountPath: given {path}; {MOUNT}",
        )
        for path in ("/data", "/data/x", "//data", "/run/draftyard/task")
    ),
    online("labels", {"pod.labels": {"team": "a", "example.org/x": "y", "mydraftyard.dev/x": "y"}}),
    *(
        online(f"the label {key}", {"pod.labels": {key: "x"}}, f"spec.pod.labels: {KEY}")
        for key in ("draftyard.dev/run", "app.kubernetes.io/name", "kueue.x-k8s.io/queue-name", "k8s.io/x")
    ),
    online(
        "annotations that are let through",
        {
            "pod.annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "kueue.x-k8s.io/podset-required-topology": "rack",
            }
        },
    ),
    online(
        "an annotation of Kubernetes", {"pod.annotations": {"kubernetes.io/x": "y"}}, f"spec.pod.annotations: {KEY}"
    ),
    *(
        offline(f"the pod at {at}", {f"{at.removeprefix('spec.')}.labels": {"draftyard.dev/x": "y"}}, f"{at}.labels: {KEY}")
        for at in PODS
    ),
    online(
        "entries that are there twice",
        {
            "tracking.reportTo": ["tensorboard", "tensorboard"],
            "pod.env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
            "train.pod.imagePullSecrets": [{"name": "s"}, {"name": "s"}],
            "prepare.pod.volumeMounts": [{"name": "s", "mountPath": "/x"}, {"name": "t", "mountPath": "/x"}],
        },
        *(
            f"spec.{path}: given \"{given}\" twice; accepted: each {key} once"
            for path, given, key in (
                ("tracking.reportTo", "tensorboard", "entry"), ("pod.env", "A", "name"),
                ("train.pod.imagePullSecrets", "s", "name"), ("prepare.pod.volumeMounts", "/x", "mountPath"),
            )
        ),
    ),
    offline(
        "several rules at once",
        {"data.maxLength": 10000, "train.tokensPerBatch": 10000, "hiddenStates.parallelism": 2, "target.model": "x"},
        "spec.train.rowTokens: given rowTokens 8192; accepted: at least data.maxLength (10000), since a row must hold the "
        "longest sample",
        "spec.train.tokensPerBatch: given tokensPerBatch 10000; accepted: a multiple of rowTokens (8192)",
        CLAIM,
        f'spec.target.model: given "x"; {URI}',
    ),
)  # fmt: skip
