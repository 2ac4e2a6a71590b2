"""What a person wants to know first: is the draft there, how far does it carry, what does it gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from draftyard_api.exit_codes import ExitCode
from draftyard_api.targets import WELL_KNOWN, TargetShape
from draftyard_trainer.draft.header import WEIGHTS_FILE
from draftyard_trainer.draft.manifest import Evaluation
from draftyard_trainer.report.record import Record

BYTES_OF = {"bfloat16": 2, "float16": 2, "float32": 4}
DEFAULT_DRAFT_TOKENS = 3
LEAST_GAIN = 1.05
"""Below that an estimate promises nothing."""


@dataclass(frozen=True)
class Reach:
    """How many tokens one pass of the target yields, and how that is known."""

    length: float
    """Bonus token included."""
    per_position: tuple[float, ...]
    """Share of the rounds in which proposals 1..i were all accepted."""
    interval: tuple[float, float] | None
    """95 %, over prompts; None where nothing was measured."""
    source: Literal["measured", "simulated"]
    """On the target's own answers, or teacher-forced in training."""
    samples: int
    """Prompts, or held-out documents."""
    draft_tokens: int
    """K of a chain, the depth of a tree."""
    manner: str = "teacher-forced"
    """How it was measured, for people."""

    @property
    def behind(self) -> str:
        """`K = 3, 32 prompts, greedy`."""
        unit = "prompts" if self.source == "measured" else "held-out documents"
        return f"K = {self.draft_tokens}, {self.samples} {unit}, {self.manner}"


@dataclass(frozen=True)
class SpeedUp:
    """For one conversation at a time: of costs that evaluate measured, else as long as weights take to read."""

    factor: float
    """Tokens a second with the draft, over those without."""
    draft_share: float
    """Time of one proposal, in passes of the target."""
    measured_on: str | None = None
    """Where the costs were measured; None for an estimate."""

    @property
    def text(self) -> str:
        """The estimate in words."""
        if self.factor < LEAST_GAIN:
            return f"No gain to expect: about {self.factor:.2f} times the tokens a second."
        return f"About {self.factor:.1f} times the tokens a second."


@dataclass(frozen=True)
class Verdict:
    """The top of the page."""

    tone: Literal["good", "bad", "open"]
    badge: str
    """Two or three words."""
    text: str
    """One or two sentences."""
    reach: Reach | None
    speed_up: SpeedUp | None


def judge(record: Record) -> Verdict:
    """The verdict on whatever there is."""
    reach = find_reach(record)
    tone, badge, text = say(record, reach)
    return Verdict(tone, badge, text, reach, estimate_speed_up(record, reach))


def find_reach(record: Record) -> Reach | None:
    """Measured where it was measured, else as the best checkpoint was scored."""
    if record.evaluation is not None:
        found = record.evaluation
        settings = found.settings
        return Reach(
            found.length, found.per_position, found.interval, "measured", found.prompts, settings.draft_tokens,
            manner_of(found),
        )  # fmt: skip
    if record.published is not None:
        told = record.published.acceptance
        shares = tuple(map(float, told.per_position))
        if told.source == "Measured":
            return Reach(float(told.length), shares, None, "measured", told.prompts, told.draft_tokens, "greedy")
        return Reach(float(told.length), shares, None, "simulated", told.prompts, told.draft_tokens)
    best = record.checkpoint.best if record.checkpoint else None
    if best is None:
        return None
    tokens = len(best.per_position) or DEFAULT_DRAFT_TOKENS
    return Reach(best.tau_sim, best.per_position, None, "simulated", best.documents, tokens)


def manner_of(found: Evaluation) -> str:
    """`greedy`, `a tree of 64 tokens, greedy, in vllm 0.11.0`, `at temperature 1`."""
    tree = f"a tree of {found.settings.tree.draft_tokens} tokens, " if found.settings.tree else ""
    engine = f", in {found.engine.name} {found.engine.version}" if found.engine else ""
    return f"{tree}{'at temperature 1' if found.settings.temperature else 'greedy'}{engine}"


def say(record: Record, reach: Reach | None) -> tuple[Literal["good", "bad", "open"], str, str]:
    """Tone, badge and text."""
    if record.published is not None:
        return "good", "Published", said_of_gate(record, reach)
    if record.evaluation is not None:
        gate = f", below the gate of {record.gate:g}" if record.gate is not None else ""
        text = f"Not published: the measured acceptance length is {record.evaluation.length:.3f}{gate}. "
        return "bad", "Below the gate" if gate else "Not published", text + "The export is kept, and can be served."
    if record.manifest is not None:
        return "open", "Not judged", "Exported and conformant, but not evaluated: run the same command again to go on."
    return "open", "Unfinished", f"{standing(record)} {last_words(record)}".strip()


def said_of_gate(record: Record, reach: Reach | None) -> str:
    """What stands behind a publication."""
    if reach is None or reach.source == "simulated":
        return "Published without a measurement: the run has no evaluate stage, so its length is simulated in training."
    if record.gate is None:
        return "Measured on the target's own answers. No gate was asked for, or it is not recorded here."
    text = f"Measured on the target's own answers; the gate of {record.gate:g} is passed."
    if reach.interval is not None and reach.interval[0] <= record.gate:
        text += " The gate lies inside the interval: chance may have decided."
    return text


def standing(record: Record) -> str:
    """How far an unfinished run is."""
    checkpoint = record.checkpoint
    if len(record.curve):
        of_all = f" of {checkpoint.total_steps}" if checkpoint else ""
        saved = f"; the newest checkpoint is step {checkpoint.step}" if checkpoint else "; no checkpoint is saved yet"
        return f"Training stands at step {record.curve.steps[-1]:.0f}{of_all}{saved}."
    if record.states is not None:
        return f"{len(record.states.complete)} of {record.states.num_shards} shards of hidden states are complete."
    if record.documents is not None:
        return "The documents are prepared; training has not begun."
    return "Nothing is prepared yet."


def last_words(record: Record) -> str:
    """How the last process ended, where it did not end well."""
    if not record.history or record.history[-1].result.exit_code == ExitCode.OK:
        return ""
    last = record.history[-1]
    return f"The last process, {last.label}, ended with {last.result.reason}: {last.result.message}"


def estimate_speed_up(record: Record, reach: Reach | None) -> SpeedUp | None:
    """Of the costs that were measured, else the estimate where the sizes of target and draft are known."""
    costs = record.evaluation.speedup if record.evaluation else None
    if costs is not None:
        return SpeedUp(costs.value, costs.draft_seconds / costs.target_seconds, costs.device)
    shape, manifest = find_shape(record), record.manifest
    weights = manifest.files.get(WEIGHTS_FILE) if manifest else None
    if reach is None or shape is None or manifest is None or weights is None:
        return None
    parameters = weights.bytes / BYTES_OF.get(manifest.target.dtype, 2)
    share = parameters / shape.active_parameters
    return SpeedUp(reach.length / (1 + reach.draft_tokens * share), share)


def find_shape(record: Record) -> TargetShape | None:
    """The target's shape: as prepare found it, or that of a well-known model."""
    shapes = (end.result.prepared.target_shape for end in record.history if end.result.prepared)
    told = next((shape for shape in shapes if shape is not None), None)
    if told is not None:
        return told
    name = record.manifest.target.model.removeprefix("hf://") if record.manifest else ""
    config = (record.states and record.states.target_config) or WELL_KNOWN.get(name)
    try:
        return TargetShape.from_config(config) if config is not None else None
    except (ValueError, TypeError):
        return None
