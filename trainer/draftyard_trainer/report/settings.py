"""What was asked of a run, as names and texts: from the export's manifest, or from what training was told."""

from __future__ import annotations

from draftyard_api.schema import Model
from draftyard_trainer.report.record import Record

SHOWN_DIGITS = 12
"""Of a hash: enough to tell one from another."""


def settings(record: Record) -> dict[str, str]:
    """Settings by name, in the order of a page; what is not known is left out."""
    found: dict[str, str] = {}
    if record.mode is not None:
        found["mode"] = record.mode
    found |= of_draft(record) | of_training(record) | of_data(record)
    if record.states is not None and record.states.key is not None:
        found["codec"] = record.states.key.codec
    if record.evaluation is not None:
        judged = flat(record.evaluation.settings)
        found |= {f"evaluate.{name}": value for name, value in judged.items()}
    return found


def of_draft(record: Record) -> dict[str, str]:
    """The target and the draft."""
    manifest, task = record.manifest, record.train_task
    if manifest is not None:
        return {
            "target": manifest.target.model,
            "target commit": manifest.target.commit[:SHOWN_DIGITS],
            "dtype": manifest.target.dtype,
            "profile": manifest.profile,
            "aux layers": ", ".join(map(str, manifest.aux_layers)),
            "draft vocabulary": str(manifest.vocabulary.size),
        }
    if task is not None:
        return {
            "target": task.target.model,
            "dtype": task.target.dtype,
            "profile": task.draft.profile,
            "aux layers": ", ".join(map(str, task.aux_layers)),
            "draft vocabulary": str(task.draft.vocab_size),
        }
    return {}


def of_training(record: Record) -> dict[str, str]:
    """Loss, schedule and optimizer."""
    manifest, task = record.manifest, record.train_task
    if manifest is not None:
        schedule = manifest.schedule
        optimizer = {name: str(value) for name, value in schedule.optimizer.items()}
        return {"steps": str(schedule.steps), "epochs": str(schedule.epochs), "seed": str(schedule.seed)} | (
            flat(manifest.conventions) | optimizer
        )
    return flat(task.train) if task is not None else {}


def of_data(record: Record) -> dict[str, str]:
    """The conversations."""
    if record.documents is None:
        return {}
    key = record.documents.manifest.key
    return {
        "data": key.data_sha256[:SHOWN_DIGITS],
        "max samples": "all" if key.max_samples is None else str(key.max_samples),
        "max length": str(key.max_length),
        "held out": key.eval_fraction,
    }


def flat(model: Model) -> dict[str, str]:
    """Plain fields of a value as texts, nested ones by dotted names."""
    found: dict[str, str] = {}
    for name, value in model.model_dump(by_alias=True, exclude_none=True, mode="json").items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": str(each) for inner, each in value.items()}
        else:
            found[name] = str(value)
    return found


def differing(columns: list[dict[str, str]]) -> dict[str, list[str]]:
    """Of several runs, the settings that are not alike; `-` where one has none."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = {name: [column.get(name, "-") for column in columns] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}
