"""What is kept of a run for its trackers, in `train/<run>/tracking`: who it is, and how far each tracker has come."""

from __future__ import annotations

import secrets

from pydantic import JsonValue, ValidationError

from draftyard_api.names import train_path
from draftyard_api.schema import Model, Tracker
from draftyard_api.spec import Mlflow, Swanlab, Tracking, Wandb
from draftyard_trainer.storage.store import Store
from draftyard_trainer.tracking.points import Position

RUN_FILE = "run.json"


class TrackedRun(Model):
    """A run as trackers show it."""

    run: str
    """Its name."""
    fingerprint: str
    """Of its result: another one under the same name is another run."""
    tracking: Tracking
    """Where curves go."""
    config: dict[str, JsonValue]
    """What it was asked for, and with what it was done."""
    tags: tuple[str, ...]
    """What it is found by."""


class Cursor(Model):
    """How far one tracker has come with one run."""

    holder: str
    """The process that sends. Who finds another one here stops: two would send everything twice."""
    fingerprint: str
    """Of the run that this is about."""
    id: str
    """What the tracker knows the run by, in all its sessions."""
    destination: str
    """Where it was sent to. Another place has none of it yet."""
    sent: Position = Position()
    """What the tracker has."""
    session: int = 0
    """Number of times that the tracker was opened."""
    open_since: Position | None = None
    """Of a tracker that writes files: where the session began, until it is closed.

    Files of a session that was never closed may lack its end. They are removed, and written anew from here.
    """
    url: str | None = None
    """Where a person looks at it."""


def tracking_path(run: str) -> str:
    """The folder of both."""
    return f"{train_path(run)}/tracking"


def files_path(run: str, tracker: Tracker) -> str:
    """What a tracker writes itself, where it writes files."""
    return f"{train_path(run)}/{tracker}"


def write_run(store: Store, run: TrackedRun) -> None:
    """Keep it, names of Secrets left out."""
    tracking = run.tracking
    blocks: dict[str, Wandb | Swanlab | Mlflow | None] = {
        "wandb": tracking.wandb, "swanlab": tracking.swanlab, "mlflow": tracking.mlflow,
    }  # fmt: skip
    bare = {name: block.model_copy(update={"secret_ref": None}) for name, block in blocks.items() if block}
    kept = run.model_copy(update={"tracking": tracking.model_copy(update=bare)})
    content = kept.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    store.publish(f"{tracking_path(run.run)}/{RUN_FILE}", content.encode())


def read_run(store: Store, run: str) -> TrackedRun | None:
    """What was kept; None when there is nothing that can be read."""
    try:
        return TrackedRun.model_validate_json(store.read(f"{tracking_path(run)}/{RUN_FILE}"))
    except (FileNotFoundError, ValidationError):
        return None


def cursor_name(run: str, tracker: Tracker) -> str:
    """Where the cursor lies."""
    return f"{tracking_path(run)}/{tracker}.json"


def write_cursor(store: Store, run: str, tracker: Tracker, cursor: Cursor) -> None:
    """Keep it."""
    store.publish(cursor_name(run, tracker), cursor.model_dump_json(by_alias=True, exclude_none=True).encode())


def read_cursor(store: Store, run: str, tracker: Tracker) -> Cursor | None:
    """What was kept; None when there is nothing that can be read."""
    try:
        return Cursor.model_validate_json(store.read(cursor_name(run, tracker)))
    except (FileNotFoundError, ValidationError):
        return None


def next_cursor(found: Cursor | None, run: TrackedRun, destination: str) -> Cursor:
    """The cursor of a process that takes over: what can be gone on with is kept."""
    holder = secrets.token_hex(8)
    if found is None or found.fingerprint != run.fingerprint:
        session = 0 if found is None else found.session
        return Cursor(
            holder=holder,
            fingerprint=run.fingerprint,
            id=secrets.token_hex(8),
            destination=destination,
            session=session,
        )
    if found.destination != destination:
        return found.model_copy(
            update={"holder": holder, "destination": destination, "sent": Position(), "open_since": None, "url": None}
        )
    return found.model_copy(update={"holder": holder})
