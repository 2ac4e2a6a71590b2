"""`draftyard run FILE.yaml`: the same plan and the same task files as on a cluster, with subprocesses in place of pods.

A second run goes on where the first one stopped: every stage finds its verified work in the workspace.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from draftyard_api import document, estimate, names, plan, preview, storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage
from draftyard_api.plan import Place, RunIdentity
from draftyard_api.progress import LOW_ON_POLICY, Prepared, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.task import BaseTask, ConversationsRef, StoredStatesRef
from draftyard_trainer import display
from draftyard_trainer.history import record_end
from draftyard_trainer.reporting import interrupted, read_progress
from draftyard_trainer.storage import access
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.tracking.sync import outcome
from draftyard_trainer.tracking.tracked_run import read_run
from draftyard_trainer.tracking.tracker import is_installed, not_installed

POLL_SECONDS = 0.2


@dataclass
class LocalRun:
    """One run on this machine: what is wanted, where it goes, and the results so far."""

    identity: RunIdentity
    spec: DraftTrainingSpec
    place: Place
    workspace: Path
    console: Console
    results: list[StageResult] = field(default_factory=list)

    def folder(self, label: str) -> Path:
        """What is kept of one stage process: its task, its result and its log."""
        return self.workspace / names.runs_path(self.identity.name) / label


def run(file: Path, workspace: Path, claims: Mapping[str, Path], bucket: str | None = None) -> int:
    """Run a DraftTraining through all its stages. Returns the exit code of the stage that ended it.

    With `bucket`, an `s3://` prefix, stages write there, and `workspace` holds only tasks, results and logs.
    """
    console = Console(stderr=True)
    try:
        local = open_run(file, workspace, claims, console, bucket)
    except document.SpecErrors as error:
        for line in error.errors:
            print(line, file=sys.stderr)
        return ExitCode.BAD_TASK
    for line in without_effect(local.spec):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    try:
        with exclusive(local), stopped_by_sigterm():
            run_stages(local)
    except KeyboardInterrupt:
        # Between two stages nothing runs that would have to save.
        console.print("stopped; run the same command again to go on", highlight=False)
        return ExitCode.INTERRUPTED
    except OSError as error:
        return tell(console, failure_of(error, local.workspace))
    except Failure as failure:
        return tell(console, failure)
    conclude(local)
    return ExitCode.OK


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: a run that a service manager stops saves too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tell(console: Console, failure: Failure) -> int:
    """Say how a run ended. Returns its exit code."""
    console.print(f"{failure.reason}: {failure.message}", style="red", highlight=False, soft_wrap=True)
    if failure.code == ExitCode.INTERRUPTED:
        console.print("run the same command again to go on", highlight=False)
    return failure.code


def failure_of(error: OSError, workspace: Path) -> Failure:
    """What a refused write of the run's own files means."""
    if access.is_full(error):
        message = f"workspace: {workspace}: no space left; free some, or use a larger one"
        return Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, message)
    return Failure(ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, f"workspace: {error}; make {workspace} writable")


def open_run(
    file: Path, workspace: Path, claims: Mapping[str, Path], console: Console, bucket: str | None = None
) -> LocalRun:
    """Read and check the file. Raises SpecErrors with everything that is wrong, before anything starts."""
    training = document.load(file)
    folder = workspace.resolve()
    base = file.resolve().parent
    place = Place(
        workspace=bucket or f"file://{folder}",
        resolve=lambda uri: storage_uri.resolve(uri, base, claims),
        workspace_s3=training.spec.workspace.s3 if bucket else None,
    )
    require_reachable(training.spec, place)
    identity = RunIdentity(name=training.metadata.name, uid=f"local-{training.metadata.name}")
    return LocalRun(identity, training.spec, place, folder, console)


def require_reachable(spec: DraftTrainingSpec, place: Place) -> None:
    """Raise SpecErrors naming everything that one machine cannot give: locations without a folder, further nodes."""
    file = spec.data.source.file
    locations = {
        "spec.target.model": spec.target.model,
        "spec.draft.initFrom": spec.draft.init_from,
        "spec.data.source.file.uri": file.uri if file else None,
    }
    errors = []
    if spec.train.nodes > 1:
        errors.append(f"spec.train.nodes: given {spec.train.nodes}; accepted in draftyard run: 1 (this machine)")
    for path, location in locations.items():
        try:
            if location:
                place.resolve(location)
        except ValueError as error:
            errors.append(f"{path}: {error}")
    if errors:
        raise document.SpecErrors(errors)


