"""`draftyard export`: a published draft, with a model card, to a folder, a bucket or a repository of the hub.

What leaves holds no path of a machine. The same draft twice uploads nothing; a place that holds another one is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

from pydantic import ValidationError
from rich.console import Console

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, PUBLISHED, export_path
from draftyard_api.reasons import Reason
from draftyard_trainer.draft import speculators
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE
from draftyard_trainer.draft.manifest import Evaluation, FileRecord, Manifest, Published
from draftyard_trainer.hub import HubRepository
from draftyard_trainer.model_card import Subject, model_card
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store

CARD, EVALUATION = "README.md", "evaluation.json"
FORMS = ("portable", "speculators")
TEXTS = (CARD, MANIFEST, CONFIG_FILE)
"""Small files, whose contents tell whether anything changed."""
T = TypeVar("T")
OURS = (CARD, MANIFEST, CONFIG_FILE, WEIGHTS_FILE, EVALUATION)
"""Everything that a place may hold of a draft."""


@dataclass(frozen=True)
class Wish:
    """What a person asks for."""

    run: str
    to: Path | None = None
    push: str | None = None
    form: str = "portable"
    private: bool = False
    allow_unpublished: bool = False
    replace: bool = False


@dataclass(frozen=True)
class Export:
    """What lies in the workspace of one run."""

    folder: Path
    manifest: Manifest
    published: Published | None
    evaluation: Evaluation | None


class Place(Protocol):
    """Where a draft goes."""

    @property
    def name(self) -> str:
        """As people name it."""
        ...

    @property
    def replaces_all(self) -> bool:
        """Whether writing removes everything that was there."""
        ...

    def files(self) -> set[str]:
        """Names of what is there."""
        ...

    def read(self, file: str) -> bytes:
        """One of them."""
        ...

    def write(self, files: dict[str, Path], removed: set[str]) -> str:
        """Put files there, the manifest last or all at once. Returns where, for people."""
        ...


def export(store: Store, wish: Wish, console: Console, hub: Callable[[str], HubRepository] = HubRepository) -> int:
    """Write and upload what is asked for. Returns OK. Raises Failure."""
    if wish.to is None and wish.push is None:
        raise refused("export: given neither --to nor --push; accepted: at least one of them")
    # before anything is read: a mistyped place is said at once
    places = [place_of(text, wish, hub) for text in (wish.to and str(wish.to.resolve()), wish.push) if text]
    found = open_published(store, wish)
    for place in places:
        with TemporaryDirectory(prefix="draftyard-") as staged:
            send(place, stage(found, wish.form, place.name, Path(staged)), wish, console)
    return ExitCode.OK


# -- What goes -----------------------------------------------------------------------------------


def open_published(store: Store, wish: Wish) -> Export:
    """The export of a run, whole. Raises Failure for one that is gone, broken, or not published."""
    name = export_path(wish.run)
    try:
        content = store.read(f"{name}/{MANIFEST}")
        manifest = Manifest.model_validate_json(content)
        folder = store.fetch_folder(name, tuple(manifest.files))
    except FileNotFoundError as error:
        message = f"--run: given {wish.run}; {store.uri}/{name} holds no whole draft; `draftyard inspect` lists them"
        raise Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message) from error
    except ValidationError as error:
        raise stale(name, f"{MANIFEST} is broken ({error.errors()[0]['msg']})") from error
    wrong = [file for file, record in manifest.files.items() if FileRecord.of(folder / file) != record]
    if wrong:
        raise stale(name, f"{wrong[0]} is not what its manifest says")
    sha256 = hashlib.sha256(content).hexdigest()
    published = read_value(store, f"{name}/{PUBLISHED}", Published.model_validate_json)
    if published is None or published.manifest_sha256 != sha256:
        if not wish.allow_unpublished:
            message = (
                f"--run: given {wish.run}; {name} is not published: it is below its gate, or was not evaluated; run "
                "`draftyard run` to the end, lower evaluate.minAcceptanceLength, or give --allow-unpublished (the card "
                "says so)"
            )
            raise Failure(ExitCode.GATE_MISSED, Reason.ACCEPTANCE_TOO_LOW, message)
        published = None
    evaluation = read_value(store, f"{name}/{EVALUATION}", Evaluation.model_validate_json)
    if evaluation is not None and evaluation.manifest_sha256 != sha256:
        evaluation = None
    return Export(folder, manifest, published, evaluation)


def read_value(store: Store, name: str, parse: Callable[[bytes], T]) -> T | None:
    """A JSON file as a value; None where it is absent or broken."""
    try:
        return parse(store.read(name))
    except (FileNotFoundError, ValidationError):
        return None


def stage(found: Export, form: str, name: str, folder: Path) -> dict[str, Path]:
    """Everything that goes, by its name there. Raises Failure where an export lacks the form."""
    below = f"{speculators.FOLDER}/" if form == "speculators" else ""
    if f"{below}{WEIGHTS_FILE}" not in found.manifest.files:
        raise stale(export_path(found.manifest.run), f"it has no {form} form: an earlier version made it")
    files = {file: found.folder / f"{below}{file}" for file in (CONFIG_FILE, WEIGHTS_FILE)}
    target = public_name(found.manifest.target.model)
    if form == "speculators":
        files[CONFIG_FILE] = folder / CONFIG_FILE
        files[CONFIG_FILE].write_bytes(for_others(found.folder / f"{below}{CONFIG_FILE}", target))
    manifest = found.manifest.model_copy(
        update={
            "target": found.manifest.target.model_copy(update={"model": target}),
            "files": {file: FileRecord.of(path) for file, path in files.items()},
        }
    )
    texts = {
        CARD: model_card(subject_of(found, manifest, form, name, target)),
        MANIFEST: manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1),
    }
    if found.evaluation is not None:
        texts[EVALUATION] = found.evaluation.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    for file, text in texts.items():
        files[file] = folder / file
        files[file].write_text(text)
    return files


def subject_of(found: Export, manifest: Manifest, form: str, name: str, target: str) -> Subject:
    """What the card is about."""
    published = found.published
    return Subject(
        name=name,
        target=target,
        on_hub=storage_uri.parse(found.manifest.target.model).scheme == "hf",
        form=form,
        manifest=manifest,
        acceptance=published.acceptance if published else None,
        settings=published.settings if published else None,
        evaluation=found.evaluation if published else None,
    )


def for_others(config: Path, target: str) -> bytes:
    """A config of the speculators form that names the target, not a folder of this machine."""
    content = json.loads(config.read_bytes())
    content["speculators_config"]["verifier"]["name_or_path"] = target
    return f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode()


def public_name(model: str) -> str:
    """A model as others know it: org/name, a bucket's prefix, or the last part of a folder."""
    location = storage_uri.parse(model)
    if location.scheme == "hf":
        return location.path
    return Path(location.path).name if location.scheme == "file" else str(location)


