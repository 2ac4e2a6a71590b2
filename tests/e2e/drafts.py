"""Drafts that runs leave on their claims: kept beside the cluster, and compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import layout
import numpy as np
import team
from safetensors.numpy import load_file

WEIGHTS = "model.safetensors"


def volume(name: str) -> Path:
    """Where the claim of a run lies on this machine."""
    return layout.VOLUMES / team.asked("get", f"pvc/{name}-workspace")["spec"]["volumeName"]


def kept(name: str) -> Path:
    """Where `keep` puts the weights of a draft."""
    return layout.FOLDER / "drafts" / f"{name}.safetensors"


def keep(name: str) -> None:
    """Copy the weights that a run has exported, for when it is gone. Raises ValueError when there are none."""
    (found,) = volume(name).rglob(f"export/{name}/{WEIGHTS}")
    kept(name).parent.mkdir(exist_ok=True)
    shutil.copy(found, kept(name))


def largest_difference(one: str, other: str) -> float:
    """Between the weights of two drafts that were kept; infinite when one is not there, or has other ones."""
    if not (kept(one).exists() and kept(other).exists()):
        return float("inf")
    first, second = load_file(kept(one)), load_file(kept(other))
    if {name: found.shape for name, found in first.items()} != {name: found.shape for name, found in second.items()}:
        return float("inf")
    return max(gap(first[name], second[name]) for name in first)


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two arrays, whatever their type."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))
