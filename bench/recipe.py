"""What every trainer of the comparison of drafts is told alike, as files that cross from process to process.

Standard library only: peers read it in environments of their own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cases import Shape

TARGET_FILE = "target.safetensors"
"""The target's `embedding`, `head` and `norm`."""
CHOICES = "choices"
"""A peer's own first choices on the probe document, `[T, n - 1]` draft ids: its export must choose alike."""


@dataclass(frozen=True)
class Recipe:
    """One comparison. Whatever is not in here is each trainer's own default."""

    steps: int = 240
    row_tokens: int = 512
    """Tokens of one optimizer step at most."""
    ttt_steps: int = 3
    """What is served is what is trained: with K = 3 later steps take time and are never asked."""
    learning_rate: float = 0.001
    """Peak."""
    draft_tokens: int = 3
    """K."""
    trained: int = 512
    """Documents to learn from."""
    held_out: int = 64
    """Prompts that drafts are served on."""
    reply: int = 128
    """Tokens of an answer at most."""

    def key(self) -> str:
        """Name of the folder in which results of these very settings are kept."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Plan:
    """What a peer does in one training."""

    recipe: Recipe
    shape: Shape
    states: str
    """File with the documents and their states."""
    steps: tuple[tuple[int, ...], ...]
    """Documents of each optimizer step, the same for all trainers of a seed."""
    probe: int
    """Document, never trained on, of which the first choices are told."""

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """What `write` wrote."""
        given = json.loads(path.read_text())
        steps = tuple(tuple(step) for step in given["steps"])
        return cls(Recipe(**given["recipe"]), Shape(**given["shape"]), given["states"], steps, given["probe"])


def plan_file(folder: Path, seed: int) -> Path:
    """The plan of a seed."""
    return folder / f"plan-{seed}.json"


def start_file(folder: Path, seed: int) -> Path:
    """The first weights of a seed, under the names of an export."""
    return folder / f"start-{seed}.safetensors"


def trained_file(folder: Path, trainer: str, seed: int) -> Path:
    """What a peer leaves: its weights under its own names, and its choices."""
    return folder / f"{trainer}-{seed}.safetensors"
