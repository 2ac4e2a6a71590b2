"""Drafts as others write them: SpecForge, speculators, EAGLE. Recognised, and mapped to ours, or refused.

What each of them means by a name, a layer id or a flag is decided here, once, and told line by line: a draft that is
read in another sense than it was trained in proposes worse tokens, with no error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from draftyard_trainer.draft import foreign_config, foreign_files
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.files import assemble_draft
from draftyard_trainer.draft.foreign_files import Source
from draftyard_trainer.draft.header import EMBEDDING
from draftyard_trainer.draft.model import DraftModel

PREFIXES = ("draft_model.", "model.")
"""Of trainers that save the module around the draft."""
LAYER = re.compile(r"^layers\.(\d+)\.")
NOT_OURS = ("verifier_norm.weight", "verifier_lm_head.weight", "rotary_emb.inv_freq")
"""Tensors of the target, and tables that follow from the config."""
MAPS = ("d2t", "t2d")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Line:
    """One row of what is told about a reading."""

    what: str
    found: str
    mapped: str


@dataclass(frozen=True, eq=False)
class Reading:
    """A foreign draft as ours, and how each part of it was read."""

    layout: str
    """Who writes drafts like this."""
    draft: DraftModel
    lines: tuple[Line, ...]
    embedding: Tensor | None
    """Its own embedding table, where it ships one."""
    dtype: str
    """Of its weights, as torch names it."""


@dataclass
class Notes:
    """Lines that are collected on the way."""

    lines: list[Line] = field(default_factory=list)

    def say(self, what: str, found: object, mapped: str) -> None:
        """Add a line."""
        self.lines.append(Line(what, str(found), mapped))


def read_foreign(folder: Path, target: Mapping[str, Any]) -> Reading:
    """The draft in `folder`, for a target with the text config `target`.

    Raises ValueError with one message for what is pickled, what is no EAGLE-3 draft of one Llama layer, what does not
    fit the target, and what cannot be told apart.
    """
    source, notes = foreign_files.read(folder), Notes()
    layout = layout_of(source)
    notes.say("layout", f"{', '.join(sorted(source.files))}", layout)
    tensors = rename(source.tensors, notes)
    embedding = tensors.pop(EMBEDDING, None)
    drop(tensors, notes)
    refuse_other_drafts(tensors)
    config = foreign_config.read(layout, source.config, {name: tuple(t.shape) for name, t in tensors.items()}, target)
    for what, found, mapped in config.notes:
        notes.say(what, found, mapped)
    ids = vocabulary_of(tensors, config.config.vocab_size, notes)
    return Reading(layout, assembled(config.config, tensors, ids), tuple(notes.lines), embedding, dtype_of(tensors))


def layout_of(source: Source) -> str:
    """Who writes checkpoints like this. Raises ValueError for the drafts of other methods."""
    config = source.config
    kind = config.get("speculators_model_type")
    if kind is not None or "speculators_config" in config:
        if kind != "eagle3":
            raise ValueError(f"speculators_model_type: given {kind}; accepted: eagle3")
        return "speculators"
    if config.get("architectures") == ["LlamaForCausalLMEagle3"]:
        return "SpecForge"
    return "EAGLE"


# -- Names -------------------------------------------------------------------------------------


def rename(tensors: Mapping[str, Tensor], notes: Notes) -> dict[str, Tensor]:
    """Tensors under our names. Raises ValueError for further layers, and for two tensors of one name."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = our_name(name)
        if ours in renamed:
            raise ValueError(f"tensors: {ours} is there under two names, such as {name}; accepted: one layer")
        renamed[ours] = tensor
    changed = {name for name in tensors if our_name(name) != name}
    if changed:
        example = min(changed)
        notes.say("names", f"{len(changed)} of {len(tensors)}, such as {example}", f"as {our_name(example)}")
    else:
        notes.say("names", f"{len(tensors)} tensors", "as they are")
    return renamed


def our_name(name: str) -> str:
    """A tensor's name in the portable form. Raises ValueError for one of a further layer."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    layer = LAYER.match(name)
    if layer is None:
        return name
    if int(layer[1]):
        raise ValueError(f"layers: given {name}; accepted: drafts of one layer")
    return f"midlayer.{name[layer.end() :]}"


def drop(tensors: dict[str, Tensor], notes: Notes) -> None:
    """Remove what is the target's, or follows from the config."""
    dropped = sorted(name for name in tensors if name.endswith(NOT_OURS))
    for name in dropped:
        del tensors[name]
    if dropped:
        notes.say("further tensors", ", ".join(dropped), "dropped: the target's, or tables")


