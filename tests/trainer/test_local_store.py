"""A workspace in a directory: what is published is whole, what a killed writer left is never seen."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.storage import local
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.opening import open_store

LONG_AGO = 1_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "workspace")


def everything(store: LocalStore) -> list[str]:
    """All names in the directory, also those that the store hides."""
    return sorted(path.relative_to(store.root).as_posix() for path in store.root.rglob("*"))


def die_while_writing(store: LocalStore, statement: str) -> None:
    """Run a writing statement on the same directory in a process that is killed inside of it."""
    script = (
        "import os, signal\nfrom pathlib import Path\nfrom draftyard_trainer.storage.local import LocalStore\n"
        f"store = LocalStore(Path({str(store.root)!r}))\n"
        "def die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{statement}\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert ended.returncode == -9


def grow_old(store: LocalStore) -> None:
    for path in store.root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


# -- Publishing ------------------------------------------------------------------------------------


def test_what_is_published_comes_back(store: LocalStore) -> None:
    store.publish("a/b/one.bin", b"0123456789")
    assert store.exists("a/b/one.bin")
    assert store.size("a/b/one.bin") == 10
    assert store.read("a/b/one.bin") == b"0123456789"
    assert store.read_range("a/b/one.bin", 3, 4) == b"3456"
    assert store.read_range("a/b/one.bin", 8, 4) == b"89"
    assert store.fetch("a/b/one.bin").read_bytes() == b"0123456789"
    assert store.list("a") == ["a/b/one.bin"]


def test_absent_names(store: LocalStore) -> None:
    assert not store.exists("a")
    assert store.size("a") is None
    assert store.list("a") == []
    store.delete("a")
    store.delete_folder("a")
    for read in (store.read, store.fetch, lambda name: store.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("a")


def test_a_folder_is_no_object(store: LocalStore) -> None:
    store.publish("a/one", b"1")
    assert not store.exists("a")
    assert store.size("a") is None


def test_a_file_is_invisible_until_it_is_whole(store: LocalStore) -> None:
    store.publish("one", b"old")
    with store.create("one") as file:
        file.write(b"new")
        assert store.read("one") == b"old"
        assert store.list("") == ["one"]
    assert store.read("one") == b"new"
    assert everything(store) == ["one"]


def test_a_file_that_fails_leaves_nothing(store: LocalStore) -> None:
    def fail() -> None:
        with store.create("one") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert everything(store) == []


def test_a_folder_appears_whole(store: LocalStore) -> None:
    with store.create_folder("x/one") as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "a").write_bytes(b"a")
        assert store.list("") == []
        assert not store.exists("x/one/sub/a")
    assert store.list("x") == ["x/one/sub/a"]
    assert everything(store) == ["x", "x/one", "x/one/sub", "x/one/sub/a"]


@pytest.fixture(params=[True, False], ids=["names change places", "names cannot change places"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As file systems of Linux do, or as some that are mounted from elsewhere."""
    if not request.param:
        monkeypatch.setattr(local, "exchange", lambda _one, _other: False)
    return bool(request.param)


def test_names_change_places(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert local.exchange(tmp_path / "one", tmp_path / "two")
    assert [(tmp_path / name / "file").read_text() for name in ("one", "two")] == ["two", "one"]
    assert not local.exchange(tmp_path / "one", tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_folder_replaces_the_one_that_was_there(store: LocalStore, exchanges: bool) -> None:
    for content in ("a", "b"):
        with store.create_folder("one") as staged:
            (staged / content).write_text(content)
    assert everything(store) == ["one", "one/b"]


def test_a_folder_that_fails_leaves_the_old_one(store: LocalStore, exchanges: bool) -> None:
    with store.create_folder("one") as staged:
        (staged / "a").write_text("a")

    def fail() -> None:
        with store.create_folder("one") as staged:
            (staged / "b").write_text("b")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert everything(store) == ["one", "one/a"]


def test_deleting(store: LocalStore) -> None:
    store.publish("a/one", b"1")
    store.publish("a/two", b"2")
    store.delete("a/one")
    assert store.list("") == ["a/two"]
    store.delete_folder("a")
    assert everything(store) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.binary(max_size=8)), max_size=12))
@settings(max_examples=25, deadline=None)
def test_a_store_is_a_mapping(tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, bytes]]) -> None:
    store, model = LocalStore(tmp_path_factory.mktemp("store")), dict[str, bytes]()
    for name, content in operations:
        if content is None:
            store.delete(f"x/{name}")
            model.pop(f"x/{name}", None)
        else:
            store.publish(f"x/{name}", content)
            model[f"x/{name}"] = content
    assert {name: store.read(name) for name in store.list("")} == model


# -- Killed writers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("with store.create('x/one') as file:\n    file.write(b'half'); file.flush(); die()", id="a file"),
        pytest.param(
            "with store.create_folder('x/one') as to:\n    (to / 'a').write_text('half'); die()", id="a folder"
        ),
    ],
)
def test_a_killed_writer_leaves_nothing_visible(store: LocalStore, statement: str) -> None:
    die_while_writing(store, statement)
    hidden = [name for name in everything(store) if ".tmp-" in name]
    assert hidden
    assert store.list("") == []
    assert not store.exists("x/one")
    grow_old(store)
    store.sweep("x")
    assert everything(store) == ["x"]


