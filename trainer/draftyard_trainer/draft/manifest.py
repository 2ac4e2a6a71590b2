"""What lies beside a draft: where it came from, what was checked, and how it was judged.

`MANIFEST.json` makes an export whole, `evaluation.json` is the report of `evaluate`, and `PUBLISHED.json`, written last
by the stage that decides, is the only sign that users and other runs may take the draft. None of them holds a Secret.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field

from draftyard_api.progress import Acceptance
from draftyard_api.schema import Model
from draftyard_api.spec import Tree

FORMAT = 1


class TargetIdentity(Model):
    """The target that the draft was trained for."""

    model: str
    """As the user named it."""
    commit: str
    """Commit, or the content hash of a local folder."""
    dtype: str
    """Precision of its weights and states."""


class TextIdentity(Model):
    """What decided how conversations became tokens."""

    tokenizer_sha256: str
    """Of the tokenizer's file."""
    template_sha256: str
    """Of the chat template."""
    template_kwargs: dict[str, Any]
    """Passed to the template."""


class DataIdentity(Model):
    """The conversations."""

    revision: str
    """sha256 of the source's content."""
    tokens_sha256: str
    """sha256 of tokens, masks and split."""
    documents: int
    """Documents of the training split."""
    tokens: int
    """Their tokens."""
    on_policy: str | None = None
    """Share of label rows whose next token is the target's own choice."""


class Conventions(Model):
    """What the loss was; a draft trained under other conventions is another draft."""

    alignment: str
    """Which positions are supervised."""
    normalise: str
    """What the loss is divided by."""
    objective: str
    """kl, lk_alpha or lk_hybrid."""
    out_of_vocab: str
    """mask or keep."""
    unroll: str = "full"
    """full or onPath."""
    ttt_steps: int
    """T: steps of the unroll."""
    decay: float
    """Weight of step k is decay^k."""


class VocabularyIdentity(Model):
    """The tokens that the draft can propose."""

    size: int
    """D."""
    sha256: str
    """Of the ascending ids as little-endian int64."""
    coverage: str
    """Share of the supervised tokens inside it."""


class Schedule(Model):
    """How long the draft was trained, and with what."""

    steps: int
    """Optimizer steps."""
    epochs: int
    """Passes over the data."""
    stopped_early: str | None = None
    """Why it ended before its last epoch."""
    seed: int
    """Of weights and order."""
    plan_hash: str
    """Of the order of rows."""
    optimizer: dict[str, float | int | str]
    """AdamW's numbers and those of its schedule."""


class Selected(Model):
    """Which checkpoint was exported."""

    step: int
    """Its optimizer step."""
    why: str
    """For people: by which metric, against which others."""


class Provenance(Model):
    """Where a draft comes from: what `train` knows about it."""

    run: str
    """Name of the run."""
    fingerprint: str
    """sha256 of everything that decides the result."""
    image: str | None = None
    """The trainer's image, where there is one."""
    profile: str
    """eagle3 or eagle3.1."""
    target: TargetIdentity
    """The target."""
    text: TextIdentity
    """Tokenizer and template."""
    data: DataIdentity
    """The conversations."""
    initial_draft: str | None = None
    """Warm start: sha256 of the draft that it began as."""
    hidden_states_key: str | None = None
    """Offline: which stored states."""
    conventions: Conventions
    """The loss."""
    vocabulary: VocabularyIdentity
    """The draft vocabulary."""
    schedule: Schedule
    """The training."""
    checkpoint: Selected
    """The exported checkpoint."""
    metrics: dict[str, str]
    """Of that checkpoint on held-out documents: `tau_sim`, `acc_0`, …; texts, since NaN is legal."""


class RuleResult(Model):
    """One conformance rule."""

    rule: int
    """Its number."""
    text: str
    """What it demands."""
    result: str
    """pass or warn; an error is never exported."""
    message: str | None = None
    """What was found, with warn."""


