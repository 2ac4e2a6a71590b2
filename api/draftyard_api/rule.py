"""What a rule is: one text, said by the API server in CEL and by everybody else in Python."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Any
Values = tuple[object, ...]
Check = Callable[[Json], Values | None]

READ = re.compile(r"\bself((?:\.[A-Za-z]\w*)+)(\(?)")
"""A path in CEL; with a parenthesis behind it, its last part is a method."""


@dataclass(frozen=True)
class Rule:
    """One rule. `at` is the place of `self`, `field` what the message is about, below it."""

    at: str
    field: str
    cel: str
    """Empty where the schema itself tells the API server."""
    text: str
    """Message with %s, %d and %.2f; `args` are the CEL expressions that fill it."""
    args: tuple[str, ...]
    check: Check
    """Gets the JSON that CEL sees as `self`, defaults included; the values of the message where the rule is broken."""
    takes_files: bool = False
    """A location: one machine without a cluster takes `file://` here too."""

    @property
    def reads(self) -> frozenset[str]:
        """Paths below `self` that the rule looks at."""
        # From the text and not from a run of the check: a check stops at the first thing that decides it.
        found = READ.findall(" ".join((self.cel or f"self.{self.field}", *self.args)))
        return frozenset((path.rpartition(".")[0] if method else path).lstrip(".") for path, method in found)


@dataclass(frozen=True)
class Violation:
    """A rule that a document breaks."""

    path: str
    """Of the field that the message is about."""
    message: str
    reads: frozenset[str]
    """Paths of the document that led to it."""
    rule: Rule
    values: Values


def broken(holds: object, *values: object) -> Values | None:
    """What a check returns: nothing when it holds, else the values of its message."""
    return None if holds else values


def exactly_one(*names: str) -> Check:
    """A check: a block has one of the members."""
    return lambda block: broken(sum(name in block for name in names) == 1)


def optional_field(field: str, holds: Callable[[Any], object]) -> Check:
    """A check of a field that may be absent; its value fills the message."""
    return lambda block: broken(field not in block or holds(block[field]), block.get(field))


def each_once(holder: str, field: str, key: str = "") -> Rule:
    """Entries of a list differ, or differ in a field: what the schema says as a kind of list."""

    def check(block: Json) -> Values | None:
        names = [entry[key] if key else entry for entry in block.get(field, ())]
        twice = [name for index, name in enumerate(names) if name in names[:index]]
        return broken(not twice, *twice[:1])

    return Rule(holder, field, "", f'given "%s" twice; accepted: each {key or "entry"} once', (), check)


def joined(*parts: str) -> str:
    """A path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


def places(document: Json, at: str) -> Iterator[tuple[str, Json]]:
    """Every place of a document that a path means, with its path; `env[]` means each entry."""
    found: list[tuple[str, Json]] = [("", document)]
    for part in filter(None, at.split(".")):
        name = part.removesuffix("[]")
        below = [(joined(path, name), block[name]) for path, block in found if name in block]
        found = list(entries(below)) if part.endswith("[]") else below
    yield from found


def entries(lists: list[tuple[str, Json]]) -> Iterator[tuple[str, Json]]:
    """The entries of lists, with their paths."""
    for path, block in lists:
        yield from ((f"{path}[{index}]", entry) for index, entry in enumerate(block))


def violations(rules: tuple[Rule, ...], document: Mapping[str, Json]) -> Iterator[Violation]:
    """Every broken rule. `document` has metadata and spec, as JSON with defaults."""
    for rule in rules:
        for path, block in places(document, rule.at):
            values = rule.check(block)
            if values is not None:
                reads = frozenset(joined(path, read) for read in rule.reads)
                yield Violation(joined(path, rule.field), rule.text % values, reads, rule, values)
