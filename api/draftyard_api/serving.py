"""The command lines that serve a published draft, for the status, the report and the terminal."""

from __future__ import annotations

import json
import shlex

from draftyard_api import storage_uri
from draftyard_api.spec import Tree


def vllm(target: str, draft: str, draft_tokens: int) -> str:
    """VLLM with a chain of `draft_tokens` proposals."""
    speculative = {"method": "eagle3", "model": draft, "num_speculative_tokens": draft_tokens}
    return shlex.join(["vllm", "serve", target, "--speculative-config", json.dumps(speculative, separators=(",", ":"))])


def sglang(target: str, draft: str, draft_tokens: int, tree: Tree | None = None) -> str:
    """SGLang with the same chain, or with a tree; its `num-draft-tokens` counts the verified token too."""
    shape = tree or Tree(steps=draft_tokens, top_k=1, draft_tokens=draft_tokens + 1)
    words = ["python", "-m", "sglang.launch_server", "--model-path", target, "--speculative-algorithm", "EAGLE3"]
    words += ["--speculative-draft-model-path", draft, "--speculative-num-steps", str(shape.steps)]
    words += ["--speculative-eagle-topk", str(shape.top_k), "--speculative-num-draft-tokens", str(shape.draft_tokens)]
    return shlex.join(words)


def location(uri: str) -> str:
    """A location as an engine's command line takes it: a folder, or org/name; others stay what they are."""
    found = storage_uri.parse(uri)
    return found.path if found.scheme in ("file", "hf") else uri
