"""A bucket as a workspace: whole or not at all, whatever the network does, wherever a writer dies."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from faults import Proxy

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST
from draftyard_api.reasons import Reason
from draftyard_api.schema import S3Access
from draftyard_trainer.storage import multipart, s3
from draftyard_trainer.storage.bucket import WAITS_SECONDS, Bucket
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.s3 import S3Store
from draftyard_trainer.storage.store import Store

NAME = "a/b/one.bin"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """S3's own minimum, so that uploads of several pieces are quick."""
    monkeypatch.setattr(multipart, "PIECE_BYTES", 5 * 2**20)
    return 5 * 2**20


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Both kinds: what holds for one holds for the other."""
    return LocalStore(tmp_path / "workspace") if request.param == "local" else request.getfixturevalue("store")


# -- What every store does ----------------------------------------------------------------------------


def test_objects(any_store: Store) -> None:
    any_store.publish(NAME, b"0123456789")
    assert any_store.exists(NAME)
    assert any_store.size(NAME) == 10
    assert any_store.read(NAME) == b"0123456789"
    assert any_store.read_range(NAME, 3, 4) == b"3456"
    assert any_store.read_range(NAME, 8, 4) == b"89"
    assert any_store.read_range(NAME, 10, 4) == b""
    assert any_store.read_range(NAME, 2, 0) == b""
    assert any_store.fetch(NAME).read_bytes() == b"0123456789"
    any_store.publish(NAME, b"")
    assert any_store.read(NAME) == b""
    assert any_store.size(NAME) == 0
    assert any_store.fetch(NAME).read_bytes() == b""
    any_store.delete(NAME)
    any_store.delete(NAME)
    assert not any_store.exists(NAME)


def test_what_is_absent(any_store: Store) -> None:
    assert not any_store.exists("no")
    assert any_store.size("no") is None
    assert any_store.list("no") == []
    for read in (any_store.read, any_store.fetch, lambda name: any_store.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("no")
    with pytest.raises(FileNotFoundError):
        any_store.fetch_folder("no", ("file",))
    any_store.delete_folder("no")
    any_store.sweep("no")


def test_lists_are_of_folders(any_store: Store) -> None:
    for name in ("a/2", "a/1", "ab/3", "a/sub/4", "c"):
        any_store.publish(name, b"x")
    assert any_store.list("a") == ["a/1", "a/2", "a/sub/4"]
    assert any_store.list("") == ["a/1", "a/2", "a/sub/4", "ab/3", "c"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../other", "a/../../b"])
def test_names_outside_are_refused(any_store: Store, name: str) -> None:
    with pytest.raises(ValueError, match=r'without "\.\."'):
        any_store.publish(name, b"x")


def test_a_large_object_appears_when_it_is_whole(any_store: Store, small_pieces: int) -> None:
    content = os.urandom(2 * small_pieces + 17)
    with any_store.create(NAME) as sink:
        for start in range(0, len(content), 700_001):
            assert sink.write(content[start : start + 700_001]) == len(content[start : start + 700_001])
        assert not any_store.exists(NAME)
    assert any_store.read(NAME) == content
    assert any_store.fetch(NAME).read_bytes() == content


def write_half(store: Store, content: bytes) -> None:
    with store.create(NAME) as sink:
        sink.write(content)
        raise KeyError


def test_a_large_object_that_fails_leaves_the_old_one(any_store: Store, small_pieces: int) -> None:
    any_store.publish(NAME, b"old")
    with pytest.raises(KeyError):
        write_half(any_store, bytes(2 * small_pieces + 1))
    assert any_store.read(NAME) == b"old"
    assert any_store.list("") == [NAME]


def write_folder(store: Store, **files: bytes) -> None:
    with store.create_folder("folder") as staged:
        for name, content in files.items():
            (staged / name.replace("__", ".")).write_bytes(content)


def write_half_a_folder(store: Store) -> None:
    with store.create_folder("folder") as staged:
        (staged / "data").write_bytes(b"no")
        raise KeyError


def test_a_folder_replaces_the_one_that_was_there(any_store: Store) -> None:
    write_folder(any_store, MANIFEST__json=b"1", data=b"one", gone=b"old")
    assert any_store.read("folder/data") == b"one"
    with pytest.raises(KeyError):
        write_half_a_folder(any_store)
    assert any_store.read("folder/data") == b"one"
    write_folder(any_store, MANIFEST__json=b"2", data=b"two")
    assert any_store.list("folder") == [f"folder/{MANIFEST}", "folder/data"]
    assert any_store.read("folder/data") == b"two"
    fetched = any_store.fetch_folder("folder", (MANIFEST, "data"))
    assert (fetched / "data").read_bytes() == b"two"
    assert (fetched / MANIFEST).read_bytes() == b"2"
    any_store.delete_folder("folder")
    assert any_store.list("") == []


# -- What is different in a bucket ----------------------------------------------------------------------


def test_a_location_opens_a_bucket(access: S3Access, bucket: Bucket) -> None:
    store = open_store(f"s3://{bucket.name}/prefix/", access)
    assert store.uri == f"s3://{bucket.name}/prefix"
    store.publish("x", b"1")
    assert [entry.key for entry in bucket.list("")] == ["prefix/x"]
    assert store.free_bytes() is None
    whole = open_store(f"s3://{bucket.name}", access)
    assert whole.list("") == ["prefix/x"]
    assert whole.read("prefix/x") == b"1"


def test_a_replaced_object_is_fetched_anew(store: S3Store) -> None:
    store.publish(NAME, b"one")
    first = store.fetch(NAME)
    assert store.fetch(NAME) == first
    store.publish(NAME, b"two")
    assert store.fetch(NAME).read_bytes() == b"two"
    assert first.read_bytes() == b"one"


def test_large_reads_are_made_of_several(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "RANGE_BYTES", 1000)
    content = os.urandom(12_345)
    store.publish(NAME, content)
    assert store.read_range(NAME, 17, 9_999) == content[17:10_016]
    assert store.read_range(NAME, 10_000, 9_999) == content[10_000:]
    assert store.fetch(NAME).read_bytes() == content


def test_more_objects_than_one_page(store: S3Store, bucket: Bucket) -> None:
    for number in range(1005):
        bucket.client.put_object(Bucket=bucket.name, Key=f"team/workspace/many/{number:05d}", Body=b"")
    assert store.list("many") == [f"many/{number:05d}" for number in range(1005)]


def test_memory_of_an_upload_is_bounded(store: S3Store) -> None:
    """300 MiB go through, 80 MiB and what the client copies of them are in memory at most."""
    block = os.urandom(2**20)
    tracemalloc.start()
    try:
        with store.create(NAME) as sink:
            for _ in range(300):
                sink.write(block)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.size(NAME) == 300 * 2**20
    assert peak < 160 * 2**20


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(days=400), timedelta(days=-400)], ids=str)
def test_unfinished_uploads_are_swept_when_they_are_old(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    """The server of these tests lists uploads of exact keys only: its answer is given, and what is ended is watched.

    How old they are is a matter of the server's clock, wherever ours is.
    """
    now = datetime.now(UTC) + ahead
    told = {"ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(now, usegmt=True)}}}
    listed = [
        {"Key": "k/old", "UploadId": "1", "Initiated": now - 2 * s3.ABANDONED},
        {"Key": "k/young", "UploadId": "2", "Initiated": now},
    ]
    ended: list[str] = []
    client = store.bucket.client
    monkeypatch.setattr(client, "list_multipart_uploads", lambda **_asked: {"Uploads": listed, **told})
    monkeypatch.setattr(client, "abort_multipart_upload", lambda Key, **_asked: ended.append(Key))
    store.sweep("a")
    assert ended == ["k/old"]


# -- What networks do -------------------------------------------------------------------------------------

SKEWED = "RequestTimeTooSkewed"
PASSING = ["SlowDown", "InternalError", SKEWED, "cut", "slow", "hang", "lost"]


@pytest.mark.parametrize(
    ("what", "method"),
    # an answer to HEAD has no body, and so no code that tells a clock from a wrong key
    [(what, method) for what in PASSING for method in ("GET", "PUT", "HEAD") if (what, method) != (SKEWED, "HEAD")],
)
def test_a_passing_fault_changes_nothing(shaky: S3Store, proxy: Proxy, what: str, method: str) -> None:
    content = os.urandom(100_000)
    proxy.inject(what, method, "one.bin", times=2 if what not in ("hang",) else 1)
    shaky.publish(NAME, content)
    assert shaky.size(NAME) == len(content)
    assert shaky.read(NAME) == content
    assert shaky.read_range(NAME, 500, 70_000) == content[500:70_500]
    assert shaky.fetch(NAME).read_bytes() == content


@pytest.mark.parametrize("what", ["SlowDown", "InternalError", "cut", "lost"])
@pytest.mark.parametrize("path", ["uploads", "partNumber=1", "partNumber=2", "uploadId"])
def test_a_passing_fault_in_an_upload(shaky: S3Store, proxy: Proxy, small_pieces: int, what: str, path: str) -> None:
    """Also when the end of an upload was done and its answer was lost."""
    content = os.urandom(small_pieces + 5)
    proxy.inject(what, "", path, times=2)
    with shaky.create(NAME) as sink:
        sink.write(content)
    assert shaky.read(NAME) == content


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied", "InvalidAccessKeyId"])
@pytest.mark.parametrize("use", [lambda store: store.read(NAME), lambda store: store.publish(NAME, b"x")])
def test_refused_access_is_told_at_once(
    shaky: S3Store, proxy: Proxy, code: str, use: Callable[[S3Store], object]
) -> None:
    proxy.inject(code, times=100)
    with pytest.raises(Failure, match=rf"workspace\.s3: s3://bucket-\w+ refuses access .*{code}.*Secret") as caught:
        use(shaky)
    assert (caught.value.code, caught.value.reason) == (ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED)
    assert len(proxy.seen) == 1


def test_a_store_that_stays_away(shaky: S3Store, proxy: Proxy) -> None:
    proxy.inject("SlowDown", times=1000)
    with pytest.raises(Failure, match=r"is out of reach.*SlowDown.*check its endpoint") as caught:
        shaky.read(NAME)
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
    assert len(proxy.seen) == len(WAITS_SECONDS) + 1


def test_waits_grow_and_are_spread(proxy: Proxy, shaky: S3Store) -> None:
    waited: list[float] = []
    patient = Bucket(shaky.bucket.client, shaky.bucket.name, sleep=waited.append)
    proxy.inject("InternalError", times=1000)
    with pytest.raises(Failure):
        patient.get("x")
    assert len(waited) == len(WAITS_SECONDS)
    assert all(most / 2 <= wait <= most for wait, most in zip(waited, WAITS_SECONDS, strict=True))
    assert sum(WAITS_SECONDS) >= 120


def test_no_credentials_and_no_bucket(access: S3Access, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="there is no such bucket") as caught:
        Bucket.of("bucket-that-is-not-there", access, "data").get("x")
    assert caught.value.code is ExitCode.DENIED
    assert "data.source.s3" in caught.value.message
    assert "DATA_AWS_ACCESS_KEY_ID" in caught.value.message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(Failure, match="no credentials") as caught:
        Bucket.of("bucket", access, "workspace").get("x")
    assert caught.value.code is ExitCode.DENIED


def test_every_location_may_have_credentials_of_its_own(
    access: S3Access, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"TARGET_{name}", os.environ[name])
        monkeypatch.setenv(name, "wrong-one")
    assert list(Bucket.of(bucket.name, access, "target").list("")) == []
    with pytest.raises(Failure, match="refuses access") as caught:
        list(Bucket.of(bucket.name, access, "workspace").list(""))
    assert "wrong-one" not in caught.value.message


# -- Where a writer dies ------------------------------------------------------------------------------------


class PulledPlugError(Exception):
    """Nothing after it happens, as in a process that is gone."""


def dying(bucket: Bucket, survives: int, answered: bool) -> Bucket:
    """A bucket whose writing requests end after so many: before the next one is sent, or when it has been done."""
    client = Bucket.of(bucket.name, S3Access(endpoint=bucket.client.meta.endpoint_url), "workspace").client
    done = 0
    lock = threading.Lock()

    def count(model: Any, **_: Any) -> None:
        nonlocal done
        if model.name.startswith(("Get", "Head", "List")):
            return
        with lock:
            done += 1
            if done > survives:
                raise PulledPlugError(model.name)

    client.meta.events.register("after-call.s3" if answered else "before-call.s3", count)
    return Bucket(client, bucket.name, sleep=lambda _seconds: None)


def read_folder(store: S3Store) -> dict[str, bytes] | None:
    """What a reader makes of the folder: nothing without a manifest, else what the manifest says, or an error."""
    if not store.exists(f"folder/{MANIFEST}"):
        return None
    return {name: store.read(name) for name in store.list("folder")}


@pytest.mark.parametrize("answered", [False, True])
def test_a_folder_is_the_old_one_the_new_one_or_none(store: S3Store, bucket: Bucket, answered: bool) -> None:
    old = {MANIFEST: b"old", "data": b"old data", "published": b"old draft"}
    new = {MANIFEST: b"new", "data": b"new data", "more": b"new too"}
    seen = []
    for survives in range(20):
        store.delete_folder("folder")
        write_folder(store, **{name.replace(".", "__"): content for name, content in old.items()})
        writer = S3Store(dying(bucket, survives, answered), store.prefix, store.downloads)
        with suppress(PulledPlugError):
            write_folder(writer, **{name.replace(".", "__"): content for name, content in new.items()})
        found = read_folder(store)
        expected = [None] + [{f"folder/{name}": text for name, text in files.items()} for files in (old, new)]
        assert found in expected
        seen.append(expected.index(found))
    # the old one until its manifest goes, then none, then the new one
    assert seen == sorted(seen, key=[1, 0, 2].index)
    assert set(seen) >= {0, 2}


@pytest.mark.parametrize("answered", [False, True])
def test_a_large_object_is_the_old_one_or_the_new_one(
    store: S3Store, bucket: Bucket, small_pieces: int, answered: bool
) -> None:
    content = os.urandom(small_pieces + 1)
    found = []
    for survives in range(6):
        store.publish(NAME, b"old")
        writer = S3Store(dying(bucket, survives, answered), store.prefix, store.downloads)
        with suppress(PulledPlugError), writer.create(NAME) as sink:
            sink.write(content)
        found.append(store.read(NAME))
    assert set(found) == {b"old", content}
    assert found == sorted(found, key=[b"old", content].index)


def test_a_writer_is_a_file(store: S3Store) -> None:
    with store.create(NAME) as sink, io.TextIOWrapper(io.BufferedWriter(sink), "utf-8") as text:  # type: ignore[type-var]
        text.write("words")
    assert store.read(NAME) == b"words"
