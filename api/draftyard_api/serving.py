"""The command lines that serve a published draft, for the status, the report and the terminal."""

from __future__ import annotations

import json
import shlex

from draftyard_api import storage_uri


def vllm(target: str, draft: str, draft_tokens: int) -> str:
    """VLLM with a chain of `draft_tokens` proposals."""
    speculative = {"method": "eagle3", "model": draft, "num_speculative_tokens": draft_tokens}
    return shlex.join(["vllm", "serve", target, "--speculative-config", json.dumps(speculative, separators=(",", ":"))])


def sglang(target: str, draft: str, draft_tokens: int) -> str:
    """SGLang with the same chain; its `num-draft-tokens` counts the verified token too."""
    words = ["python", "-m", "sglang.launch_server", "--model-path", target, "--speculative-algorithm", "EAGLE3"]
    words += ["--speculative-draft-model-path", draft, "--speculative-num-steps", str(draft_tokens)]
    words += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(draft_tokens + 1)]
    return shlex.join(words)


def location(uri: str) -> str:
    """A location as an engine's command line takes it: a folder, or org/name; others stay what they are."""
    found = storage_uri.parse(uri)
    return found.path if found.scheme in ("file", "hf") else uri
