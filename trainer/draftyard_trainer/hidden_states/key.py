"""What decides stored hidden states: two runs share them exactly when all of this is equal."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import transformers

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.schema import Codec, Dtype, Model
from draftyard_trainer.hidden_states.codec import CODEC_VERSION
from draftyard_trainer.hidden_states.record import VERSION
from draftyard_trainer.storage.sealed import seal, unseal
from draftyard_trainer.storage.store import Store

KEY_FILE = "key.json"
TARGET_FILE = "target.safetensors"
PROBE_FILE = "probe.json"
USERS = "users"
"""Folder with one empty object for each run that uses the cache."""


class StatesKey(Model):
    """The key document. What is not in it may change without a new capture: alignment, unroll, loss, the draft."""

    target: str
    """Commit, or content hash of a folder."""
    dtype: Dtype
    """Precision of the stored values."""
    quantisation: str | None
    """How the target's weights are quantised."""
    logit_scale: str
    """Factor of the target's logits; a text, since floats have more than one spelling."""
    soft_cap: str | None
    """Soft cap of the target's logits."""
    tokenizer_sha256: str
    """Tokenizer files."""
    template_sha256: str
    """Chat template."""
    template_kwargs: dict[str, Any]
    """Its arguments."""
    tokens_sha256: str
    """Tokens, masks and split of all documents."""
    aux_layers: tuple[int, ...]
    """Captured layers: indices into `hidden_states`."""
    last: str = "post-norm"
    """Which final state."""
    codec: Codec
    """How states are stored."""
    codec_version: int = CODEC_VERSION
    """Of the codec."""
    calibration: tuple[int, ...] = ()
    """Documents that a codec is calibrated on; `none` needs no calibration."""
    record_version: int = VERSION
    """Format of the records."""
    engine: str = f"transformers {transformers.__version__}"
    """What runs the target."""
    attention: str = "auto"
    """Attention kernel: the engine's own choice for this target."""
    compute_dtype: str
    """Precision of the forward pass."""

    def sha256(self) -> str:
        """Hash of the canonical document."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def name(self) -> str:
        """Folder below `hidden-states/`: 16 hex digits."""
        return self.sha256()[:16]


def read_key(store: Store, folder: str) -> StatesKey | None:
    """The key document of a cache, if there is one that this version can read."""
    try:
        return StatesKey.model_validate_json(unseal(store.read(f"{folder}/{KEY_FILE}")))
    except (FileNotFoundError, ValueError):
        return None


def require_key(store: Store, folder: str, wanted: StatesKey) -> None:
    """Write the key document where there is none. Raises Failure(STALE_INPUT) naming the fields that differ."""
    found = read_key(store, folder)
    if found is None:
        store.publish(f"{folder}/{KEY_FILE}", seal(wanted.model_dump_json(by_alias=True, indent=1).encode()))
        return
    differ = [
        f"{name}: given {getattr(wanted, name)!r}; the cache has {getattr(found, name)!r}"
        for name in StatesKey.model_fields
        if getattr(found, name) != getattr(wanted, name)
    ]
    if differ:
        raise stale(folder, "; ".join(differ))


def stale(where: str, what: str) -> Failure:
    """Stored states that cannot be used as they lie there."""
    return Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, f"{where}: {what}; generate has to run again")