# -- Where it goes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderPlace:
    """A folder, or a prefix in a bucket."""

    name: str
    store: Store
    folder: str
    replaces_all: bool = True

    def files(self) -> set[str]:
        """Names of what is there."""
        return {name.removeprefix(f"{self.folder}/") for name in self.store.list(self.folder)}

    def read(self, file: str) -> bytes:
        """One of them."""
        return self.store.read(f"{self.folder}/{file}")

    def write(self, files: dict[str, Path], removed: set[str]) -> str:  # noqa: ARG002  the whole place changes
        """A folder changes at one stroke; in a bucket the old manifest goes first, and the new one comes last."""
        with self.store.create_folder(self.folder) as staged:
            for name, path in files.items():
                shutil.copyfile(path, staged / name)
        return f"{self.store.uri}/{self.folder}"


@dataclass(frozen=True)
class HubPlace:
    """A repository of the hub."""

    repository: HubRepository
    private: bool
    replaces_all: bool = False

    @property
    def name(self) -> str:
        """Of the repository."""
        return self.repository.name

    def files(self) -> set[str]:
        """Names of what is there."""
        return self.repository.files()

    def read(self, file: str) -> bytes:
        """One of them."""
        return self.repository.read(file)

    def write(self, files: dict[str, Path], removed: set[str]) -> str:
        """One commit."""
        return self.repository.write(files, removed, self.private, "A draft of Draftyard, with its card")


def place_of(text: str, wish: Wish, hub: Callable[[str], HubRepository]) -> Place:
    """Where `--to` or `--push` points. Raises Failure for a location that nothing can be written to."""
    try:
        location = storage_uri.parse(text)
    except ValueError as error:
        raise refused(f"--push: {error}") from error
    if location.scheme == "hf" and text.startswith("hf://"):
        return HubPlace(hub(location.path), wish.private)
    parent, _, last = location.path.strip("/").rpartition("/")
    if location.scheme == "s3" and last:
        return FolderPlace(text.rstrip("/"), open_store(f"s3://{location.authority}/{parent}".rstrip("/")), last)
    if location.scheme == "file" and text == str(wish.to.resolve() if wish.to else ""):
        return FolderPlace(last, LocalStore(Path(text).parent), last)
    raise refused(f"--push: given {text}; accepted: hf://org/name, s3://bucket/prefix (a folder: --to DIR)")


def send(place: Place, files: dict[str, Path], wish: Wish, console: Console) -> None:
    """Write a draft to its place. Raises Failure(EXISTS) for a place that holds another one."""
    there = place.files()
    others = sorted(there - set(OURS))
    if others and place.replaces_all:
        message = f"{place.name} holds other files, such as {others[0]}; accepted: a place of the draft's own"
        raise Failure(ExitCode.EXISTS, Reason.OUTPUT_EXISTS, message)
    known = there & set(OURS)
    if {MANIFEST, WEIGHTS_FILE} <= there and is_same(place.read(MANIFEST), files[MANIFEST].read_bytes()):
        if all(name in there and place.read(name) == files[name].read_bytes() for name in TEXTS):
            console.print(f"{place.name}: it is there already; nothing was uploaded", highlight=False, soft_wrap=True)
            return
    elif there & {MANIFEST, CONFIG_FILE, WEIGHTS_FILE} and not wish.replace:
        message = (
            f"{place.name} holds another draft, or a part of one; accepted: a place that is empty or holds this one, "
            "or --replace, which puts this one in its stead"
        )
        raise Failure(ExitCode.EXISTS, Reason.OUTPUT_EXISTS, message)
    where = place.write(files, known - set(files))
    console.print(f"{place.name}: {len(files)} files, {where}", highlight=False, soft_wrap=True)


def is_same(there: bytes, ours: bytes) -> bool:
    """Whether two manifests are of one draft: the same weights, of the same run."""
    try:
        found, wanted = Manifest.model_validate_json(there), Manifest.model_validate_json(ours)
    except ValidationError:
        return False
    return (found.fingerprint, found.files.get(WEIGHTS_FILE)) == (wanted.fingerprint, wanted.files.get(WEIGHTS_FILE))


def refused(message: str) -> Failure:
    """A wish that cannot be fulfilled."""
    return Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)


def stale(name: str, what: str) -> Failure:
    """An export that cannot be given away as it lies there."""
    return Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, f"{name}: {what}; train must run again")
