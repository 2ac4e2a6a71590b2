"""Rules of the block `evaluate`."""

from __future__ import annotations

import math
import re

from draftyard_api.rule import Json, Rule, broken

ENGINE_URL = "^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?$"
"""No user and no query: what is written there ends in logs."""


def steps_of(block: Json) -> float:
    """Depth of the tree; without a tree, which is another rule's business, any gate holds."""
    return float(block["tree"]["steps"]) if "tree" in block else math.inf


def nodes_of(tree: Json) -> int:
    """Tokens that a tree can have, the verified one included."""
    top_k = int(tree["topK"])
    return 1 + top_k + (int(tree["steps"]) - 1) * top_k * top_k


EVALUATE_RULES: tuple[Rule, ...] = (
    Rule(
        "spec.evaluate", "minAcceptanceLength",
        "!has(self.minAcceptanceLength) || self.proposal != 'chain' || "
        "self.minAcceptanceLength <= double(self.draftTokens + 1)",
        "given %.2f; accepted: at most draftTokens + 1 = %d, the acceptance length of a draft that is always right",
        ("self.minAcceptanceLength", "self.draftTokens + 1"),
        lambda block: broken(
            block["proposal"] != "chain" or block.get("minAcceptanceLength", 1) <= block["draftTokens"] + 1,
            block.get("minAcceptanceLength"), block["draftTokens"] + 1,
        ),
    ),
    Rule(
        "spec.evaluate", "minAcceptanceLength",
        "!has(self.minAcceptanceLength) || !has(self.tree) || self.proposal != 'tree' || "
        "self.minAcceptanceLength <= double(self.tree.steps + 1)",
        "given %.2f; accepted: at most tree.steps + 1 = %d, the acceptance length of a draft that is always right",
        ("self.minAcceptanceLength", "self.tree.steps + 1"),
        lambda block: broken(
            block["proposal"] != "tree" or block.get("minAcceptanceLength", 1) <= steps_of(block) + 1,
            block.get("minAcceptanceLength"), steps_of(block) + 1,
        ),
    ),
    Rule(
        # No list of kind set: the API server compares those without their order, and the first one decides.
        "spec.evaluate", "promptSets", "self.promptSets.all(x, self.promptSets.exists_one(y, y == x))",
        "given a set twice; accepted: each once", (),
        lambda block: broken(len(set(block["promptSets"])) == len(block["promptSets"])),
    ),
    Rule(
        "spec.evaluate", "promptFile", "('file' in self.promptSets) == has(self.promptFile)",
        "given file in only one of evaluate.promptSets and evaluate.promptFile; accepted: both, or neither", (),
        lambda block: broken(("file" in block["promptSets"]) == ("promptFile" in block)),
    ),
    Rule(
        "spec.evaluate", "tree", "(self.proposal == 'tree') == has(self.tree)",
        "given only one of proposal tree and the block tree; accepted: both, or neither (tree: {} takes every default)",
        (), lambda block: broken((block["proposal"] == "tree") == ("tree" in block)),
    ),
    Rule(
        "spec.evaluate", "temperature", "self.temperature == 0 || self.proposal == 'chain'",
        "given temperature 1 with proposal tree; accepted: temperature 0, or proposal chain", (),
        lambda block: broken(block["temperature"] == 0 or block["proposal"] == "chain"),
    ),
    Rule(
        "spec.evaluate.tree", "draftTokens",
        "self.draftTokens <= 1 + self.topK + (self.steps - 1) * self.topK * self.topK",
        "given %d; accepted: at most %d, all that a tree of these steps and topK has",
        ("self.draftTokens", "1 + self.topK + (self.steps - 1) * self.topK * self.topK"),
        lambda tree: broken(tree["draftTokens"] <= nodes_of(tree), tree["draftTokens"], nodes_of(tree)),
    ),
    Rule(
        "spec.evaluate.engine", "url", f"self.url.matches('{ENGINE_URL}')",
        "given an address that is none, or one with a user, a query or a fragment; accepted: http://host:port or "
        "https://host/path; a key goes into the Secret of evaluate.engine.secretRef", (),
        lambda engine: broken(re.fullmatch(ENGINE_URL, engine["url"])),
    ),
)  # fmt: skip
