"""The stage `train`: the draft learns from the target's hidden states, is saved, scored, and exported.

Started by torchrun, also with one process. It may be killed at any time: the next start goes on at the last checkpoint,
with the same rows in the same order, and ends with the same draft.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing

import torch
from pydantic import JsonValue

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage, checkpoint_path, train_path
from draftyard_api.progress import Acceptance, StageResult, Trained
from draftyard_api.reasons import Reason
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint, early_stop, exporting, parallel, process, warm_start
from draftyard_trainer.checkpoint import CheckpointManifest, Found, Identity, Score
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.config import derive
from draftyard_trainer.draft.files import LoadedDraft
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.fence import Fence
from draftyard_trainer.hidden_states.opening import open_source
from draftyard_trainer.hidden_states.reclaiming import reclaim
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.source import Source
from draftyard_trainer.journal import Journal, journal_line
from draftyard_trainer.loop import StepReport, Trainer
from draftyard_trainer.loss import DECAY, Teacher
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.order import RowPlan, Step, epoch_steps, num_steps, plan_hash
from draftyard_trainer.parallel import World
from draftyard_trainer.reporting import Reporter, interrupted
from draftyard_trainer.saving import Saver
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.tracking.following import begin, following

NO_STEP = -1
ROWS = {"seed", "epochs", "row_tokens", "tokens_per_batch"}
CONVENTIONS = {"ttt_steps", "objective", "out_of_vocab", "loss_mask_alignment"}


def train(task: TrainTask, reporter: Reporter) -> StageResult:
    """Train, export the best checkpoint, and publish it unless an evaluate stage decides.

    Raises Failure: STALE_INPUT for inputs that are gone or broken, EXISTS for another run's checkpoints, DIVERGED,
    NOT_CONFORMANT, FENCED, NO_SPACE, UNAVAILABLE, INTERRUPTED after a saved checkpoint.
    """
    store = open_store(task.workspace, task.workspace_s3)
    finished = exporting.find_finished(store, task)
    if finished is not None:
        return reclaim(store, task, finished) if parallel.leads() else finished
    # Trackers are waited for at the end, when the other processes are let go.
    with following() as followers, parallel.join() as world:
        dataset = PreparedDataset.open_checked(store, task.prepared)
        source = open_source(store, task, dataset, world.device)
        initial = warm_start.open_initial(store, task, dataset.manifest)
        fence = Fence.take(store, task) if world.leads else None
        run = Run(task, store, fence, reporter, dataset, build_trainer(task, dataset, source, world, initial))
        run.resume()
        if world.leads:
            begin(followers, store, task, run.facts())
        run.to_the_end()
        result = reclaim(store, task, run.export()) if world.leads else StageResult(stage=Stage.TRAIN)
        world.barrier()
    return result


def build_trainer(
    task: TrainTask, dataset: PreparedDataset, source: Source, world: World, initial: LoadedDraft | None = None
) -> Trainer:
    """The draft with its first weights, its optimizer and its teacher."""
    config = derive(source.head.config, task.draft, dataset.vocabulary.size, task.aux_layers)
    if initial is None:
        draft = DraftModel(config)
        draft.set_vocabulary(dataset.vocabulary)
        draft.initialise(task.train.seed)
    else:
        draft = warm_start.begin_as(initial, config, dataset.vocabulary)
    # fp32 on a CPU; on a GPU the model is bf16 and the optimizer keeps fp32 masters.
    dtype = torch.float32 if world.device.type == "cpu" else torch.bfloat16
    draft.to(world.device, dtype)
    head = source.head.to(world.device, dtype)
    draft.attach_embedding(head.embed)
    optimizer = Optimizer(draft.trained_parameters(), task.train, total_steps(task, dataset, source))
    return Trainer(draft, optimizer, source, dataset, Teacher.of(head, draft.target_ids()), world, task.train)


def row_plan(task: TrainTask, dataset: PreparedDataset, source: Source) -> RowPlan:
    """The rows of the training split, as far as it has states."""
    ids = source.available(dataset.train_ids)
    return RowPlan(ids, dataset.lengths[ids], task.train.row_tokens, task.train.seed)


def total_steps(task: TrainTask, dataset: PreparedDataset, source: Source) -> int:
    """Optimizer steps of all epochs."""
    plan, train = row_plan(task, dataset, source), task.train
    return num_steps(plan.lengths, plan.doc_ids, train.row_tokens, train.tokens_per_batch, train.seed, train.epochs)


class Run:
    """One training from its first to its last step: where it stands, and what it leaves behind."""

    def __init__(
        self, task: TrainTask, store: Store, fence: Fence | None, reporter: Reporter, dataset: PreparedDataset,
        trainer: Trainer,
    ) -> None:  # fmt: skip
        self.task = task
        self.store = store
        self.fence = fence
        self.reporter = reporter
        self.dataset = dataset
        self.trainer = trainer
        self.plan = row_plan(task, dataset, trainer.source)
        per_step = task.train.tokens_per_batch // task.train.row_tokens
        self.first_epoch_steps = len(epoch_steps(self.plan, 0, per_step, 0)) if task.train.early_stop else 0
        self.judges = len(trainer.source.available(dataset.held_out_ids)) > 0
        """Without held-out states all scores would be equal, and the first checkpoint the best."""
        self.identity = self._identity()
        self.state = CheckpointManifest(
            step=0, total_steps=total_steps(task, dataset, trainer.source), epoch=0, next_row=0, tokens_seen=0,
            identity=self.identity,
            skipped=0, clipped=0, skipped_in_a_row=0, last_loss="NaN", scores=(), files={},
        )  # fmt: skip
        self.saver: Saver | None = None
        """Of the leading process."""
        self.resumed_from: int | None = None
        """Step of the checkpoint at which this process went on."""

    def _identity(self) -> Identity:
        train, manifest = self.task.train, self.dataset.manifest
        rows = checkpoint.words(train.model_dump(by_alias=True, include=ROWS))
        # not named at its default: checkpoints from before it was there go on
        named = CONVENTIONS if train.unroll == "full" else CONVENTIONS | {"unroll"}
        conventions = checkpoint.words({**train.model_dump(by_alias=True, include=named), "decay": DECAY})
        states = self.task.hidden_states
        return Identity(
            plan_hash=plan_hash(self.plan, manifest.tokens_sha256, (rows, conventions)),
            rows=rows,
            conventions=conventions,
            vocabulary_sha256=manifest.vocabulary_sha256,
            draft=checkpoint.draft_identity(self.trainer.draft),
            source=states.key if states else "online",
            fingerprint=self.task.fingerprint,
        )

    def facts(self) -> dict[str, JsonValue]:
        """What trackers show beside the task."""
        trainer, counts = self.trainer, self.dataset.manifest.counts
        return {
            "targetIdentity": trainer.source.target_identity,
            "vocabularySha256": self.identity.vocabulary_sha256,
            "steps": self.state.total_steps,
            "documents": counts.train_documents,
            "tokens": counts.train_tokens,
            "processes": trainer.world.size,
            "device": trainer.world.device.type,
        }

    def resume(self) -> None:
        """Go on at the newest whole checkpoint, if there is one."""
        found = self._find()
        if found is not None:
            checkpoint.resume(found, self.trainer.draft, self.trainer.optimizer)
            self.state = found.manifest
            self.resumed_from = self.state.step
        if self.fence is not None:
            # Of a save that was killed: the checkpoint of a stop is at a step that is never saved again.
            self.store.sweep(train_path(self.task.run))
            journal = Journal.open(self.fence, self.task.run, self.state.step)
            self.saver = Saver(self.fence, self.task, journal, saved=None if found is None else found.manifest)
        # A stop leaves no time to score; without it the best checkpoint could be another one than undisturbed.
        unscored = all(score.step != self.state.step for score in self.state.scores)
        if found is not None and unscored and self._is_due() and self.judges:
            self._save(scores=True)
        self.reporter.begin("training", "steps", self.state.total_steps, done=self.state.step)
        self.reporter.update(resumed_from_step=self.resumed_from, **self._saved())

    def _find(self) -> Found | None:
        """The checkpoint that the leading process chooses.

        A former process that is still writing, or a late listing, may show another one to the others; processes that
        start apart would add up gradients of different steps.
        """
        world, run = self.trainer.world, self.task.run
        found = checkpoint.newest(self.store, run, self.identity) if world.leads else None
        step = world.told(NO_STEP if found is None else found.manifest.step)
        if world.leads or step == NO_STEP:
            return found
        found = checkpoint.load(self.store, run, step)
        if found is None:
            message = f"{checkpoint_path(run, step)}: process 0 reads it, and process {world.rank} does not"
            raise Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)
        return found

    def to_the_end(self) -> None:
        """All steps that are left; a checkpoint every so often, at epoch ends, at the end, and when asked to stop."""
        per_step = self.task.train.tokens_per_batch // self.task.train.row_tokens
        first = 0
        for epoch in range(self.task.train.epochs):
            if self.ends_early():
                break
            steps = epoch_steps(self.plan, epoch, per_step, first)
            first += len(steps)
            left = steps[max(self.state.step - steps[0].index, 0) :]
            with closing(self.trainer.read_ahead(left)) as read:
                for step in left:
                    self._take(step, read)
                    if self.ends_early():
                        break
        self._settle()

    def ends_early(self) -> bool:
        """Whether acceptance has stopped to improve, and the spec asks to end then."""
        return early_stop.is_over(self.state.scores, self.task.train.early_stop, self.first_epoch_steps)

    @property
    def stopped_early(self) -> str | None:
        """Why there were fewer steps than planned; None when there were not."""
        rule = self.task.train.early_stop
        if rule is None or not self.ends_early() or self.state.step >= self.state.total_steps:
            return None
        return early_stop.explain(self.state.scores, rule, self.state.step)

    def _take(self, step: Step, read: Iterator[list[Sample]]) -> None:
        started = time.monotonic()
        report = self.trainer.step(step, read)
        self._advance(step, report, time.monotonic() - started)
        stops = self._is_stopped()
        if stops or self._is_due():
            self._save(scores=not stops)
            # Scoring takes long: a stop meanwhile must not cost another step and another save.
            stops = stops or self._is_stopped()
        if stops:
            self._settle()
            # Also behind the last step: scoring and exporting may take longer than a pod is given to end.
            raise interrupted(Stage.TRAIN)

    def _is_stopped(self) -> bool:
        """Whether any process was asked to stop. Raises, in all of them alike, the failure of a write."""
        world = self.trainer.world
        failure = self.saver.failure if self.saver else None
        asked, failed = world.any(self.reporter.stop_requested, failure is not None)
        if failed:
            raise world.told_failure(failure)
        return asked

    def _settle(self) -> None:
        """Let the leading process end its write. Raises, in all of them alike, what went wrong with it."""
        if self.saver is not None:
            self.saver.wait()
        self.reporter.update(**self._saved())
        self._is_stopped()

    def _is_due(self) -> bool:
        """Whether an undisturbed training saves and scores here; a row number of 0 is an epoch's end."""
        return self.state.step % self.task.train.checkpoint.every_steps == 0 or self.state.next_row == 0

    def _advance(self, step: Step, report: StepReport, seconds: float) -> None:
        """Move the state behind a step, and say so."""
        optimizer = self.trainer.optimizer
        loss = f"{report.sums.total_loss():.4f}"
        self.state = self.state.model_copy(
            update={
                "step": step.index + 1,
                "epoch": step.epoch + int(step.ends_epoch),
                "next_row": 0 if step.ends_epoch else step.next_row,
                "tokens_seen": self.state.tokens_seen + report.tokens,
                "skipped": optimizer.skipped,
                "clipped": optimizer.clipped,
                "skipped_in_a_row": optimizer.skipped_in_a_row,
                "last_loss": loss,
            }
        )
        rate = report.tokens / max(seconds, 1e-9)
        line = journal_line(step, self.state, report, seconds, self.task.draft_tokens)
        if self.task.train.early_stop is not None:
            delta = self.task.train.early_stop.min_delta
            waited = early_stop.evaluations_without_improvement(self.state.scores, delta)
            line["evaluationsWithoutImprovement"] = waited
        if self.saver is not None and self.saver.add(line):
            print(f"step {self.state.step}: the loss, {loss}, is far above that of the steps before", file=sys.stderr)
        self.reporter.update(
            done=self.state.step, step=self.state.step, total_steps=self.state.total_steps, loss=loss,
            epoch=f"{step.epochs_done:.2f}", tokens_per_second=f"{rate:.0f}", skipped_steps=optimizer.skipped,
            loss_spikes=self.saver.journal.spikes if self.saver else None, **self._saved(),
            on_policy=f"{report.sums.on_policy_share():.4f}",
        )  # fmt: skip

    def _save(self, scores: bool) -> None:
        """Score the draft, and begin to write a checkpoint once the one before is written."""
        if scores and self.judges:
            score = self.trainer.score(self.state.step, self.task.draft_tokens, self.task.train.row_tokens)
            self.state = self.state.model_copy(update={"scores": (*self.state.scores, score)})
            self.reporter.update(acceptance=f"{score.tau_sim:.2f}")
        self._settle()
        if self.saver is not None:
            self.saver.save(self.trainer.draft, self.trainer.optimizer, self.state)

    def _saved(self) -> dict[str, int | None]:
        """Which checkpoints there are, as progress tells it; nothing before the first is written."""
        saved = self.saver.saved if self.saver is not None else None
        if saved is None:
            return {}
        return {"checkpoint_step": saved.step, "best_step": saved.best.step if saved.best else None}

    def export(self) -> StageResult:
        """Export the best checkpoint, and publish it when nobody judges it later."""
        assert self.fence is not None
        assert self.saver is not None
        best = self.state.best or Score(step=self.state.step, tau_sim=1.0, per_position=(), documents=0)
        found = checkpoint.load(self.store, self.task.run, best.step)
        if found is None:
            message = f"the best checkpoint, step {best.step}, is gone or broken; remove {train_path(self.task.run)}"
            raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message)
        checkpoint.resume(found, self.trainer.draft, self.trainer.optimizer)
        self.fence.check()
        acceptance = Acceptance(
            length=f"{best.tau_sim:.2f}",
            per_position=tuple(f"{share:.2f}" for share in best.per_position),
            draft_tokens=self.task.draft_tokens,
            prompts=best.documents,
            source="Simulated",
        )
        # Of the curve, which a run that was killed behind its last step still has.
        on_policy = self.saver.journal.last("onPolicy")
        trained = Trained(
            steps=self.state.step,
            best_step=best.step,
            loss=self.state.last_loss,
            acceptance=acceptance,
            on_policy=on_policy or None,
        )
        outcome = exporting.Outcome(
            self.task,
            self.dataset,
            self.state,
            best,
            trained,
            on_policy,
            self.trainer.source.target_identity,
            self.resumed_from,
            self.stopped_early,
        )
        return exporting.export_best(self.store, outcome, self.trainer)


if __name__ == "__main__":
    sys.exit(process.main(TrainTask, train))
