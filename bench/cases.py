"""The shapes that trainers are compared at."""

from __future__ import annotations

from dataclasses import dataclass

TTT_STEPS = 7
DECAY = 0.8
LEARNING_RATE = 1e-4
NUM_AUX = 3


@dataclass(frozen=True)
class Shape:
    """A draft and its target. H 576 is SmolLM2's own; the others grow one number that costs."""

    hidden_size: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    draft_vocab_size: int
    head_dim: int = 64
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class Case:
    """One row of the table: documents of at most `length` tokens, `batch` of them in one optimizer step."""

    name: str
    shape: Shape
    length: int
    batch: int = 1
    loss_share: float | None = 1.0
    """Share of supervised tokens; None takes lengths and masks of real conversations."""

    @property
    def is_real(self) -> bool:
        """Whether lengths and masks are those of real conversations."""
        return self.loss_share is None

    @property
    def is_dense(self) -> bool:
        """One full document with everything supervised: nothing to save by leaving rows out."""
        return self.batch == 1 and self.loss_share == 1.0


SMOLLM2 = Shape(576, 9, 3, 1536, 49152, 8192)
MIDDLE = Shape(1024, 16, 8, 2816, 32000, 8000)
WIDE = Shape(1024, 16, 8, 2816, 32000, 32000)
NARROW = Shape(256, 4, 2, 704, 8192, 2048)

CASES = (
    Case("h576-t512", SMOLLM2, 512),
    Case("h576-t512-share0.6", SMOLLM2, 512, loss_share=0.6),
    Case("h576-t512-b4", SMOLLM2, 512, batch=4, loss_share=None),
    Case("h1024-d8000-t512", MIDDLE, 512),
    Case("h1024-d32000-t2048", WIDE, 2048),
    Case("h1024-d32000-b3", WIDE, 1024, batch=3, loss_share=None),
    Case("h256-t2048", NARROW, 2048),
    Case("h256-t4096", NARROW, 4096),
    Case("h256-t8192", NARROW, 8192),
)


def chosen(names: str) -> tuple[Case, ...]:
    """The cases with these names, comma-separated; all for an empty text. Raises SystemExit for an unknown name."""
    known = {case.name: case for case in CASES}
    wanted = [name for name in names.split(",") if name] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"--cases: {', '.join(unknown)}; accepted: {', '.join(known)}")
    return tuple(known[name] for name in wanted)
