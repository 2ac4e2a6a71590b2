"""Files of a draft that somebody else wrote: safetensors and JSON are read, pickles never."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from draftyard_trainer.draft.header import CONFIG_FILE, read_object

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, eq=False)
class Source:
    """What lies in the folder of a draft."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    files: tuple[str, ...]
    """Names of the files of weights."""


def read(folder: Path) -> Source:
    """Config and tensors. Raises ValueError for what is no draft, or is pickled."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder; accepted: one with a {CONFIG_FILE} and *.safetensors")
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not files:
        raise ValueError(no_safetensors(folder))
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from error
    return Source(read_config(folder), tensors, tuple(path.name for path in files))


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says. Raises ValueError without one."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: no {CONFIG_FILE}; accepted: a draft with its config beside it")
    return read_object(path)


def no_safetensors(folder: Path) -> str:
    """What to do about a folder without weights that may be read."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder}: no *.safetensors; accepted: a draft with its weights in them"
    # the name is quoted by repr, and the whole is shown to a person, never run
    program = (
        f"import torch; from safetensors.torch import save_file; tensors = torch.load({pickles[0]!r}, "
        'map_location="cpu", weights_only=True); save_file({name: tensor.clone().contiguous() for name, tensor in '
        'tensors.items()}, "model.safetensors", metadata={"format": "pt"})'
    )
    return (
        f"{folder}: given {', '.join(pickles)}: pickled, and reading them would run code out of them; accepted: "
        "*.safetensors. Whoever trusts the file can turn it into one where it lies, in an environment of their own "
        f"with torch and safetensors:\n\n    python - <<'PROGRAM'\n    {program}\n    PROGRAM\n\n"
        "Then give the folder again."
    )


def sha256_of(folder: Path, files: tuple[str, ...]) -> str:
    """Hash of the named files, in order, with their names: which draft this is."""
    digest = hashlib.sha256()
    for name in files:
        with (folder / name).open("rb") as content:
            digest.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
