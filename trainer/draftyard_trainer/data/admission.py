"""What `prepare` refuses before anything costs time: sources, layers, exports in the way, empty splits."""

from __future__ import annotations

import json
from pathlib import Path

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, PUBLISHED, export_path
from draftyard_api.progress import DatasetCounts
from draftyard_api.reasons import Reason
from draftyard_api.spec import DataSource, S3Source
from draftyard_api.storage_uri import local_path
from draftyard_api.task import PrepareTask
from draftyard_trainer.data.files import require_file
from draftyard_trainer.storage.store import Store

FEWEST_LAYERS = 7
"""Below it the default layers 2, L/2, L-3 are not ascending."""
FIRST_LAYER = 2
"""Both engines capture it whatever else is asked for."""


def data_file(source: DataSource) -> Path:
    """The file of conversations. Raises Failure: UNSUPPORTED for another kind of source, NOT_FOUND without the file."""
    # a claim is a folder by now: whoever wrote the task knows where it is mounted
    path = fetch_objects(source.s3) if source.s3 else local_path(source.file.uri) if source.file else None
    if path is None:
        given = next(name for name in ("preset", "s3", "file") if getattr(source, name) is not None)
        raise Failure(
            ExitCode.UNSUPPORTED,
            Reason.TASK_REJECTED,
            f"data.source: given {given}; accepted: data.source.file with a file that the pod can open, which is all "
            "that this version reads; copy the conversations to a claim",
        )
    require_file(path)
    return path


def fetch_objects(source: S3Source) -> Path:
    """Local copies of an object, or of all objects below a prefix. Raises Failure."""
    # boto3 takes half a second to load, which other sources should not cost
    from draftyard_trainer.storage.bucket import Bucket  # noqa: PLC0415
    from draftyard_trainer.storage.s3 import download_folder  # noqa: PLC0415

    location = storage_uri.parse(source.uri)
    bucket = Bucket.of(location.authority, source, "data")
    try:
        return download_folder(bucket, location.path, lambda _name: True).folder
    except FileNotFoundError as error:
        message = f"data.source.s3.uri: given {source.uri}; there is no object below it; check bucket and prefix"
        raise Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message) from error


def resolve_aux_layers(given: tuple[int, ...] | None, num_layers: int, model: str) -> tuple[int, ...]:
    """The captured layers as indices into `hidden_states`: as given, or 2, L/2, L-3. Raises Failure(UNSUPPORTED)."""
    if given is None:
        if num_layers >= FEWEST_LAYERS:
            return (FIRST_LAYER, num_layers // 2, num_layers - 3)
        raise unsupported_layers(
            f"given none, and {model} has {num_layers} layers; accepted: the default for at least {FEWEST_LAYERS} "
            f"layers; name them, from 1 to {num_layers - 1}"
        )
    # `hidden_states[L]` is after the final norm in some engines and before it in others: L is no choice
    outside = [layer for layer in given if not 1 <= layer < num_layers]
    if outside:
        listed = ", ".join(map(str, outside))
        raise unsupported_layers(f"given {listed}; accepted: 1 to {num_layers - 1} for {model} ({num_layers} layers)")
    if list(given) != sorted(set(given)):
        raise unsupported_layers(f"given {list(given)}; accepted: distinct layers in ascending order")
    if given[0] != FIRST_LAYER:
        raise unsupported_layers(
            f"given {given[0]} first; accepted: {FIRST_LAYER} first, as SGLang and vLLM capture it"
        )
    return given


def unsupported_layers(what: str) -> Failure:
    """Layers that this target, or an engine, does not have."""
    return Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, f"draft.auxLayers: {what}")


def is_already_trained(store: Store, task: PrepareTask, fingerprint: str) -> bool:
    """Whether a draft with this fingerprint is published. Raises Failure(EXISTS) when one may not be replaced."""
    folder = export_path(task.run)
    if_exists = task.export.if_exists
    # an export without PUBLISHED.json is an attempt that was not finished, or one below the gate
    if if_exists == "Overwrite" or not store.exists(f"{folder}/{PUBLISHED}"):
        return False
    found = published_fingerprint(store, f"{folder}/{MANIFEST}")
    if if_exists == "Skip" and found == fingerprint:
        return True
    whose = "of the same fingerprint" if found == fingerprint else f"with another fingerprint ({found or 'unknown'})"
    raise Failure(
        ExitCode.EXISTS,
        Reason.OUTPUT_EXISTS,
        f"export.ifExists: given {if_exists}, and {folder} holds a published draft {whose}; this run has "
        f"{fingerprint}; accepted: another metadata.name, or export.ifExists: Overwrite",
    )


def published_fingerprint(store: Store, manifest: str) -> str | None:
    """The fingerprint that an export's manifest names, if it can be read."""
    try:
        found = json.loads(store.read(manifest)).get("fingerprint")
    except (FileNotFoundError, ValueError, AttributeError):
        return None
    return str(found) if found else None


def check_split(counted: DatasetCounts, task: PrepareTask) -> None:
    """Raises Failure(BAD_DATA) when a split that is needed is empty."""
    given = f"data.evalFraction: given {task.data.eval_fraction}, which holds out"
    if task.evaluates and not counted.held_out_documents:
        what = f"{given} none of {counted.documents} documents; accepted: a fraction that holds out at least one, since"
        advice = "evaluate needs held-out prompts; raise it, or use more conversations"
    elif not counted.train_documents:
        what = f"{given} all of {counted.documents} documents; accepted: a fraction that leaves some to train from;"
        advice = "lower it, or use more conversations"
    else:
        return
    raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, f"{what} {advice}")
