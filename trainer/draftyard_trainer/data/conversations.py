"""Conversations with the target's own answers, as `regenerate` leaves them and `prepare` reads them.

    conversations/<hash>/s<S>/key.json                          everything that decides them
    conversations/<hash>/s<S>/shard-00003/part-000.<hash>.jsonl a row of the source in each line, in order
    conversations/<hash>/s<S>/shard-00003/MANIFEST.json         last: complete and verified

Row r of the source is in shard r mod S. A part carries the hash of its bytes in its name and is published whole, so
what lies there is what was said; two pods of one index never mix their bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, conversation_shard_path, conversations_path
from draftyard_api.reasons import Reason
from draftyard_api.schema import Dtype, Model
from draftyard_api.task import ConversationsRef
from draftyard_trainer.data.conversation import SkipReason
from draftyard_trainer.data.files import BadRow
from draftyard_trainer.data.manifest import Sha256
from draftyard_trainer.storage.sealed import seal, unseal
from draftyard_trainer.storage.store import Store

KEY_FILE = "key.json"
SKIPPED = "skipped"
"""Key of a line whose row has no conversation: why."""
FileName = Annotated[str, Field(pattern=r"^part-[0-9]{3,6}\.[0-9a-f]{16}\.jsonl$")]
PART = re.compile(r"part-([0-9]{3,6})\.([0-9a-f]{16})\.jsonl")
Line = Mapping[str, Any]


class ConversationsKey(Model):
    """Everything that decides the conversations; its hash names their folder."""

    format_version: Literal[1] = 1
    """Of the files, and of how parts are cut."""
    target: str
    """Commit, or content hash of a folder."""
    dtype: Dtype
    """Precision of the target."""
    data_sha256: str
    """Content of the source."""
    template_sha256: Sha256
    """The chat template's source."""
    template_kwargs: dict[str, Any]
    """Its arguments."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer, ascending."""
    max_samples: int | None
    """Rows that are read at most."""
    max_length: int
    """Tokens of a conversation: what goes beyond is not learned, and so not said."""
    max_new_tokens: int
    """Tokens of an answer at most."""
    temperature: str
    """0: greedy; a text, so that its spelling is one."""
    seed: int | None
    """Of the draws; None where nothing is drawn."""
    engine: str
    """Who answers: `transformers`, or the name under which an engine serves the target."""

    def sha256(self) -> str:
        """Hash of the canonical document."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def name(self) -> str:
        """Folder below `conversations/`: 16 hex digits."""
        return self.sha256()[:16]


class Counted(Model):
    """What some rows came to."""

    rows: int = 0
    """Rows of the source."""
    conversations: int = 0
    """Those with an answer of the target."""
    answers: int = 0
    """Answers."""
    unfinished: int = 0
    """Answers that were cut at their limit."""
    respelled: int = 0
    """Answers whose text, read again, gives other tokens than were said."""
    tokens: int = 0
    """Tokens that were said."""
    skipped: dict[str, int] = Field(default={})
    """Rows without an answer, by reason."""

    def __add__(self, other: Counted) -> Counted:
        """Of both."""
        reasons = sorted({*self.skipped, *other.skipped})
        sums = {name: getattr(self, name) + getattr(other, name) for name in Counted.model_fields if name != "skipped"}
        both = {reason: self.skipped.get(reason, 0) + other.skipped.get(reason, 0) for reason in reasons}
        return Counted(**sums, skipped=both)


def counted(lines: Sequence[Line]) -> Counted:
    """What lines say of themselves."""
    total = Counted()
    for line in lines:
        if SKIPPED in line:
            total += Counted(rows=1, skipped={line[SKIPPED]: 1})
        else:
            numbers = {name: line[name] for name in ("answers", "unfinished", "respelled", "tokens")}
            total += Counted(rows=1, conversations=1, **numbers)
    return total


class StoredLines(Model):
    """A part in the shard's manifest."""

    file: FileName
    """In the same folder."""
    bytes: int
    """Its size."""
    sha256: Sha256
    """Of its content."""
    rows: int
    """Lines."""


class ConversationManifest(Model):
    """Written last: the shard is complete."""

    key: Sha256
    """Full hash of the key document."""
    shard: int
    """Number of the shard."""
    shards: int
    """Number of all shards of this cut."""
    counts: Counted
    """What its rows came to."""
    parts: tuple[StoredLines, ...]
    """In order."""
    product: str
    """Version of Draftyard."""
    device: str
    """Who answered in the last attempt: a GPU, `cpu`, or `engine`."""
    seconds: float
    """Time of the last attempt."""
    tokens_per_second: float | None
    """Its rate; None when nothing was said in it."""

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True)
class Part:
    """A part that is there: what the manifest says of it, and its lines."""

    stored: StoredLines
    counts: Counted


def encoded(lines: Sequence[Line]) -> bytes:
    """Lines as they are stored."""
    texts = (json.dumps(line, separators=(",", ":"), ensure_ascii=False) for line in lines)
    # a half of a surrogate pair, which no tokenizer takes either
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "replace")


def decoded(content: bytes) -> list[Line]:
    """Stored lines. Raises ValueError."""
    return [json.loads(line) for line in content.splitlines()]


def describe(number: int, content: bytes, rows: int) -> StoredLines:
    """What the manifest says of a part."""
    sha256 = hashlib.sha256(content).hexdigest()
    return StoredLines(file=f"part-{number:03d}.{sha256[:16]}.jsonl", bytes=len(content), sha256=sha256, rows=rows)