def refuse_other_drafts(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for drafts of other kinds, by what they have or lack."""
    if not any(name.startswith("midlayer.") for name in tensors):
        raise ValueError(
            f"tensors: given {sorted(tensors)[:8]}; accepted: an EAGLE-3 draft, with midlayer.* or layers.0.*"
        )
    if "midlayer.hidden_norm.weight" not in tensors:
        raise ValueError(
            "tensors: no hidden_norm.weight: this is an EAGLE-1 or EAGLE-2 draft, whose fc takes one hidden state and "
            "the embedding; accepted: EAGLE-3, whose fc takes the states of several layers"
        )
    normed = sorted(name for name in tensors if name.endswith(("q_norm.weight", "k_norm.weight")))
    if normed:
        raise ValueError(f"tensors: given {', '.join(normed)}: a layer of Qwen3; accepted: a Llama layer, without them")
    biases = sorted(name for name in tensors if name.endswith(".bias"))
    if biases:
        raise ValueError(f"tensors: given {', '.join(biases)}; accepted: no biases (SGLang drops them in silence)")


# -- The draft vocabulary ----------------------------------------------------------------------


def vocabulary_of(tensors: dict[str, Tensor], size: int, notes: Notes) -> Tensor:
    """Target ids of the draft's tokens, ascending, `[D]` int64; the maps are taken out of `tensors`.

    Raises ValueError for maps that contradict each other, or that can be read in two ways.
    """
    d2t, t2d = (tensors.pop(name, None) for name in MAPS)
    head = tensors.get("lm_head.weight")
    if head is None:
        raise ValueError("tensors: no lm_head.weight; accepted: a draft with its own head")
    rows = len(head)
    for name, tensor in (("d2t", d2t), ("t2d", t2d)):
        if tensor is not None and tensor.dtype not in INTEGERS:
            raise ValueError(f"{name}: given {tensor.dtype}; accepted: integers")
    member = None if t2d is None else member_ids(t2d, size)
    if d2t is None:
        if member is None and rows == size:
            notes.say("d2t", "absent", "every token of the target, in its order")
            return torch.arange(size)
        if member is None:
            raise ValueError(f"d2t, t2d: given neither, and a head of {rows} rows; accepted: at least one of them")
        notes.say("d2t", "absent", "from t2d")
        ids = member
    else:
        ids = read_map(d2t.to(torch.int64), member, size, notes)
    if len(ids) != rows:
        raise ValueError(f"d2t: given {len(ids)} tokens; accepted: {rows}, the rows of lm_head.weight")
    if member is not None and not torch.equal(member, ids):
        raise ValueError(f"t2d: names {len(member)} tokens that are not the {len(ids)} of d2t; accepted: the same")
    notes.say("t2d", "absent" if t2d is None else f"{len(member) if member is not None else 0} tokens", "as d2t says")
    return ids


def member_ids(t2d: Tensor, size: int) -> Tensor:
    """Ids that `t2d` marks. Raises ValueError where it is not of the target's vocabulary."""
    if len(t2d) != size:
        raise ValueError(f"t2d: given {len(t2d)} entries; accepted: {size}, the target's vocab_size")
    return t2d.nonzero().flatten()


def read_map(d2t: Tensor, member: Tensor | None, size: int, notes: Notes) -> Tensor:
    """Target ids of `d2t`, which holds offsets to the draft's ids, or the ids themselves. Raises ValueError."""
    readings = {"offsets": d2t + torch.arange(len(d2t)), "ids": d2t}
    legal = {name: ids for name, ids in readings.items() if is_ascending(ids, size)}
    if member is not None and len(member) == len(d2t):
        legal = {name: ids for name, ids in legal.items() if torch.equal(ids, member)}
    if not legal:
        raise ValueError(
            f"d2t: read as offsets or as ids, it is no ascending list inside 0..{size - 1} that t2d agrees with; "
            "accepted: the draft vocabulary of this target"
        )
    if len(legal) == 2 and not torch.equal(*legal.values()):
        raise ValueError("d2t: can be read as offsets and as ids, and there is no t2d; accepted: a checkpoint with t2d")
    ((name, ids), *_) = legal.items()
    notes.say("d2t", f"{name}, {len(ids)} tokens", "as it is" if name == "offsets" else "as offsets")
    return ids


def is_ascending(ids: Tensor, size: int) -> bool:
    """Whether ids are a list of distinct tokens of the target, in order."""
    return bool(len(ids) and ids[0] >= 0 and ids[-1] < size and (ids.diff() > 0).all())


# -- Together ----------------------------------------------------------------------------------


def assembled(config: DraftConfig, tensors: Mapping[str, Tensor], ids: Tensor) -> DraftModel:
    """The draft. Raises ValueError naming tensors that are missing, unknown, misshapen or not finite."""
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[ids] = True
    config = replace(config, draft_vocab_size=len(ids))
    broken = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
    if broken:
        raise ValueError(f"tensors: {', '.join(broken)}: not finite; accepted: numbers")
    maps = {"d2t": ids - torch.arange(len(ids)), "t2d": t2d}
    return assemble_draft(config, {**tensors, **maps}, torch.float32)


def dtype_of(tensors: Mapping[str, Tensor]) -> str:
    """The one dtype of the weights; float32 where they differ."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return str(dtypes.pop()).removeprefix("torch.") if len(dtypes) == 1 else "float32"