class ProbeResult(Model):
    """The numeric probe: the export, loaded from its files alone, against the trainer's draft."""

    steps: int
    """Steps of the unroll that were compared."""
    max_abs_difference: float
    """Largest difference of a logit, both with the exported weights."""
    max_abs_rounding: float
    """Largest difference of a logit that rounding the weights to the exported dtype makes. For information."""


class FileRecord(Model):
    """One file of an export or a checkpoint."""

    bytes: int
    """Its size."""
    sha256: str
    """Of its content."""

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Size and hash of a file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(bytes=path.stat().st_size, sha256=digest)


class Manifest(Provenance):
    """`MANIFEST.json` of an export."""

    format: int = FORMAT
    """Version of this file."""
    product: str
    """Version of Draftyard."""
    aux_layers: tuple[int, ...]
    """Captured layers: indices into `hidden_states`."""
    engine_layer_ids: tuple[int, ...]
    """As written at the top level: the same numbers."""
    nested_layer_ids: tuple[int, ...]
    """As written inside `eagle_config`: outputs of blocks, one less."""
    flags: dict[str, bool]
    """Norm flags of the draft."""
    rules: tuple[RuleResult, ...]
    """All conformance rules."""
    probe: ProbeResult
    """The numbers behind the probe's rule."""
    engines: tuple[str, ...]
    """Engine versions that the profile assumes."""
    files: dict[str, FileRecord]
    """Every other file of the export."""


class Mapping(Model):
    """How one part of a foreign checkpoint was read."""

    what: str
    """Which part."""
    found: str
    """As it was written."""
    mapped: str
    """What it became."""


class ConvertedManifest(Model):
    """`MANIFEST.json` of a draft that was trained elsewhere: good for a warm start, silent about its training."""

    format: int = FORMAT
    """Version of this file."""
    product: str
    """Version of Draftyard."""
    source: str
    """Where it was read from: a name on the hub, a bucket's, or a folder's last part."""
    source_sha256: str
    """Of the config and the weights that were read."""
    layout: str
    """SpecForge, speculators or EAGLE."""
    profile: str
    """eagle3 or eagle3.1."""
    target: str
    """sha256, or commit, of the target that it was checked against."""
    aux_layers: tuple[int, ...]
    """Captured layers: indices into `hidden_states`."""
    vocabulary: int
    """D."""
    mapping: tuple[Mapping, ...]
    """What was found, and how each thing was mapped."""
    files: dict[str, FileRecord]
    """Every other file."""


class Settings(Model):
    """How a draft is judged; an evaluation under other settings is another one."""

    draft_tokens: int
    """K: proposals per round."""
    max_prompts: int
    """Prompts of each set at most."""
    max_new_tokens: int
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0: greedy. 1: sampled, with exact rejection sampling."""
    proposal: str = "chain"
    """chain: one proposal per position. tree: several, verified together."""
    evaluator: str = "draftyard"
    """What computed it: draftyard, or an engine that was asked."""
    prompt_sets: tuple[str, ...] = ("heldOut",)
    """What was asked, the set first that the gate looks at."""
    prompt_file_sha256: str | None = None
    """Content of the prompts of one's own."""
    tree: Tree | None = None
    """Of a tree; `draftTokens` above is its depth then."""
    seed: int | None = None
    """With temperature 1."""


class TeacherForced(Model):
    """What training predicts, on the same answers: steps see the true tokens in place of the draft's own."""

    length: float
    """1 + sum of joint hits / positions."""
    per_position: tuple[float, ...]
    """Share of positions at which the first i proposals are right."""


class Seconds(Model):
    """Wall-clock of the parts."""

    answering: float
    """The target's answers, in this attempt."""
    drafting: float
    """Capture and chain."""


class SampleReply(Model):
    """One reply as a server would have made it: what a person looks at."""

    doc_id: int
    """Held-out document that begins with the prompt."""
    prompt: str
    """The end of the prompt, as the target reads it."""
    pieces: tuple[str, ...]
    """The reply, a text for each token; empty where a token ends no character."""
    accepted: tuple[int, ...]
    """Of each round, its accepted proposals; the target's own token follows. The first token is before any round."""


