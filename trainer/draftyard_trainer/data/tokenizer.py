"""The target's tokenizer: loaded, hashed, and asked which tokens end an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.storage import access

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tekken.json",
)
"""What a tokenizer can consist of. The chat template is hashed apart, as it is used."""


def load_tokenizer(folder: Path, model: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a model's folder: masks need offsets. Raises Failure(UNSUPPORTED)."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        access.unless_broken(error)
        what = str(error).strip().splitlines()[0]
        raise unsupported(model, f"its tokenizer cannot be loaded ({what})") from error
    if not tokenizer.is_fast:
        raise unsupported(model, f"{type(tokenizer).__name__} is no fast tokenizer")
    # a tokenizer.json may carry the truncation it was saved with: cut documents would pass unnoticed
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def unsupported(model: str, why: str) -> Failure:
    """A model whose tokenizer cannot give exact masks."""
    return Failure(
        ExitCode.UNSUPPORTED,
        Reason.TARGET_UNSUPPORTED,
        f"target.model: given {model}; {why}; accepted: a model with a tokenizer.json, whose offsets say where each "
        "token comes from",
    )


def tokenizer_sha256(folder: Path) -> str:
    """Hash of the names and contents of the tokenizer's files."""
    digest = hashlib.sha256()
    for name in FILES:
        path = folder / name
        # length-prefixed, so that text cannot move from one file to the next
        if path.is_file():
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def stop_ids(
    folder: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[str]
) -> tuple[int, ...]:
    """Ids that end an answer, ascending: of the generation config, the tokenizer's eos, and `data.stopTokens`.

    Without a generation_config.json the model's config stands in, as it does when the model is served.
    """
    path = folder / "generation_config.json"
    settings = json.loads(path.read_bytes()) if path.is_file() else config
    given = settings.get("eos_token_id")
    # Llama 3.1 lists three ids, of which the tokenizer names one
    ids = {given} if isinstance(given, int) else set(given or ())
    if isinstance(tokenizer.eos_token_id, int):
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids | set(token_ids(tokenizer, stop_tokens, "data.stopTokens"))))


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], field: str) -> tuple[int, ...]:
    """The ids of texts that are one token each, ascending. Raises Failure(BAD_TASK) naming those that are not."""
    vocabulary = tokenizer.get_vocab()
    ids, unknown = [], []
    for text in texts:
        # `▁the` and `<|eot_id|>` are entries of the vocabulary; ` the` is how people write the first
        encoded = [vocabulary[text]] if text in vocabulary else tokenizer.encode(text, add_special_tokens=False)
        if len(encoded) == 1:
            ids.append(int(encoded[0]))
        else:
            unknown.append(text)
    if unknown:
        raise Failure(
            ExitCode.BAD_TASK,
            Reason.TASK_REJECTED,
            f"{field}: given {', '.join(map(repr, unknown))}; accepted: texts that are one token of the target each",
        )
    return tuple(sorted(set(ids)))