def test_the_next_writer_removes_what_a_killed_one_left(store: LocalStore) -> None:
    die_while_writing(store, "with store.create('one') as file:\n    die()")
    grow_old(store)
    store.publish("one", b"1")
    assert everything(store) == ["one"]


def test_a_killed_writer_leaves_the_old_content(store: LocalStore) -> None:
    store.publish("one", b"old")
    die_while_writing(store, "with store.create('one') as file:\n    file.write(b'new'); file.flush(); die()")
    assert store.read("one") == b"old"


def test_what_is_being_written_is_no_leftover(store: LocalStore) -> None:
    with store.create("one") as first:
        first.write(b"first")
        with store.create_folder("two") as folder:
            grow_old(store)
            store.sweep("")
            store.publish("one", b"second")
            (folder / "a").write_text("a")
    assert store.read("one") == b"first"
    assert store.list("") == ["one", "two/a"]


def test_a_young_leftover_may_have_a_writer(store: LocalStore) -> None:
    store.root.mkdir()
    (store.root / "one.tmp-0123abcd").touch()
    store.sweep("")
    assert everything(store) == ["one.tmp-0123abcd"]


def test_killed_between_two_renames(store: LocalStore) -> None:
    """The old folder is aside and the new one not yet there: the next writer puts the old one back."""
    with store.create_folder("one") as staged:
        (staged / "a").write_text("old")
    (store.root / "one").rename(store.root / "one.old-0123abcd")
    assert store.list("") == []
    with pytest.raises(KeyError), store.create_folder("one"):
        raise KeyError
    assert store.read("one/a") == b"old"


def test_killed_before_the_old_folder_is_removed(store: LocalStore, exchanges: bool) -> None:
    for name in ("one", "one.old-0123abcd"):
        (store.root / name).mkdir(parents=True)
        (store.root / name / "a").write_text(name)
    with store.create_folder("one") as staged:
        (staged / "a").write_text("third")
    assert everything(store) == ["one", "one/a"]


def test_a_half_removed_folder_never_comes_back(store: LocalStore) -> None:
    half = store.root / "one.tmp-0123abcd"
    half.mkdir(parents=True)
    (half / "a").write_text("a")
    with pytest.raises(KeyError), store.create_folder("one"):
        raise KeyError
    assert store.list("") == []


def test_a_deleted_folder_takes_its_older_version_along(store: LocalStore) -> None:
    for name in ("one", "one.old-0123abcd"):
        (store.root / name).mkdir(parents=True)
    store.delete_folder("one")
    assert everything(store) == []


def test_names_that_look_alike_are_not_leftovers(store: LocalStore) -> None:
    names = ["one.tmp-01", "one.tmp-0123abcd.json", "one.old", "o[n]e"]
    for name in names:
        store.publish(name, b"")
    grow_old(store)
    store.sweep("")
    store.publish("one", b"")
    assert store.list("") == sorted([*names, "one"])


def test_two_writers_of_one_name(store: LocalStore) -> None:
    """Pods that find a shared file absent write it at the same time; each write is whole, the last one stays."""
    contents = [bytes([number]) * 1000 for number in range(8)]
    errors: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(10):
                store.publish("x/key.json", content)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.read("x/key.json") in contents
    assert everything(store) == ["x", "x/key.json"]


# -- Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../one", "a/../../one", "/etc/passwd", "a/.."])
def test_names_outside_are_refused(store: LocalStore, name: str) -> None:
    with pytest.raises(ValueError, match="accepted: a relative path"):
        store.publish(name, b"")


@pytest.mark.parametrize(
    ("number", "code", "reason", "says"),
    [
        pytest.param(errno.ENOSPC, ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, "bytes free", id="a full disk"),
        pytest.param(errno.EDQUOT, ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, "bytes free", id="a used up quota"),
        pytest.param(errno.EACCES, ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, "uid", id="no right to write"),
        pytest.param(
            errno.EROFS, ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, "can be written", id="a read-only disk"
        ),
    ],
)
@pytest.mark.parametrize("kind", ["create", "create_folder"])
def test_the_disk_refuses(store: LocalStore, kind: str, number: int, code: ExitCode, reason: Reason, says: str) -> None:
    with pytest.raises(Failure) as caught, getattr(store, kind)("x/one"):
        raise OSError(number, os.strerror(number))
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert str(store.root) in caught.value.message
    assert "x/one" in caught.value.message
    assert says in caught.value.message
    assert store.list("") == []


def test_a_directory_that_nobody_may_write_to() -> None:
    """/sys takes no folders, not even from root."""
    with pytest.raises(Failure) as caught:
        LocalStore(Path("/sys/draftyard")).publish("one", b"")
    assert caught.value.code is ExitCode.DENIED


def test_errors_of_files_elsewhere_are_not_the_workspaces(store: LocalStore) -> None:
    with pytest.raises(PermissionError), store.create("one"):
        raise PermissionError(errno.EACCES, "denied", "/data/conversations.json")


def test_free_bytes_of_a_directory_that_is_not_there_yet(store: LocalStore) -> None:
    free = store.free_bytes()
    assert free is not None
    assert free > 0
    assert not store.root.exists()


def test_opening(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/workspace")
    assert store.uri == f"file://{tmp_path}/workspace"
    assert open_store("s3://bucket/prefix").uri == "s3://bucket/prefix"
    with pytest.raises(Failure, match=r"given hf://org/name; accepted: a folder .* or s3://bucket/prefix") as caught:
        open_store("hf://org/name")
    assert caught.value.code is ExitCode.UNSUPPORTED