class SetAcceptance(Model):
    """What one set of prompts gave, or all of them together."""

    name: str
    """The set, or `together`."""
    length: float
    """1 + accepted / rounds."""
    interval: tuple[float, float]
    """95 % bootstrap over prompts."""
    per_position: tuple[float, ...]
    """Share of rounds in which proposals 1..i were all accepted; empty where an engine does not count that."""
    per_position_intervals: tuple[tuple[float, float], ...]
    """95 % bootstrap over prompts, of each."""
    rounds: int
    """Draft-and-verify cycles."""
    accepted: int
    """Accepted proposals."""
    prompts: int
    """Answers behind the numbers; a question with two turns has two."""
    skipped_prompts: dict[str, int]
    """Documents or rows that gave no prompt, by reason."""
    reply_tokens: int
    """Tokens of the answers."""


class Speedup(Model):
    """How much faster speculation should be for one user, from costs that were measured where this ran.

    `length / ((steps * draft + verify) / target)`, in the code of the evaluator and not that of an engine.
    """

    value: float
    """Times as fast as the target alone."""
    target_seconds: float
    """A step of the target that reads one token."""
    verify_seconds: float
    """A step of the target that reads `verifiedTokens`."""
    draft_seconds: float
    """A step of the draft."""
    verified_tokens: int
    """Proposals of a round, and the newest verified token."""
    draft_steps: int
    """Steps of the draft in a round."""
    batch_size: int = 1
    """Users."""
    context_tokens: int
    """Tokens before the measured steps."""
    device: str
    """Where it was measured."""


class Served(Model):
    """The engine that was asked, beside what our own evaluator predicted for it."""

    name: str
    """vllm or sglang."""
    version: str
    """As it says."""
    model: str
    """As it calls the target."""
    predicted_length: float
    """Of the first set, by our own evaluator."""
    difference: float
    """length / predictedLength - 1."""
    equal_replies: float | None = None
    """Share of the answers that are token by token the target's own; None with temperature 1."""
    seconds: float
    """Of all answers, one after the other."""
    tokens_per_second: float
    """Of one user."""


class Evaluation(Model):
    """`evaluation.json`: the acceptance length of one export."""

    format: int = FORMAT
    """Version of this file."""
    manifest_sha256: str = Field(alias="manifestSHA256")
    """Of the judged export."""
    settings: Settings
    """How it was judged."""
    length: float
    """1 + accepted / rounds."""
    interval: tuple[float, float]
    """95 % bootstrap over prompts."""
    per_position: tuple[float, ...]
    """Share of rounds in which proposals 1..i were all accepted."""
    rounds: int
    """Draft-and-verify cycles."""
    accepted: int
    """Accepted proposals."""
    prompts: int
    """Prompts behind the numbers."""
    skipped_prompts: dict[str, int]
    """Held-out documents that gave no prompt, by reason."""
    reply_tokens: int
    """Tokens of the target's answers."""
    teacher_forced: TeacherForced
    """For comparison."""
    seconds: Seconds
    """Wall-clock."""
    sets: tuple[SetAcceptance, ...] = ()
    """Every set, the one first whose numbers stand above."""
    together: SetAcceptance | None = None
    """All sets as one; None with a single one."""
    speedup: Speedup | None = None
    """Predicted for the first set."""
    engine: Served | None = None
    """With an engine."""
    samples: tuple[SampleReply, ...] = ()
    """A few replies, round by round; none in reports of versions that did not keep them."""


class ServeLines(Model):
    """Command lines that serve the draft."""

    vllm: str
    """vLLM."""
    sglang: str
    """SGLang."""


class Published(Model):
    """`PUBLISHED.json`: this draft may be used."""

    format: int = FORMAT
    """Version of this file."""
    manifest_sha256: str = Field(alias="manifestSHA256")
    """Of the published export."""
    fingerprint: str
    """As in the manifest."""
    acceptance: Acceptance
    """What the draft reaches; its source says how that is known."""
    settings: Settings | None = None
    """How it was measured; None when it was simulated in training."""
    serve: ServeLines
    """How to serve it."""
