"""The conformance rules of an export: one table, and `check`, which runs it.

Rules of the header come first and read JSON and headers only. Rules of the weights load the draft: they run when no
error was found before, since a file with a wrong shape or a missing tensor would not load as what it was meant to be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from draftyard_trainer import conformance_rules as rules
from draftyard_trainer.conformance_rules import TargetFacts, WeightChecks
from draftyard_trainer.draft.header import DraftFiles, read_files


class Level(StrEnum):
    """What a broken rule means: E refuses the export, W is recorded."""

    E = "E"
    W = "W"


@dataclass(frozen=True)
class Finding:
    """One broken rule."""

    rule: int
    level: Level
    message: str


@dataclass(frozen=True, eq=False)
class Candidate:
    """An export, and what it is held against."""

    files: DraftFiles
    facts: TargetFacts
    weights: WeightChecks


@dataclass(frozen=True)
class Rule:
    """One rule: number and text are what a manifest shows; `check` says what is wrong, or None."""

    number: int
    text: str
    level: Level
    check: Callable[[Candidate], str | None]
    reads_weights: bool = False


def _header(number: int, level: Level, check: Callable[[DraftFiles, TargetFacts], str | None], text: str) -> Rule:
    """A rule that reads JSON and headers only."""
    return Rule(number, text, level, lambda candidate: check(candidate.files, candidate.facts))


def _weights(number: int, check: Callable[[Candidate], str | None], text: str) -> Rule:
    """A rule that loads the draft; always an error."""
    return Rule(number, text, Level.E, check, reads_weights=True)


# In the order of their numbers, which manifests and messages name: a number is never used again for another rule.
RULES: tuple[Rule, ...] = (
    _header(1, Level.E, rules.check_architecture, "architectures names the class that both engines know"),
    _header(2, Level.E, rules.check_names, "tensor names are exactly those that the config implies"),
    _header(3, Level.E, rules.check_prefix, "no tensor name starts with model."),
    _header(4, Level.E, rules.check_attention_width, "q, k and v read twice the hidden size"),
    _header(5, Level.E, rules.check_fusion_width, "fc reads one target state for each layer id"),
    _header(6, Level.E, rules.check_vocabulary_size, "lm_head, d2t and draft_vocab_size agree"),
    _header(7, Level.E, rules.check_offsets, "d2t holds int64 offsets to ascending ids of the target"),
    _header(8, Level.E, rules.check_membership, "t2d marks the tokens of d2t"),
    _header(9, Level.W, rules.check_markers, "stop tokens and markers of the template can be proposed"),
    _header(10, Level.E, rules.check_target_vocabulary, "vocab_size is the target's padded one"),
    _header(11, Level.E, rules.check_untied, "the head is not tied to the embedding"),
    _weights(
        12,
        lambda candidate: candidate.weights.check_values(candidate.files),
        "values are finite and of a sane size; an embedding is the target's",
    ),
    _header(13, Level.E, rules.check_layer_forms, "both forms of the layer ids name the same layers"),
    _header(14, Level.E, rules.check_layers, "the layer ids are those of the capture"),
    _weights(
        15,
        lambda candidate: candidate.weights.check_logits(candidate.files),
        "the export computes what the trainer computes",
    ),
    _header(16, Level.E, rules.check_rope, "rope is the trained one"),
    _header(17, Level.W, rules.check_positions, "positions reach as far as the target's"),
    _header(18, Level.E, rules.check_full_attention, "no sliding window"),
    _header(19, Level.E, rules.check_no_bias, "no attention bias"),
    _header(20, Level.E, rules.check_types, "no null, and use_cache is a bool"),
    _header(21, Level.W, rules.check_dtype, "the dtype is the one that the target is served in"),
    _header(22, Level.E, rules.check_profile, "newer keys only in the profile that has them"),
    _header(23, Level.W, rules.check_text, "tokenizer and template are those of the training tokens"),
)


def check(folder: Path, facts: TargetFacts, weights: WeightChecks) -> list[Finding]:
    """What is wrong with the draft in `folder`, by rule number. Raises ValueError when it is no draft at all."""
    candidate = Candidate(read_files(folder), facts, weights)
    findings: list[Finding] = []
    # Stable: by number inside each kind.
    for rule in sorted(RULES, key=lambda rule: rule.reads_weights):
        # One mistake, one finding: a wrong rope in the config would move the logits too.
        if rule.reads_weights and has_errors(findings):
            break
        message = rule.check(candidate)
        if message is not None:
            findings.append(Finding(rule.number, rule.level, message))
    return sorted(findings, key=lambda finding: finding.rule)


def check_header(folder: Path, facts: TargetFacts) -> list[Finding]:
    """What is wrong with the draft in `folder` as far as JSON and headers tell. Raises ValueError when it is none."""
    files = read_files(folder)
    found = ((rule, rule.check(Candidate(files, facts, NoWeights()))) for rule in RULES if not rule.reads_weights)
    return [Finding(rule.number, rule.level, message) for rule, message in found if message is not None]


class NoWeights:
    """In the place of a probe, where there is nothing to compare with."""

    def check_values(self, files: DraftFiles) -> str | None:
        """Never asked."""
        raise AssertionError(f"no weights of {files.folder} are checked")

    check_logits = check_values


def has_errors(findings: list[Finding]) -> bool:
    """Whether the export must be refused."""
    return any(finding.level is Level.E for finding in findings)
