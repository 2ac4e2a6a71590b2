"""What may not change: as CEL for the API server, and as Python for everybody else.

What decides the result is frozen from `status.frozenTime` on; a claim and a number of attempts may only grow. Both
forms and the frozen hash in `plan.py` come from the same tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from draftyard_api.schema import QUANTITY_PATTERN

Json = Any

DECIMAL_UNITS = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")
BINARY_UNITS = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
MULTIPLES = {
    **{unit: Fraction(1000) ** power for power, unit in enumerate(DECIMAL_UNITS, start=-3)},
    **{unit: Fraction(1024) ** power for power, unit in enumerate(BINARY_UNITS, start=1)},
}
S3_ACCESS = ("endpoint", "region", "credentialsSecretRef")
"""How a bucket is reached, not what lies there."""
ENGINE_ACCESS = ("url", "secretRef", "concurrency")
"""How an engine is reached, not what it serves."""
FROZEN_TARGET = ("model", "revision", "dtype", "trustRemoteCode")
FROZEN_HIDDEN_STATES = ("shards", "codec", "maxFailedShards")
FROZEN_TRAIN = (
    "epochs", "tokensPerBatch", "rowTokens", "tttSteps", "unroll", "lossMaskAlignment", "objective", "outOfVocab",
    "learningRate", "warmupRatio", "gradClip", "weightDecay", "seed", "earlyStop",
)  # fmt: skip
ADDED_LATER: dict[str, dict[str, Json]] = {
    "train": {"unroll": "full"},
    "evaluate": {"promptSets": ["heldOut"], "temperature": 0, "proposal": "chain"},
}
"""Frozen fields that earlier versions did not have. At these values they are left out of the hash, so that what was
trained before is found again."""
FROZEN_EVALUATE = (
    "minAcceptanceLength", "draftTokens", "maxPrompts", "maxNewTokens", "promptSets", "promptFile", "temperature",
    "proposal", "tree",
)  # fmt: skip


@dataclass(frozen=True)
class FrozenBlock:
    """A block of the spec that decides the result."""

    name: str
    only: tuple[str, ...] = ()
    """Its frozen fields; empty: all."""
    free: tuple[str, ...] = ()
    """Paths below it that may change: how something is reached, not what it is."""

    @property
    def text(self) -> str:
        """What a person reads who changes it."""
        return (
            f"spec.{self.name} decides the result, and is frozen since status.frozenTime (a GPU stage started, or the "
            "run ended); create a DraftTraining with another name"
        )

    def keeps(self, below: str) -> bool:
        """Whether a path below the block is frozen."""
        return below not in self.free and (not self.only or below.partition(".")[0] in self.only)

    def is_whole(self, below: str) -> bool:
        """Whether all that is below a path is frozen, so that it can be compared at once."""
        if not below:
            return not self.only and not self.free
        return not any(free.startswith(f"{below}.") for free in self.free)


def paths(prefix: str, fields: tuple[str, ...]) -> tuple[str, ...]:
    """Fields of a block as paths."""
    return tuple(f"{prefix}.{field}" for field in fields)


BLOCKS = (
    FrozenBlock("mode"),
    FrozenBlock("backend"),
    FrozenBlock("target", only=FROZEN_TARGET),
    FrozenBlock("draft", free=("s3",)),
    FrozenBlock("data", free=(*paths("source.s3", S3_ACCESS), *paths("regenerate.engine", ENGINE_ACCESS))),
    FrozenBlock("workspace", free=(*paths("pvc.claimTemplate", ("size", "reclaim")), *paths("s3", S3_ACCESS))),
    FrozenBlock("hiddenStates", only=FROZEN_HIDDEN_STATES),
    FrozenBlock("export"),
    FrozenBlock("train", only=FROZEN_TRAIN),
    FrozenBlock("evaluate", only=FROZEN_EVALUATE),
)


# -- For the API server ---------------------------------------------------------------------------------------------


def frozen_rule(block: FrozenBlock, spec_schema: Json) -> str:
    """The CEL rule of a block, for the root: only there the status can be read."""
    equal = same(block, spec_schema, "")
    return f"!has(oldSelf.status) || !has(oldSelf.status.frozenTime) || ({equal})"


def same(block: FrozenBlock, holder: Json, below: str) -> str:
    """CEL: the frozen part of what is at `below` is unchanged. `holder` is the schema of the block around it."""
    path = ".".join(part for part in ("spec", block.name, below) if part)
    name = path.rpartition(".")[2]
    schema = holder["properties"][name]
    if block.is_whole(below):
        equal = f"self.{path} == oldSelf.{path}"
    else:
        deeper = [f"{below}.{field}".lstrip(".") for field in schema["properties"]]
        equal = " && ".join(same(block, schema, field) for field in deeper if block.keeps(field))
    if name in holder.get("required", ()) or "default" in schema:
        return equal
    # Comparing whole optional objects costs over the budget; comparing presence first does not.
    return f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || ({equal}))"


@dataclass(frozen=True)
class GrowingField:
    """A field that may become larger, never smaller."""

    at: str
    field: str
    cel: str
    text: str
    args: tuple[str, ...]


# A quantity is a number or a text; turning the number into text costs over 100 times the budget.
SIZE = "(type({0}.size) == int ? double({0}.size) : quantity({0}.size).asApproximateFloat())"
GROWING = (
    GrowingField(
        "spec.workspace.pvc.claimTemplate",
        "size",
        f"{SIZE.format('self')} >= {SIZE.format('oldSelf')}",
        "given %s; accepted: at least %s, since a claim can grow, not shrink",
        ("self.size", "oldSelf.size"),
    ),
    GrowingField(
        "spec.retry",
        "maxAttempts",
        "self.maxAttempts >= oldSelf.maxAttempts",
        "given %d; accepted: at least %d, since attempts that were allowed may be used up",
        ("self.maxAttempts", "oldSelf.maxAttempts"),
    ),
)


# -- For everybody else ---------------------------------------------------------------------------------------------


def parse_quantity(given: int | str) -> Fraction:
    """The value of a Kubernetes quantity, exactly. Raises ValueError."""
    found = re.fullmatch(QUANTITY_PATTERN, str(given))
    if found is None:
        raise ValueError(f'given "{given}"; accepted: a quantity such as 200Gi')
    number, unit, exponent = found.groups()
    return Fraction(number) * (Fraction(10) ** int(exponent) if exponent else MULTIPLES[unit or ""])


def frozen_part(block: FrozenBlock, value: Json, below: str = "") -> Json:
    """The part of a block that decides the result."""
    if not isinstance(value, dict) or (below and block.is_whole(below)):
        return value
    inner = ((name, f"{below}.{name}".lstrip("."), part) for name, part in value.items())
    return {name: frozen_part(block, part, path) for name, path, part in inner if block.keeps(path)}


def check_update(old: Json, new: Json, is_frozen: bool) -> list[str]:
    """Messages, each with its path, of what may not change so. `old` and `new` are specs as JSON with defaults."""
    return [f"{path}: {message}" for path, message in (*frozen_changes(old, new, is_frozen), *shrunk_fields(old, new))]


def frozen_changes(old: Json, new: Json, is_frozen: bool) -> Iterator[tuple[str, str]]:
    """Path and message of every frozen block that differs."""
    for block in BLOCKS if is_frozen else ():
        before, after = (frozen_part(block, spec.get(block.name)) for spec in (old, new))
        if before != after:
            yield f"spec.{block.name}", block.text


def shrunk_fields(old: Json, new: Json) -> Iterator[tuple[str, str]]:
    """Path and message of every field that may only grow, and did not."""
    size, attempts = GROWING
    templates = [spec["workspace"].get("pvc", {}).get("claimTemplate") for spec in (old, new)]
    if all(templates):
        before, after = (template["size"] for template in templates)
        if parse_quantity(after) < parse_quantity(before):
            yield f"{size.at}.{size.field}", size.text % (after, before)
    allowed, wanted = (spec["retry"]["maxAttempts"] for spec in (old, new))
    if wanted < allowed:
        yield f"{attempts.at}.{attempts.field}", attempts.text % (wanted, allowed)