def without_effect(spec: DraftTrainingSpec) -> list[str]:
    """What is asked for and will not happen: said at the start, so that nobody waits for it."""
    return [
        f"spec.tracking.reportTo: {tracker}: {not_installed(tracker)}; metrics.jsonl has every point"
        for tracker in spec.tracking.report_to
        if not is_installed(tracker)
    ]


@contextmanager
def exclusive(local: LocalRun) -> Iterator[None]:
    """Hold the run's lock, so that two commands never work on one run. Raises Failure(FENCED)."""
    folder = local.folder("")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"run {local.identity.name}: another draftyard run works on it in {local.workspace}"
            raise Failure(ExitCode.FENCED, Reason.FENCED, message) from error
        yield


def run_stages(local: LocalRun) -> None:
    """Every stage in turn, each told what the ones before it found."""
    identity, spec, place = local.identity, local.spec, local.place
    conversations = regenerated(local) if Stage.REGENERATE in plan.stages(spec) else None
    task = plan.prepare_task(identity, spec, place, conversations=conversations)
    prepared = execute(local, "prepare", task).prepared
    assert prepared is not None
    if prepared.already_trained:
        return
    require_room(local, prepared)
    states: StoredStatesRef | None = None
    if Stage.GENERATE in plan.stages(spec):
        shards = plan.default_shards(spec, prepared)
        for shard in range(shards):
            capture = plan.generate_task(identity, spec, place, prepared, shard)
            stored = execute(local, f"generate-{shard:05d}", capture).hidden_states
            assert stored is not None
            states = StoredStatesRef(key=stored.key, shards=tuple(range(shards)), num_shards=shards)
    trained = execute(local, "train", plan.train_task(identity, spec, place, prepared, states)).trained
    if trained is not None and spec.data.regenerate is None and float(trained.on_policy or 1) < LOW_ON_POLICY:
        local.console.print(off_policy(trained.on_policy or ""), style="yellow", highlight=False, soft_wrap=True)
    if Stage.EVALUATE in plan.stages(spec):
        execute(local, "evaluate", plan.evaluate_task(identity, spec, place, prepared, states))


def regenerated(local: LocalRun) -> ConversationsRef:
    """Every shard of the target's own answers, one after the other."""
    shards = plan.default_conversation_shards(local.spec)
    keys = []
    for shard in range(shards):
        task = plan.regenerate_task(local.identity, local.spec, local.place, shards, shard)
        made = execute(local, f"regenerate-{shard:05d}", task).regenerated
        assert made is not None
        keys.append(made.key)
    return ConversationsRef(key=keys[0], num_shards=shards)


def off_policy(share: str) -> str:
    """What a person should know whose data the target would not have written."""
    return (
        f"only {share} of the tokens are what the target itself would have said ({LOW_ON_POLICY} or more is usual): "
        "the draft learns somebody else's text; data.regenerate: {} lets the target answer"
    )


def require_room(local: LocalRun, prepared: Prepared) -> None:
    """Raises Failure(NO_SPACE), with what would fit, before hours are spent: tokens are counted now.

    What an earlier attempt of the same run has written counts as room: it is a part of what is needed.
    """
    target = plan.located_target(local.spec, local.place)
    shape = preview.find_shape(local.spec.model_copy(update={"target": target}), Path("/"))
    if shape is None or prepared.free_bytes is None:
        return
    written = sum(path.stat().st_size for path in local.workspace.rglob("*") if path.is_file())
    amount = estimate.counted(prepared.counts)
    too_small = estimate.proposal(local.spec, shape, amount, prepared.free_bytes + written)
    if too_small:
        raise Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_TOO_SMALL, f"workspace: {too_small}")


