"""Rules that span several fields: one table, as CEL for the API server and as Python for everybody else."""

from __future__ import annotations

import re

from draftyard_api.evaluate_rules import EVALUATE_RULES
from draftyard_api.names import MAX_RUN_NAME, RUN_NAME_PATTERN
from draftyard_api.pod_rules import POD_RULES
from draftyard_api.rule import Check, Json, Rule, Values, broken, each_once, exactly_one, optional_field
from draftyard_api.storage_uri import ACCEPTED, CLUSTER_PATTERN, is_in_cluster

FULL_COMMIT = "^[0-9a-f]{40}$"
URL_PATTERN = "^https?://[^/?#@ ]+(/[^?#@ ]*)?$"
SIZE_PATTERN = "^[0-9]+([.][0-9]+)?(k|[MGTPE]|[KMGTPE]i)?$"
# How many pairs of neighbours the longest list of layers has.
NEIGHBOURS = "[0, 1, 2, 3, 4, 5, 6]"


# -- Checks that need more than a line --------------------------------------------------------------


def needs_one_writer(spec: Json) -> bool:
    """Whether the workspace is a new claim that only one pod can mount."""
    template = spec["workspace"].get("pvc", {}).get("claimTemplate")
    return template is not None and "ReadWriteMany" not in template["accessModes"]


def has_several_writers(spec: Json) -> bool:
    """Whether several pods write into the workspace at the same time."""
    blocks = (spec.get(name, {}) for name in ("hiddenStates", "regenerate"))
    return bool(spec["train"]["nodes"] > 1 or any(block.get("parallelism", 1) > 1 for block in blocks))


def needs_pods_with_target(spec: Json) -> bool:
    """Whether the stage's own pods let the target answer, each in one process."""
    own = spec["data"].get("regenerate")
    return own is not None and "engine" not in own


def at_least(count: int, bound: int) -> Values | None:
    """A check of two numbers, both told."""
    return broken(count >= bound, count, bound)


def ascends_from_two(layers: list[int]) -> bool:
    """Whether captured layers are in order, and start with the one that every engine reads alike."""
    return layers[0] == 2 and sorted(set(layers)) == layers


def holds_whole_targets(block: str, field: str) -> Check:
    """A check: the GPUs of one pod hold whole copies of the target."""

    def check(spec: Json) -> Values | None:
        count, parallel = spec.get(block, {}).get(field), spec["target"]["tensorParallel"]
        return broken(count is None or count % parallel == 0, count, parallel)

    # Offline, train has no target on its GPUs.
    return check if block != "train" else lambda spec: check(spec) if spec["mode"] == "Online" else None


# -- Rules of one kind ------------------------------------------------------------------------------


def gpu_rule(block: str, field: str) -> Rule:
    """GPUs of one pod are a multiple of what the target needs."""
    path = f"self.{block}.{field}"
    concerns = "self.mode == 'Online'" if block == "train" else f"has(self.{block}) && has({path})"
    return Rule(
        "spec", f"{block}.{field}", f"!({concerns}) || {path} % self.target.tensorParallel == 0",
        f"given {field} %d; accepted: a multiple of target.tensorParallel (%d)",
        (path, "self.target.tensorParallel"), holds_whole_targets(block, field),
    )  # fmt: skip


def location(holder: str, field: str, scheme: str = "", accepted: str = ACCEPTED, takes_files: bool = True) -> Rule:
    """A location that a pod can open; with a scheme, of that kind only."""
    path = f"self.{field}"
    kind = f" && {path}.startsWith('{scheme}')" if scheme else ""
    return Rule(
        holder, field,
        f"!has({path}) || ({path}.matches('{CLUSTER_PATTERN}') && !({path} + '/').contains('/../'){kind})",
        f'given "%s"; accepted: {accepted}', (path,),
        optional_field(field, lambda given: is_in_cluster(given) and given.startswith(scheme)), takes_files,
    )  # fmt: skip


def tracker_rule(tracker: str) -> Rule:
    """A tracker is named and described, or neither."""
    return Rule(
        "spec.tracking", tracker, f"('{tracker}' in self.reportTo) == has(self.{tracker})",
        f"given {tracker} in only one of tracking.reportTo and tracking.{tracker}; accepted: both, or neither", (),
        lambda tracking: broken((tracker in tracking["reportTo"]) == (tracker in tracking)),
    )  # fmt: skip


# -- The table --------------------------------------------------------------------------------------

