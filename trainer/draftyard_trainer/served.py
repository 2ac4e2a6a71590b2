"""A draft measured in a running engine, beside what our own evaluator predicts for it.

The server says nothing about which draft it runs. So its answers are compared with the target's own, and what it counts
with our prediction for the exported draft: at temperature 0 both agree within 2 %, unless it serves something else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from draftyard_api.names import ENV_ENGINE_KEY
from draftyard_api.task import EvaluateTask
from draftyard_trainer.answers import Answer
from draftyard_trainer.chain import RoundCounts
from draftyard_trainer.connection import rejected
from draftyard_trainer.draft.manifest import Served, Settings
from draftyard_trainer.engine import Asked, Engine, Identity, ServedAnswer, connect
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.target.capture import CapturedTarget

CHECKED_PROMPTS = 8
NEEDED_SHARE = 0.75
"""Of their first tokens: in 16 bits a near-tie may fall the other way."""


def open_engine(task: EvaluateTask, settings: Settings) -> Engine | None:
    """The server of the task, where it names one. Raises Failure as `connect`, and for one that proposes otherwise."""
    if task.evaluate.engine is None:
        return None
    engine = connect(task.evaluate.engine.url, os.environ.get(ENV_ENGINE_KEY))
    require_shape(engine.identity, settings)
    return engine


def require_shape(identity: Identity, settings: Settings) -> None:
    """Raises Failure(BAD_TASK) unless the server proposes as the settings say."""
    tree = settings.tree
    wanted = shape(tree.steps, tree.top_k, tree.draft_tokens) if tree else shape(settings.draft_tokens, 1, None)
    # A server that does not say how far it looks ahead is judged by what it counts.
    if identity.steps is None:
        return
    given = shape(identity.steps, identity.top_k, identity.draft_tokens if tree else None)
    if given != wanted:
        what = "evaluate.tree" if tree else "evaluate.draftTokens"
        raise rejected(f"the server proposes {given}; accepted: {wanted}, as {what} says")


def shape(steps: int, top_k: int, draft_tokens: int | None) -> str:
    """How something proposes, in words."""
    return f"{steps} steps, topK {top_k}" + (f", {draft_tokens} tokens" if draft_tokens else "")


def require_model(engine: Engine, target: CapturedTarget, answers: Sequence[Answer]) -> None:
    """Raises Failure(BAD_TASK) when the server begins its answers otherwise than the target does."""
    some = answers[:CHECKED_PROMPTS]
    prompts = [np.array(answer.prompt, dtype=np.int64) for answer in some]
    expected = [int(reply[0]) for reply in target.greedy(prompts, 1, ())]
    told = [engine.first_token(answer.prompt) for answer in some]
    same = sum(one == other for one, other in zip(expected, told, strict=True))
    if None not in told and same < NEEDED_SHARE * len(some):
        raise rejected(
            f"the server begins {same} of {len(some)} answers as the target does; accepted: a server of "
            f"target.model (it calls its model {engine.identity.model})"
        )


def serve_answers(
    engine: Engine, answers: Sequence[Answer], settings: Settings, stop_ids: tuple[int, ...], reporter: Reporter
) -> list[ServedAnswer]:
    """Ask the server every prompt, one after the other. Raises Failure."""
    reporter.begin("serving", "prompts", total=len(answers))
    found = []
    for answer in answers:
        seed = ((settings.seed or 0) + answer.doc_id) % (1 << 31)
        asked = Asked(settings.max_new_tokens, stop_ids, int(settings.temperature), seed)
        found.append(engine.answer(answer.prompt, asked))
        reporter.advance(1)
    if not any(one.rounds for one in found):
        raise rejected("the server has answered without speculating; start it with the exported draft")
    return found


def rounds_of(served: ServedAnswer) -> RoundCounts:
    """As our own evaluator counts them; without counts per position all accepted tokens are one lump."""
    positions = (served.accepted,) if served.per_position is None else served.per_position
    return RoundCounts(served.rounds, np.array(positions, dtype=np.int64))


def describe(
    identity: Identity, served: Sequence[ServedAnswer], answers: Sequence[Answer], length: float, predicted: float
) -> Served:
    """What the report says of the engine. `served` and `answers` are of all sets, the lengths of the first one."""
    pairs = [(one.tokens, answer.reply) for one, answer in zip(served, answers, strict=True) if one.tokens is not None]
    seconds = sum(one.seconds for one in served)
    return Served(
        name=identity.name,
        version=identity.version,
        model=identity.model,
        predicted_length=predicted,
        difference=length / predicted - 1,
        equal_replies=sum(ours == theirs for theirs, ours in pairs) / len(pairs) if pairs else None,
        seconds=round(seconds, 3),
        tokens_per_second=round(sum(one.num_tokens for one in served) / max(seconds, 1e-9), 1),
    )
