"""Where the blocks and the final norm of any decoder are: families name them differently, and nest them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason

BLOCKS = ("layers", "h", "blocks")
NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
SHOWN_MODULES = 20


@dataclass(frozen=True, eq=False)
class Decoder:
    """The part of a causal LM that turns tokens into final hidden states."""

    backbone: nn.Module
    """Called with token ids; it runs all blocks and the final norm, and no head."""
    blocks: nn.ModuleList
    norm: nn.Module
    """Its output is the input of the head."""


def find_decoder(model: nn.Module, num_layers: int, name: str) -> Decoder:
    """The outermost module with `num_layers` blocks and a final norm. Raises Failure(UNSUPPORTED)."""
    for module in model.modules():
        children = dict(module.named_children())
        blocks = next((children[child] for child in BLOCKS if child in children), None)
        norm = next((children[child] for child in NORMS if child in children), None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) == num_layers and norm is not None:
            return Decoder(module, blocks, norm)
    found = [f"{path} ({type(module).__name__})" for path, module in model.named_modules() if path.count(".") < 2]
    raise Failure(
        ExitCode.UNSUPPORTED,
        Reason.TARGET_UNSUPPORTED,
        f"target.model: given {name}; it has no module with {num_layers} blocks ({' or '.join(BLOCKS)}) and a final "
        f"norm ({' or '.join(NORMS)}); found: {', '.join(found[1 : SHOWN_MODULES + 1])}; accepted: a decoder of that "
        "kind, whose hidden states can be captured",
    )


def require_layers(aux_layers: tuple[int, ...], num_layers: int, name: str) -> None:
    """Raises Failure(UNSUPPORTED) for layers that the target has not: 1 is the output of the first block."""
    outside = [layer for layer in aux_layers if not 1 <= layer < num_layers]
    if outside:
        raise Failure(
            ExitCode.UNSUPPORTED,
            Reason.TARGET_UNSUPPORTED,
            f"draft.auxLayers: given {', '.join(map(str, outside))}; accepted: 1 to {num_layers - 1} for {name}, which "
            f"has {num_layers} blocks",
        )