RULES: tuple[Rule, ...] = (
    Rule(
        "", "metadata.name",
        f"size(self.metadata.name) <= {MAX_RUN_NAME} && self.metadata.name.matches('{RUN_NAME_PATTERN}')",
        'given "%s"; accepted: at most 40 of a-z, 0-9 and "-", a letter first, so that pod names fit into 63',
        ("self.metadata.name",),
        lambda root: broken(
            len(root["metadata"]["name"]) <= MAX_RUN_NAME and re.fullmatch(RUN_NAME_PATTERN, root["metadata"]["name"]),
            root["metadata"]["name"],
        ),
    ),
    Rule(
        "spec", "hiddenStates", "self.mode == 'Offline' || !has(self.hiddenStates)",
        "given mode Online with hiddenStates; accepted: only with mode Offline, which stores hidden states: remove the "
        "block, or set mode: Offline", (), lambda spec: broken(spec["mode"] == "Offline" or "hiddenStates" not in spec),
    ),
    Rule(
        "spec", "hiddenStates", "self.mode == 'Online' || has(self.hiddenStates)",
        "given mode Offline without hiddenStates; accepted: hiddenStates: {} takes every default, or mode: Online", (),
        lambda spec: broken(spec["mode"] == "Online" or "hiddenStates" in spec),
    ),
    Rule(
        "spec", "generate", "self.mode == 'Offline' || !has(self.generate)",
        "given generate with mode Online; accepted: only with mode Offline (Online makes hidden states inside train)",
        (), lambda spec: broken(spec["mode"] == "Offline" or "generate" not in spec),
    ),
    Rule(
        "spec", "backend", "self.train.nodes == 1 || self.backend != 'Job'",
        "given Job with train.nodes %d; accepted: Auto or PyTorchJob (Job trains on one node)", ("self.train.nodes",),
        lambda spec: broken(spec["train"]["nodes"] == 1 or spec["backend"] != "Job", spec["train"]["nodes"]),
    ),
    Rule(
        "spec", "regenerate", "has(self.data.regenerate) || !has(self.regenerate)",
        "given regenerate without data.regenerate; accepted: both (data.regenerate: {} takes every default), or "
        "neither", (), lambda spec: broken("regenerate" in spec["data"] or "regenerate" not in spec),
    ),
    Rule(
        "spec", "target.tensorParallel",
        "!has(self.data.regenerate) || has(self.data.regenerate.engine) || self.target.tensorParallel == 1",
        "given tensorParallel %d with data.regenerate; accepted: 1, or data.regenerate.engine, a server that holds the "
        "target on several GPUs", ("self.target.tensorParallel",),
        lambda spec: broken(
            not needs_pods_with_target(spec) or spec["target"]["tensorParallel"] == 1, spec["target"]["tensorParallel"]
        ),
    ),
    gpu_rule("train", "gpusPerNode"),
    gpu_rule("generate", "gpusPerPod"),
    gpu_rule("evaluate", "gpusPerPod"),
    Rule(
        "spec", "train.rowTokens", "self.train.rowTokens >= self.data.maxLength",
        "given rowTokens %d; accepted: at least data.maxLength (%d), since a row must hold the longest sample",
        ("self.train.rowTokens", "self.data.maxLength"),
        lambda spec: at_least(spec["train"]["rowTokens"], spec["data"]["maxLength"]),
    ),
    Rule(
        "spec.train", "tokensPerBatch", "self.tokensPerBatch % self.rowTokens == 0",
        "given tokensPerBatch %d; accepted: a multiple of rowTokens (%d)", ("self.tokensPerBatch", "self.rowTokens"),
        lambda train: broken(
            train["tokensPerBatch"] % train["rowTokens"] == 0, train["tokensPerBatch"], train["rowTokens"]
        ),
    ),
    Rule(
        "spec", "workspace",
        "!has(self.workspace.pvc) || !has(self.workspace.pvc.claimTemplate) || "
        "self.workspace.pvc.claimTemplate.accessModes.exists(m, m == 'ReadWriteMany') || "
        "(self.train.nodes == 1 && (!has(self.hiddenStates) || self.hiddenStates.parallelism == 1)"
        " && (!has(self.regenerate) || self.regenerate.parallelism == 1))",
        "given a claim without ReadWriteMany, and train.nodes, hiddenStates.parallelism or regenerate.parallelism "
        "above 1, so several pods write; accepted: claimTemplate.accessModes [ReadWriteMany], or workspace.s3", (),
        lambda spec: broken(not needs_one_writer(spec) or not has_several_writers(spec)),
    ),
    Rule(
        "spec.workspace", "", "has(self.pvc) != has(self.s3)",
        "given none or both; accepted: exactly one of pvc, s3", (), exactly_one("pvc", "s3"),
    ),
    Rule(
        "spec.workspace.pvc", "", "has(self.existingClaim) != has(self.claimTemplate)",
        "given none or both; accepted: exactly one of existingClaim, claimTemplate", (),
        exactly_one("existingClaim", "claimTemplate"),
    ),
    Rule(
        "spec.data.source", "", "[has(self.preset), has(self.file), has(self.s3)].filter(x, x).size() == 1",
        "given none or several; accepted: exactly one of preset, file, s3", (), exactly_one("preset", "file", "s3"),
    ),
    Rule(
        "spec.data", "chatTemplate",
        "!has(self.regenerate) || !has(self.regenerate.engine) || self.chatTemplate == 'auto'",
        "given %s with regenerate.engine; accepted: auto, since an engine renders conversations with its own template",
        ("self.chatTemplate",),
        lambda data: broken(
            "engine" not in data.get("regenerate", {}) or data["chatTemplate"] == "auto", data["chatTemplate"]
        ),
    ),
    Rule(
        "spec.data.regenerate.engine", "url", f"self.url.matches('{URL_PATTERN}')",
        'given "%s"; accepted: http:// or https:// with a host and a path, such as https://llama.example/v1; a key '
        "belongs into secretRef", ("self.url",), optional_field("url", lambda url: re.fullmatch(URL_PATTERN, url)),
    ),
    location("spec.target", "model"),
    location("spec.draft", "initFrom"),
    location("spec.data.source.file", "uri", "pvc://", "pvc://claim/path (file:// works in draftyard run only)"),
    location("spec.evaluate.promptFile", "uri", "pvc://", "pvc://claim/path (file:// works in draftyard run only)"),
    location("spec.data.source.s3", "uri", "s3://", "s3://bucket/prefix", takes_files=False),
    location("spec.workspace.s3", "uri", "s3://", "s3://bucket/prefix", takes_files=False),
    Rule(
        "spec.workspace.pvc.claimTemplate", "size", f"self.size.matches('{SIZE_PATTERN}')",
        'given "%s"; accepted: a size such as 200Gi or 4Ti', ("self.size",),
        optional_field("size", lambda size: re.fullmatch(SIZE_PATTERN, size)),
    ),
    Rule(
        "spec.target", "revision", f"!self.trustRemoteCode || self.revision.matches('{FULL_COMMIT}')",
        "given trustRemoteCode without a pinned revision; accepted: a full commit (40 hex digits), since code of the "
        "model repository runs", (),
        lambda target: broken(not target["trustRemoteCode"] or re.fullmatch(FULL_COMMIT, target["revision"])),
    ),
    *EVALUATE_RULES,
    Rule(
        "spec.hiddenStates", "maxFailedShards", "!has(self.shards) || self.maxFailedShards < self.shards",
        "given maxFailedShards %d; accepted: below shards (%d)", ("self.maxFailedShards", "self.shards"),
        lambda states: broken(
            "shards" not in states or states["maxFailedShards"] < states["shards"], states["maxFailedShards"],
            states.get("shards"),
        ),
    ),
    Rule(
        "spec.draft", "auxLayers",
        f"!has(self.auxLayers) || (self.auxLayers[0] == 2 && {NEIGHBOURS}.all(i, i + 1 >= size(self.auxLayers) || "
        "self.auxLayers[i] < self.auxLayers[i + 1]))",
        "given layers that do not start with 2 or do not ascend; accepted: ascending numbers that start with 2, such "
        "as [2, 16, 29]: no other first layer is read alike by all versions of both engines", (),
        lambda draft: broken("auxLayers" not in draft or ascends_from_two(draft["auxLayers"])),
    ),
    Rule(
        "spec", "data.evalFraction", "!has(self.evaluate) || self.data.evalFraction > 0.0",
        "given evalFraction 0 with evaluate; accepted: above 0 (evaluate needs held-out prompts), or no evaluate block",
        (), lambda spec: broken("evaluate" not in spec or spec["data"]["evalFraction"] > 0),
    ),
    Rule(
        "spec", "data.evalFraction", "!has(self.train.earlyStop) || self.data.evalFraction > 0.0",
        "given evalFraction 0 with train.earlyStop; accepted: above 0 (it is decided by held-out documents), or no "
        "earlyStop", (), lambda spec: broken("earlyStop" not in spec["train"] or spec["data"]["evalFraction"] > 0),
    ),
    each_once("spec.tracking", "reportTo"),
    tracker_rule("wandb"),
    tracker_rule("swanlab"),
    tracker_rule("mlflow"),
    Rule(
        "spec.scheduling", "priorityClassName",
        "!has(self.priorityClassName) || !self.priorityClassName.startsWith('system-')",
        "given %s; accepted: a class that does not start with system-", ("self.priorityClassName",),
        optional_field("priorityClassName", lambda name: not name.startswith("system-")),
    ),
    Rule(
        "spec.scheduling", "workloadPriorityClass", "!has(self.workloadPriorityClass) || has(self.queueName)",
        "given workloadPriorityClass without queueName; accepted: both, or neither (only Kueue reads it)", (),
        lambda block: broken("workloadPriorityClass" not in block or "queueName" in block),
    ),
    *POD_RULES,
)  # fmt: skip
