"""The cache of a node: it bounds its size, survives its disk, and is never trusted more than the origin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_CACHE
from draftyard_trainer.storage.cache import RecordCache


class Origin:
    """Counts how often it is asked."""

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.asked = 0

    def __call__(self) -> bytes:
        self.asked += 1
        return bytes([self.asked]) * self.size


def test_what_was_read_once_does_not_travel_again(tmp_path: Path) -> None:
    origin = Origin()
    cache = RecordCache(tmp_path / "cache", 1000)
    first = cache.read("s3://b/part", 0, origin)
    assert cache.read("s3://b/part", 0, origin) == first
    # another process of the node
    assert RecordCache(tmp_path / "cache", 1000).read("s3://b/part", 0, origin) == first
    assert origin.asked == 1
    assert cache.read("s3://b/part", 64, origin) != first
    assert cache.read("s3://b/other", 0, origin) != first
    assert origin.asked == 3


def test_what_is_wrong_is_forgotten(tmp_path: Path) -> None:
    origin = Origin()
    cache = RecordCache(tmp_path, 1000)
    cache.read("part", 0, origin)
    cache.evict("part", 0)
    cache.evict("part", 0)
    assert cache.read("part", 0, origin) == b"\x02" * 100


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = RecordCache(tmp_path, 1000)
    origins = [Origin() for _ in range(12)]
    for number, origin in enumerate(origins[:10]):
        cache.read("part", number, origin)
        os.utime(cache._path("part", number), (number, number))
    cache.read("part", 0, origins[0])
    cache.read("part", 10, origins[10])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    cache.read("part", 0, origins[0])
    assert origins[0].asked == 1
    cache.read("part", 1, origins[1])
    assert origins[1].asked == 2


def test_the_size_stays_bounded(tmp_path: Path) -> None:
    cache = RecordCache(tmp_path, 5000)
    for number in range(400):
        cache.read("part", number, Origin(1 + 37 * number % 900))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000
    cache.read("huge", 0, Origin(5001))
    assert not cache._path("huge", 0).exists()


def test_a_broken_disk_stops_nothing(tmp_path: Path) -> None:
    cache = RecordCache(tmp_path / "cache", 1000)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("no folder any more")
    origin = Origin()
    assert cache.read("part", 0, origin) == b"\x01" * 100
    assert cache.read("part", 0, origin) == b"\x02" * 100


def test_the_environment_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_CACHE, raising=False)
    assert RecordCache.from_environment() is None
    monkeypatch.setenv(ENV_CACHE, f"{tmp_path}/cache:3GiB")
    cache = RecordCache.from_environment()
    assert cache is not None
    assert (cache.folder, cache.max_bytes) == (tmp_path / "cache", 3 * 2**30)
    for wrong in ("/nvme", "nvme:3GiB", "/nvme:3GB", "/nvme:", "/nvme:-1GiB"):
        monkeypatch.setenv(ENV_CACHE, wrong)
        with pytest.raises(Failure, match=f"{ENV_CACHE}: given {wrong}; accepted: a folder and a size") as caught:
            RecordCache.from_environment()
        assert caught.value.code is ExitCode.BAD_TASK