def execute(local: LocalRun, label: str, task: BaseTask) -> StageResult:
    """Run one task as a subprocess and wait for it. Raises Failure when it did not reach its end."""
    folder = local.folder(label)
    folder.mkdir(parents=True, exist_ok=True)
    task_file = folder / "task.json"
    task_file.write_text(task.model_dump_json(by_alias=True, exclude_none=True, indent=1))
    stage = Stage(label.partition("-")[0])
    command = [sys.executable, "-m", "draftyard_api.cli", stage, "--task", str(task_file)]
    # A session of its own: Ctrl-C reaches this process only, which then asks the stage to save and stop.
    # The state lies outside the workspace, so that a full one can still be told about.
    with (
        tempfile.TemporaryDirectory(prefix="draftyard-") as state,
        (folder / "log.txt").open("ab") as log,
        display.StageBar(local.console, label) as bar,
        subprocess.Popen(  # noqa: S603  a list, never a shell
            command, env=environment(Path(state)), stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        asked = wait(process, Path(state), bar)
        result = read_result(Path(state), stage, process.returncode)
    # What a run cost is told by all of its processes; a disk that is full is told about by the stage itself.
    with suppress(Failure, OSError):
        record_end(open_store(local.place.workspace, local.place.workspace_s3), local.identity.name, label, result)
    # A stage that was just done when it was asked to stop is a success; the run stops all the same.
    if asked and not result.exit_code:
        raise interrupted(stage)
    if result.exit_code:
        message = f"{result.message} (log: {folder / 'log.txt'})"
        raise Failure(ExitCode(result.exit_code), result.reason, message)
    (folder / names.RESULT_FILE).write_text(result.model_dump_json(by_alias=True, exclude_none=True))
    local.results.append(result)
    local.console.print(f"{label}: {display.outcome(result)}", highlight=False, soft_wrap=True)
    return result


def environment(folder: Path) -> dict[str, str]:
    """The stage's environment: where its supervisor reports to."""
    ours = {
        names.ENV_STATE_DIR: str(folder),
        names.ENV_TERMINATION_LOG: str(folder / "termination-log"),
        names.ENV_PARENT: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    return {"TOKENIZERS_PARALLELISM": "true", **os.environ, **ours}


def wait(process: subprocess.Popen[bytes], folder: Path, bar: display.StageBar) -> bool:
    """Show progress until the process ends. The first Ctrl-C asks it to save and stop, the second one kills it.

    Returns whether it was asked.
    """
    asked = False
    while process.poll() is None:
        try:
            progress = read_progress(folder)
            if progress is not None:
                bar.show(progress)
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if asked:
                os.killpg(process.pid, signal.SIGKILL)
            asked = True
            process.terminate()
    return asked


def read_result(folder: Path, stage: Stage, exit_code: int) -> StageResult:
    """How the stage ended, by its own word or by its exit code alone."""
    result = preview.read_result(folder)
    if result is not None:
        return result
    code = ExitCode.INTERRUPTED if exit_code < 0 else ExitCode.ERROR
    reason = Reason.INTERRUPTED if exit_code < 0 else Reason.POD_FAILED
    return StageResult(stage=stage, exit_code=code, reason=reason, message=f"{stage} ended with {exit_code}")


def tracked(local: LocalRun) -> list[str]:
    """Where each tracker has the curves, and up to which step."""
    if not local.spec.tracking.report_to:
        return []
    # The run has come to its end, whatever can be said of its curves.
    with suppress(Failure):
        store = open_store(local.place.workspace, local.place.workspace_s3)
        run = read_run(store, local.identity.name)
        if run is not None:
            return [outcome(store, run, tracker) for tracker in local.spec.tracking.report_to]
    return []


def conclude(local: LocalRun) -> None:
    """The table, the serve commands, and the one line on stdout that scripts read."""
    console, spec = local.console, local.spec
    workspace = local.place.workspace.removeprefix("file://")
    draft = f"{workspace}/{names.export_path(local.identity.name)}"
    tree = spec.evaluate.tree if spec.evaluate else None
    console.print(display.stage_table(local.results))
    for line in tracked(local):
        console.print(line, highlight=False, soft_wrap=True)
    target = storage_uri.parse(local.place.resolve(spec.target.model))
    for line in display.serve_lines(target.path or str(target), draft, plan.draft_tokens(spec), tree):
        console.print(line, highlight=False, soft_wrap=True)
    report = shlex.join(["draftyard", "report", workspace, "--run", local.identity.name])
    console.print(f"a page about it: {report}", highlight=False, soft_wrap=True)
    last = local.results[-1]
    acceptance = last.acceptance or (last.trained.acceptance if last.trained else None)
    if acceptance is None:
        print(f"already trained draft: {draft}")
        return
    print(f"acceptance length {acceptance.length} ({display.conditions(acceptance, spec.evaluate)}) draft: {draft}")
