"""Where the target's files lie, which model they are, and what its config says. No weight is loaded here."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import errors
from transformers import AutoConfig

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Target
from draftyard_trainer.storage import access, opening

if TYPE_CHECKING:
    from draftyard_trainer.storage.s3 import Downloaded

CONFIG = "config.json"
TEXT_PATTERNS = ("*.json", "*.txt", "*.jinja", "*.model")
WEIGHT_PATTERNS = ("*.safetensors",)
CODE_PATTERNS = ("*.py",)
STANDARD_NAMES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
BLOCKS = 256
BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Hub:
    """How snapshots are fetched, and how long to wait before each further try while the hub is out of reach."""

    download: Callable[..., str] = huggingface_hub.snapshot_download
    """Has the signature of `huggingface_hub.snapshot_download`."""
    waits_seconds: tuple[float, ...] = (2.0, 8.0, 30.0)


@dataclass(frozen=True, eq=False)
class TargetFiles:
    """A target in a local folder."""

    path: Path
    identity: str
    """The commit; for a folder that is no snapshot of the hub, a hash of its content."""
    config: dict[str, Any]
    """Config of the text model, with the architecture's defaults for all that config.json leaves out."""
    raw_config: dict[str, Any]
    """config.json as it is."""
    model: str
    """Where the user said that it is: for messages."""
    trust_remote_code: bool = False


def locate(target: Target, weights: bool = True, hub: Hub | None = None) -> TargetFiles:
    """Find the target, downloading it from the hub if need be; without `weights` only what tokenizers and configs need.

    Raises Failure: NOT_FOUND, DENIED, UNAVAILABLE (the hub), UNSUPPORTED (a location or an architecture that this
    version cannot read).
    """
    location = storage_uri.parse(target.model)
    if location.scheme == "hf":
        path = fetch_snapshot(target, location.path, weights, hub or Hub())
        identity = path.name
    elif location.scheme == "file":
        path = require_folder(target, Path(location.path))
        identity = content_sha256(path)
    elif location.scheme == "s3":
        found = fetch_from_bucket(target, weights)
        path, identity = found.folder, found.sha256
    else:
        message = (
            f"target.model: given {target.model}; accepted: org/name (the hub), a folder on a claim, s3://bucket/prefix"
        )
        raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
    raw_config = read_config(target, path)
    return TargetFiles(
        path=path,
        identity=identity,
        config=text_config(target, path, raw_config),
        raw_config=raw_config,
        model=target.model,
        trust_remote_code=target.trust_remote_code,
    )


def require_one_gpu(target: Target, what: str) -> None:
    """Raises Failure(UNSUPPORTED) for a target over several GPUs where only one process runs it."""
    if target.tensor_parallel > 1:
        message = (
            f"target.tensorParallel: given {target.tensor_parallel}; accepted in this version: 1, {what}; more only "
            "for mode Offline without an evaluate block"
        )
        raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)


def require_folder(target: Target, path: Path) -> Path:
    """The folder of a local model. Raises Failure(NOT_FOUND)."""
    if not path.is_dir():
        raise not_found(target, f"{path} is no folder")
    return path


def read_config(target: Target, path: Path) -> dict[str, Any]:
    """What config.json says. Raises Failure(NOT_FOUND) without one, Failure(UNSUPPORTED) when it is no JSON object."""
    file = path / CONFIG
    if not file.is_file():
        raise not_found(target, f"{path} has no {CONFIG}")
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise unsupported(target.model, f"its {CONFIG} is no JSON ({error})") from error
    if not isinstance(config, dict):
        raise unsupported(target.model, f"its {CONFIG} is no JSON object")
    return config


def text_config(target: Target, path: Path, raw_config: dict[str, Any]) -> dict[str, Any]:
    """The text model's config as plain JSON: what is written wins, what is left out is the architecture's default."""
    try:
        loaded = AutoConfig.from_pretrained(path, trust_remote_code=target.trust_remote_code).get_text_config()
    except (ValueError, KeyError, OSError, ImportError) as error:
        access.unless_broken(error)
        what = str(error).strip().splitlines()[0]
        raise unsupported(target.model, f"transformers cannot read its {CONFIG} ({what})") from error
    filled: dict[str, Any] = json.loads(loaded.to_json_string(use_diff=False))
    # some families have names of their own for these, such as n_layer
    filled |= {name: getattr(loaded, name) for name in STANDARD_NAMES if hasattr(loaded, name)}
    written = raw_config.get("text_config", raw_config)
    # names with an underscore say where the config was loaded from: they would make one model look like two
    return {name: value for name, value in {**filled, **written}.items() if not name.startswith("_")}


