"""`README.md` of a draft that is given to others: made from its manifest, its evaluation and its publication alone.

It names no path of a machine, no Secret, and nothing that was not recorded. The licence is not recorded, so none is
claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import yaml

from draftyard_api import serving
from draftyard_api.progress import Acceptance
from draftyard_trainer.draft.manifest import Evaluation, Manifest, Settings

TAGS = ("eagle3", "speculative-decoding", "draft-model", "draftyard")
DEFAULT_TOKENS = 3
Rows = Iterable[tuple[str, object]]


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    name: str
    """Of the draft, as its readers will find it."""
    target: str
    """Of the target: org/name, or the last part of where it lay."""
    on_hub: bool
    """Whether the target's name is one on the hub."""
    form: str
    """portable or speculators."""
    manifest: Manifest
    """Its manifest, without the paths of a machine."""
    acceptance: Acceptance | None = None
    """As published; None where it is not."""
    settings: Settings | None = None
    """How it was measured; None where it was simulated."""
    evaluation: Evaluation | None = None
    """The report, where there is one."""


def model_card(subject: Subject) -> str:
    """The whole card."""
    sections = (about(subject), acceptance(subject), serve(subject), training(subject), provenance(subject))
    return "\n\n".join((front_matter(subject), *sections, limits(subject))) + "\n"


def front_matter(subject: Subject) -> str:
    """What the hub reads. A draft is neither a finetune nor an adapter of its target, so no relation is named."""
    engines = ("vllm", "sglang") if subject.form == "portable" else ("vllm", "speculators")
    fields: dict[str, object] = {"pipeline_tag": "text-generation", "tags": [*TAGS, *engines]}
    if subject.on_hub:
        fields = {"base_model": subject.target, **fields}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def about(subject: Subject) -> str:
    """What this is."""
    manifest = subject.manifest
    form = {
        "portable": "SGLang and vLLM load it as it is.",
        "speculators": "It has the form of the library speculators, which vLLM serves without further flags.",
    }[subject.form]
    return (
        f"# {subject.name}\n\nAn EAGLE-3 draft model (profile `{manifest.profile}`) for speculative decoding with "
        f"`{subject.target}`. It proposes tokens that the target verifies: answers stay the target's own, and come "
        f"faster. {form} It is no language model of its own."
    )


def acceptance(subject: Subject) -> str:
    """How many tokens a verification step yields, and how that is known."""
    found = subject.acceptance
    if found is None:
        return "## Acceptance\n\n**This draft is not published**: it was not evaluated, or is below its gate."
    rows = [("**acceptance length**", f"**{found.length}**"), *positions(found.per_position)]
    lines = ["## Acceptance", "", *table(("", "value"), rows), ""]
    report = subject.evaluation
    if report is not None and found.source == "Measured":
        low, high = report.interval
        lines += [f"95 % interval of the length, bootstrapped over prompts: {low:.2f} to {high:.2f}."]
    if found.source == "Measured" and subject.settings is not None:
        how = subject.settings
        temperature = "greedy (temperature 0)" if how.temperature == 0 else f"temperature {how.temperature:g}"
        lines.append(
            f"Measured on {found.prompts} held-out conversations: {how.draft_tokens} drafted tokens per round, "
            f"{how.proposal}, {temperature}, answers of at most {how.max_new_tokens} tokens, evaluator {how.evaluator}."
        )
    else:
        lines.append(
            f"Simulated on {found.prompts} held-out documents with {found.draft_tokens} drafted tokens, teacher-forced "
            "in training: no engine, and no generation, was involved."
        )
    lines += ["The length counts the target's own token: 1 is a draft of which nothing is accepted."]
    return "\n".join(lines)


def positions(shares: Sequence[str]) -> Rows:
    """Joint acceptance by position."""
    return [(f"first {number} accepted" if number > 1 else "first accepted", s) for number, s in enumerate(shares, 1)]