@dataclass(frozen=True)
class ConversationShard:
    """One shard's folder in a store."""

    store: Store
    folder: str

    def manifest(self) -> ConversationManifest | None:
        """The manifest of a complete shard, else None."""
        try:
            return ConversationManifest.model_validate_json(unseal(self.store.read(f"{self.folder}/{MANIFEST}")))
        except (FileNotFoundError, ValueError):
            return None

    def committed(self) -> dict[int, str]:
        """Names of the parts that earlier attempts left, by number."""
        found: dict[int, str] = {}
        for name in self.store.list(self.folder):
            match = PART.fullmatch(name.rpartition("/")[2])
            if match:
                found.setdefault(int(match[1]), name)
        return found

    def read_part(self, number: int, name: str, rows: Sequence[int]) -> Part | None:
        """A part that an earlier attempt left, when it is whole and holds these rows; else None."""
        try:
            content = self.store.read(name)
            lines = decoded(content)
        except (FileNotFoundError, ValueError):
            return None
        stored = describe(number, content, len(lines))
        if name != f"{self.folder}/{stored.file}" or [line.get("row") for line in lines] != list(rows):
            return None
        return Part(stored, counted(lines))

    def commit(self, number: int, lines: Sequence[Line]) -> Part:
        """Publish a part."""
        content = encoded(lines)
        stored = describe(number, content, len(lines))
        self.store.publish(f"{self.folder}/{stored.file}", content)
        return Part(stored, counted(lines))

    def complete(self, manifest: ConversationManifest) -> None:
        """Write the manifest, as the very last."""
        content = seal(manifest.model_dump_json(by_alias=True, indent=1).encode())
        self.store.publish(f"{self.folder}/{MANIFEST}", content)

    def tidy(self, manifest: ConversationManifest) -> None:
        """Remove what killed or beaten attempts left in a complete shard."""
        files = {MANIFEST, *(part.file for part in manifest.parts)}
        for name in self.store.list(self.folder):
            if name.rpartition("/")[2] not in files:
                self.store.delete(name)
        self.store.sweep(self.folder)

    def distrust(self, part: StoredLines | None = None) -> None:
        """Take back that the shard is complete, and a part that is broken: only that is made again."""
        self.store.delete(f"{self.folder}/{MANIFEST}")
        if part is not None:
            self.store.delete(f"{self.folder}/{part.file}")

    def content(self, part: StoredLines) -> bytes | None:
        """The bytes of a part; None when they are not those that were published."""
        try:
            content = self.store.read(f"{self.folder}/{part.file}")
        except FileNotFoundError:
            return None
        return content if hashlib.sha256(content).hexdigest() == part.sha256 else None


def write_key(store: Store, key: ConversationsKey, shards: int) -> None:
    """Leave the key document for people; whoever finds it absent writes it, all would write the same."""
    name = f"{conversations_path(key.name(), shards)}/{KEY_FILE}"
    if not store.exists(name):
        store.publish(name, seal(key.model_dump_json(by_alias=True, indent=1).encode()))


# -- Reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConversationRows:
    """All shards as one source: the rows of the original one, in its order, whatever their number."""

    shards: tuple[ConversationShard, ...]
    manifests: tuple[ConversationManifest, ...]

    @classmethod
    def open(cls, store: Store, ref: ConversationsRef) -> ConversationRows:
        """The conversations of a task. Raises Failure(STALE_INPUT) naming the shard that is not complete."""
        paths = (conversation_shard_path(ref.key, ref.num_shards, number) for number in range(ref.num_shards))
        shards = tuple(ConversationShard(store, path) for path in paths)
        manifests = []
        for number, shard in enumerate(shards):
            manifest = shard.manifest()
            place = (number, ref.num_shards)
            if manifest is None or (manifest.shard, manifest.shards) != place or manifest.key[:16] != ref.key:
                shard.distrust()
                raise stale(shard.folder, "the shard is not complete")
            manifests.append(manifest)
        return cls(shards, tuple(manifests))

    @property
    def key_sha256(self) -> str:
        """Full hash of everything that decides the conversations."""
        return self.manifests[0].key

    def sha256(self) -> str:
        """Hash of all lines in the order of the source: another number of shards has the same. Raises Failure."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line + b"\n")
        return digest.hexdigest()

    def rows(self) -> Iterator[Any | BadRow]:
        """One conversation at a time; rows without one have the reason that they had."""
        for text in self.lines():
            line = json.loads(text)
            yield BadRow(SkipReason(line[SKIPPED])) if SKIPPED in line else line

    def lines(self) -> Iterator[bytes]:
        """The stored lines. Raises Failure(STALE_INPUT) for a part that is gone or damaged, which is taken back."""
        readers = [self._lines_of(*pair) for pair in zip(self.shards, self.manifests, strict=True)]
        for place in range(sum(manifest.counts.rows for manifest in self.manifests)):
            number = place % len(readers)
            line = next(readers[number], None)
            if line is None:
                self.shards[number].distrust()
                raise stale(self.shards[number].folder, f"it does not have row {place}")
            yield line

    def _lines_of(self, shard: ConversationShard, manifest: ConversationManifest) -> Iterator[bytes]:
        for part in manifest.parts:
            content = shard.content(part)
            if content is None:
                shard.distrust(part)
                raise stale(f"{shard.folder}/{part.file}", "it is gone, or not what was written")
            yield from content.splitlines()


def stale(where: str, what: str) -> Failure:
    """Conversations that cannot be read: the stage that makes them runs again."""
    return Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, f"{where}: {what}; regenerate has to run again")
