"""A workspace in a bucket. S3 has no rename: what is published is written last, and names what it needs.

A folder is published by its MANIFEST.json, which goes up when all other files are there; nobody reads a folder without
one. Where a folder replaces another, the old manifest goes first: for a moment there is none, never a mixture, and a
reader that began before finds sizes and hashes other than its manifest says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from draftyard_api.exit_codes import Failure
from draftyard_api.names import MANIFEST
from draftyard_api.schema import S3Access
from draftyard_trainer.storage.bucket import Bucket, Entry
from draftyard_trainer.storage.multipart import MultipartWriter
from draftyard_trainer.storage.store import parts_of

RANGE_BYTES = 16 * 2**20
"""Larger reads are made of several at a time."""
READERS = 16
ABANDONED = timedelta(days=1)
"""Age at which an unfinished upload counts as abandoned: its writer holds no lock that could be asked."""
COPY_BYTES = 2**20


class S3Store:
    """Objects are keys below a prefix. Safe to use from many threads."""

    def __init__(self, bucket: Bucket, prefix: str, downloads: Path | None = None) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.uri = f"s3://{bucket.name}/{self.prefix}".rstrip("/")
        self.downloads = downloads or default_downloads()
        """Where fetched objects lie, by their version."""

    @classmethod
    def open(cls, bucket: str, prefix: str, access: S3Access | None) -> S3Store:
        """The workspace `s3://bucket/prefix`."""
        return cls(Bucket.of(bucket, access, "workspace"), prefix)

    def exists(self, name: str) -> bool:
        """Whether an object of this name is there."""
        return self.bucket.head(self._key(name)) is not None

    def size(self, name: str) -> int | None:
        """Bytes of an object; None when it is absent."""
        found = self.bucket.head(self._key(name))
        return None if found is None else found.size

    def read(self, name: str) -> bytes:
        """A whole object. Raises FileNotFoundError."""
        return self.bucket.get(self._key(name))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Part of an object; a large one in pieces that are read side by side."""
        key = self._key(name)
        if length <= 2 * RANGE_BYTES:
            return self.bucket.get(key, offset, length)
        starts = range(offset, offset + length, RANGE_BYTES)
        with ThreadPoolExecutor(READERS) as threads:
            pieces = threads.map(
                lambda start: self.bucket.get(key, start, min(RANGE_BYTES, offset + length - start)), starts
            )
            return b"".join(pieces)

    def list(self, prefix: str) -> list[str]:
        """Objects below a folder."""
        below = self._key(prefix)
        skipped = len(self.prefix) + 1 if self.prefix else 0
        return sorted(entry.key[skipped:] for entry in self.bucket.list(f"{below}/" if below else ""))

    def publish(self, name: str, data: bytes) -> None:
        """Write an object: one request, which happens or does not."""
        self.bucket.put(self._key(name), data)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Write a large object; its bytes go up as they come, and it appears at the end."""
        writer = MultipartWriter(self.bucket, self._key(name))
        try:
            yield cast("BinaryIO", writer)
            writer.finish()
        except BaseException:
            # what went wrong first is what is told
            with suppress(Failure, FileNotFoundError):
                writer.abort()
            raise

    @contextmanager
    def create_folder(self, name: str) -> Iterator[Path]:
        """Stage a folder on the local disk, and upload it when the block ends: its manifest last.

        What lay there before is taken back first, its manifest before anything else.
        """
        with tempfile.TemporaryDirectory(prefix="draftyard-", dir=self._staging()) as staged:
            yield Path(staged)
            files = sorted(path for path in Path(staged).rglob("*") if path.is_file())
            wanted = {path.relative_to(staged).as_posix(): path for path in files}
            self.delete(f"{name}/{MANIFEST}")
            for old in self.list(name):
                if old.removeprefix(f"{name}/") not in wanted:
                    self.delete(old)
            for relative, path in sorted(wanted.items(), key=lambda item: item[0] == MANIFEST):
                with self.create(f"{name}/{relative}") as sink, path.open("rb") as source:
                    shutil.copyfileobj(source, sink, COPY_BYTES)

    def fetch(self, name: str) -> Path:
        """A local copy, made once for each version of the object. Raises FileNotFoundError."""
        file = PurePosixPath(name).name
        return self._copies({file: name}) / file

    def fetch_folder(self, name: str, files: Sequence[str]) -> Path:
        """A local folder with copies of some files of a folder. Raises FileNotFoundError."""
        return self._copies({file: f"{name}/{file}" for file in files})

    def _copies(self, names: Mapping[str, str]) -> Path:
        """A folder of copies of objects, by their names in it; another version of any of them has another folder."""
        entries = {}
        for file, name in names.items():
            found = self.bucket.head(self._key(name))
            if found is None:
                raise FileNotFoundError(2, "no such object", f"{self.uri}/{name}")
            entries[file] = found
        said = "\n".join(f"{self.bucket.name}/{entry.key} {entry.size} {entry.etag}" for entry in entries.values())
        place = self.downloads / hashlib.sha256(said.encode()).hexdigest()[:32]
        for file, entry in entries.items():
            download(self.bucket, entry, place / file)
        return place

    def delete(self, name: str) -> None:
        """Remove an object; absent is fine."""
        self.bucket.delete(self._key(name))

    def delete_folder(self, name: str) -> None:
        """Remove everything below a folder, its manifest first: nobody reads the rest without it."""
        self.delete(f"{name}/{MANIFEST}")
        for found in self.list(name):
            self.delete(found)

    def sweep(self, prefix: str) -> None:
        """End uploads below a folder that were begun more than a day ago and never finished."""
        client, name, below = self.bucket.client, self.bucket.name, f"{self._key(prefix)}/"
        found = self.bucket.call(
            "listing uploads", below, lambda: client.list_multipart_uploads(Bucket=name, Prefix=below)
        )
        # by the store's clock alone: ours may be another one, and may jump
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        for upload in found.get("Uploads", ()):
            if now - upload["Initiated"] > ABANDONED:
                where = {"Bucket": name, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                with suppress(FileNotFoundError):
                    self.bucket.call("deleting", upload["Key"], partial(client.abort_multipart_upload, **where))

    def free_bytes(self) -> int | None:
        """No limit that could be asked for."""
        return None

    def _key(self, name: str) -> str:
        parts = parts_of(name)
        return "/".join((self.prefix, *parts) if self.prefix else parts)

    def _staging(self) -> Path:
        self.downloads.mkdir(parents=True, exist_ok=True)
        return self.downloads


def default_downloads() -> Path:
    """A folder of this user on the local disk."""
    return Path(tempfile.gettempdir()) / f"draftyard-{os.getuid()}"


@dataclass(frozen=True)
class Downloaded:
    """Objects below a prefix in a local folder, and a hash of all that are there: names, sizes, versions."""

    folder: Path
    sha256: str


def download_folder(bucket: Bucket, prefix: str, wants: Callable[[str], bool]) -> Downloaded:
    """Copy the wanted objects below a prefix; what is there already is kept. Raises FileNotFoundError without any.

    The hash is of all objects, wanted or not: it does not depend on who asks.
    """
    below = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    entries = {entry.key[len(below) :]: entry for entry in bucket.list(below) if not entry.key.endswith("/")}
    if not entries:
        raise FileNotFoundError(2, "nothing is there", f"s3://{bucket.name}/{below}")
    said = "".join(f"{name}\0{entry.size}\0{entry.etag}\n" for name, entry in sorted(entries.items()))
    identity = hashlib.sha256(said.encode()).hexdigest()
    folder = default_downloads() / identity[:32]
    for name, entry in entries.items():
        if wants(name):
            download(bucket, entry, folder / name)
    return Downloaded(folder, identity)


def download(bucket: Bucket, entry: Entry, path: Path) -> Path:
    """Copy an object to `path`, in pieces side by side; it appears there whole. What is there already is kept."""
    if path.is_file() and path.stat().st_size == entry.size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as staged:
        try:
            staged.truncate(entry.size)

            def copy(start: int) -> None:
                os.pwrite(staged.fileno(), bucket.get(entry.key, start, min(RANGE_BYTES, entry.size - start)), start)

            with ThreadPoolExecutor(READERS) as threads:
                # list: an error in a thread must come out
                list(threads.map(copy, range(0, entry.size, RANGE_BYTES)))
            Path(staged.name).replace(path)
        except BaseException:
            Path(staged.name).unlink(missing_ok=True)
            raise
    return path