def serve(subject: Subject) -> str:
    """Command lines."""
    tokens = subject.acceptance.draft_tokens if subject.acceptance else DEFAULT_TOKENS
    commands = {"vLLM": serving.vllm(subject.target, subject.name, tokens)}
    if subject.form == "portable":
        commands["SGLang"] = serving.sglang(subject.target, subject.name, tokens)
    else:
        commands["vLLM, target and settings from this folder"] = f"vllm serve {subject.name}"
    blocks = [f"{engine}:\n\n```sh\n{command}\n```" for engine, command in commands.items()]
    needs = "; ".join(subject.manifest.engines)
    return "\n\n".join(("## Serving", *blocks, f"Engines that this profile assumes: {needs}."))


def training(subject: Subject) -> str:
    """Data and settings."""
    manifest = subject.manifest
    data, how, schedule = manifest.data, manifest.conventions, manifest.schedule
    rows: list[tuple[str, object]] = [
        ("documents", data.documents),
        ("tokens", data.tokens),
        ("draft vocabulary", f"{manifest.vocabulary.size} tokens"),
        ("supervised tokens in it", manifest.vocabulary.coverage),
        ("captured layers", ", ".join(map(str, manifest.aux_layers))),
        ("steps", f"{schedule.steps} ({schedule.epochs} epochs planned), seed {schedule.seed}"),
        ("loss", f"{how.objective}, {how.ttt_steps} steps of training-time test, decay {how.decay:g}, {how.unroll}"),
        ("outside of the vocabulary", how.out_of_vocab),
        *sorted(schedule.optimizer.items()),
        ("checkpoint", f"step {manifest.checkpoint.step}: {manifest.checkpoint.why}"),
    ]
    if schedule.stopped_early:
        rows.append(("ended early", schedule.stopped_early))
    if data.on_policy:
        rows.append(("on-policy share", data.on_policy))
    if manifest.initial_draft:
        rows.append(("warm start from", f"`{manifest.initial_draft}`"))
    return "\n".join(("## Training", "", *table(("setting", "value"), rows)))


def provenance(subject: Subject) -> str:
    """Which target, text, data and files, by hash."""
    manifest = subject.manifest
    rows: list[tuple[str, object]] = [
        ("target", f"`{subject.target}` at `{manifest.target.commit}`, {manifest.target.dtype}"),
        ("tokenizer", f"`{manifest.text.tokenizer_sha256}`"),
        ("chat template", f"`{manifest.text.template_sha256}`"),
        ("conversations", f"`{manifest.data.revision}`"),
        ("tokens and masks", f"`{manifest.data.tokens_sha256}`"),
        ("draft vocabulary", f"`{manifest.vocabulary.sha256}`"),
        ("run", f"{manifest.run}, `{manifest.fingerprint}`"),
        ("made by", f"Draftyard {manifest.product}"),
        *((name, f"`{record.sha256}`") for name, record in sorted(manifest.files.items())),
    ]
    warned = [rule for rule in manifest.rules if rule.result == "warn"]
    checked = f"{len(manifest.rules)} rules of both engines were checked; {len(warned)} gave a warning."
    warnings = [f"- rule {rule.rule}, {rule.text}: {rule.message}" for rule in warned]
    return "\n".join(("## Provenance", "", *table(("what", "sha256, commit or name"), rows), "", checked, *warnings))


def limits(subject: Subject) -> str:
    """What nobody should expect."""
    manifest = subject.manifest
    lines = [
        f"- For `{subject.target}` with the tokenizer and chat template above: others accept fewer tokens, or none.",
        f"- It can propose {manifest.vocabulary.size} tokens; at every other one a round ends.",
        f"- Trained to look {manifest.conventions.ttt_steps} tokens ahead; drafting more is not useful.",
        "- Acceptance depends on the text: it is lower for languages and tasks that the conversations above lack.",
    ]
    if manifest.profile == "eagle3.1":
        lines.append("- Engines older than those above ignore the newer norms, and propose wrong tokens with no error.")
    return "\n".join(("## Limits", "", *lines))


def table(head: tuple[str, str], rows: Rows) -> list[str]:
    """A table; what would break it is escaped."""
    body = [f"| {cell(name)} | {cell(value)} |" for name, value in rows]
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *body]


def cell(value: object) -> str:
    """Text of one cell."""
    return str(value).replace("|", "\\|").replace("\n", " ")
