"""Hidden states go when the run that they were made for has published its draft, and no other run uses them.

A run says that it uses them with an empty object, before it looks whether they are complete. One that does so while
they go finds them incomplete, or broken, and makes them again, as it does with any other that are gone.
"""

from __future__ import annotations

from draftyard_api.names import hidden_states_path
from draftyard_api.progress import StageResult
from draftyard_api.task import CacheRef, EvaluateTask, TrainTask
from draftyard_trainer.hidden_states.key import USERS
from draftyard_trainer.storage.store import Store


def reclaim(store: Store, task: TrainTask | EvaluateTask, result: StageResult) -> StageResult:
    """Remove the states that the task names, if the draft is published. Returns the result, which says what was done.

    May be called again after it was cut short.
    """
    if task.reclaims is None or result.published is None:
        return result
    others = users_beside(store, task.reclaims, task.run)
    if others:
        told = f"hidden states are kept: used by {', '.join(others[:3])}{' and others' if others[3:] else ''}"
        return result.model_copy(update={"message": f"{result.message}; {told}", "states_reclaimed": False})
    store.delete_folder(hidden_states_path(task.reclaims.key, task.reclaims.num_shards))
    return result.model_copy(update={"states_reclaimed": True})


def users_beside(store: Store, ref: CacheRef, run: str) -> list[str]:
    """Runs that use stored states, sorted; this one has done with them."""
    folder = f"{hidden_states_path(ref.key, ref.num_shards)}/{USERS}"
    store.delete(f"{folder}/{run}")
    return [name.rpartition("/")[2] for name in store.list(folder)]