# -- The hub --------------------------------------------------------------------------------


def fetch_from_bucket(target: Target, weights: bool) -> Downloaded:
    """Copy a model out of a bucket, or find the copy. Raises Failure."""
    patterns = wanted_patterns(target, weights)

    def wants(name: str) -> bool:
        return any(fnmatch(name.rpartition("/")[2], pattern) for pattern in patterns)

    try:
        return opening.fetch_objects(target.model, target.s3, "target", wants)
    except FileNotFoundError as error:
        raise not_found(target, "there is no object below it") from error


def wanted_patterns(target: Target, weights: bool) -> tuple[str, ...]:
    """Names of the files that are needed; code only where it may run."""
    code = CODE_PATTERNS if target.trust_remote_code else ()
    return (*TEXT_PATTERNS, *(WEIGHT_PATTERNS if weights else ()), *code)


def fetch_snapshot(target: Target, repository: str, weights: bool, hub: Hub) -> Path:
    """Download a snapshot, or find it in the cache; its folder's name is the commit. Raises Failure."""
    patterns = wanted_patterns(target, weights)
    for wait in (*hub.waits_seconds, None):
        try:
            return Path(hub.download(repository, revision=target.revision, allow_patterns=list(patterns)))
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
            failure = hub_failure(target, error)
            if failure.code is not ExitCode.UNAVAILABLE or wait is None:
                raise failure from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def hub_failure(target: Target, error: Exception) -> Failure:
    """What the hub's answer means to the user."""
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, errors.GatedRepoError):
        message = (
            f"target.model: given {target.model}; the hub refuses access ({status}): it is gated, private, or "
            "misspelt; set target.tokenSecretRef to a Secret with an HF_TOKEN that may read it"
        )
        return Failure(ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED, message)
    if isinstance(error, errors.RevisionNotFoundError):
        return not_found(target, f"the hub knows no revision {target.revision} of it (target.revision)")
    if status == 404:
        return not_found(target, "the hub knows no such repository")
    what = f"the hub answers {status}" if status else "the hub is out of reach"
    message = f"target.model: given {target.model}; {what}: {str(error).strip().splitlines()[0]}"
    return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)


# -- A local folder's identity ----------------------------------------------------------------


def content_sha256(folder: Path) -> str:
    """Hash of what decides a local model: names, sizes and content samples of its configs, tokenizer and weights.

    Of each file 256 evenly spaced blocks of 4 KiB are read, which is all of a small one: a header alone would not tell
    a fine-tuned model from its parent, and reading everything takes minutes for a large one.
    """
    digest = hashlib.sha256()
    for file in sorted(deciding_files(folder)):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as content:
            if file.suffix == ".safetensors":
                header_bytes = int.from_bytes(content.read(8), "little")
                digest.update(content.read(min(header_bytes, size)))
            for offset in block_offsets(size):
                content.seek(offset)
                digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()


def deciding_files(folder: Path) -> Iterator[Path]:
    """Files that a model is loaded from; hidden ones, and the model card, say nothing about it."""
    for pattern in (*TEXT_PATTERNS, *WEIGHT_PATTERNS, *CODE_PATTERNS):
        yield from (path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


def block_offsets(size: int) -> list[int]:
    """Where the sampled blocks of a file start, evenly spaced from its first to its last block, ascending."""
    if size <= BLOCKS * BLOCK_BYTES:
        return list(range(0, size, BLOCK_BYTES))
    return [(size - BLOCK_BYTES) * block // (BLOCKS - 1) for block in range(BLOCKS)]


def not_found(target: Target, why: str) -> Failure:
    """A target that is not there."""
    message = (
        f"target.model: given {target.model}; {why}; accepted: a repository of the hub, or a folder with a "
        "config.json, a tokenizer and *.safetensors"
    )
    return Failure(ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND, message)


def unsupported(model: str, why: str) -> Failure:
    """A target that is there, and cannot be used."""
    message = f"target.model: given {model}; {why}; accepted: a causal language model that transformers can load"
    return Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
