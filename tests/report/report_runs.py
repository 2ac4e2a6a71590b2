"""Real runs of a tiny target, for tests of what is shown of them."""

from __future__ import annotations

from pathlib import Path

import torch
from workshops import Workshop, build_workshop

from draftyard_api.names import Stage
from draftyard_api.progress import StageResult
from draftyard_api.spec import Evaluate, Export
from draftyard_api.task import EvaluateTask
from draftyard_trainer.evaluate import evaluate
from draftyard_trainer.history import record_end
from draftyard_trainer.reporting import Reporter

OFFLINE, ONLINE, UNJUDGED = "offline-run", "online-run", "unjudged-run"


def build_runs(folder: Path) -> Workshop:
    """Three finished trainings: one that was evaluated, one Online and ungated, one that nobody has judged yet."""
    torch.set_num_threads(1)
    made = build_workshop(folder)
    trained = made.train(made.task(OFFLINE, "Offline", publishes=False))
    judged = EvaluateTask(
        run=OFFLINE, uid="u", workspace=made.store.uri, target=made.target, prepared=made.prepared.prepared,
        evaluate=Evaluate(draft_tokens=3, max_prompts=6, max_new_tokens=16), export=Export(),
        fingerprint=made.prepared.fingerprint,
    )  # fmt: skip
    ended = evaluate(judged, Reporter(Stage.EVALUATE))
    stopped = StageResult(stage=Stage.TRAIN, seconds=4.0, exit_code=75)
    gone_on = trained.model_copy(update={"seconds": 6.0, "resumed_from_step": 4})
    for label, result in (("train", stopped), ("train", gone_on), ("evaluate", ended)):
        record_end(made.store, OFFLINE, label, result)
    made.train(made.task(ONLINE, "Online", learning_rate=0.001))
    made.train(made.task(UNJUDGED, "Offline", publishes=False))
    return made
