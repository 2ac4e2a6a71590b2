"""The first process of the node: which of its programs come back."""

from __future__ import annotations

import time
from pathlib import Path

import inside
import machine
import pytest


@pytest.fixture
def node(tmp_path: Path):
    made = inside.Node(tmp_path)
    yield made
    for started in made.started.values():
        started.process.kill()
        started.process.wait()


def program(folder: Path, name: str, script: str) -> Path:
    """A program of a name, whose starts are counted."""
    file = folder / name
    file.write_text(f"#!/bin/sh\necho started >> {folder}/{name}.starts\n{script}\n")
    file.chmod(0o755)
    return file


def starts(folder: Path, name: str) -> int:
    return len((folder / f"{name}.starts").read_text().splitlines())


def test_a_killed_kubelet_is_started_again_and_the_node_goes_on(node, tmp_path, monkeypatch):
    monkeypatch.setattr(inside, "SHORT_SECONDS", 0.0)
    again = f'until [ "$(wc -l < {tmp_path}/kubelet.starts)" = 2 ]; do sleep 0.02; done; exit 3'
    node.start(program(tmp_path, "kubelet", "exec sleep 60"), "--flag")
    node.start(program(tmp_path, "etcd", again))
    (first,) = [one.process for one in node.started.values() if one.name == "kubelet"]
    machine.until((tmp_path / "kubelet.starts").exists, 10, "a start")
    first.kill()
    assert node.wait() == "etcd ended with status 3"
    (second,) = node.started.values()
    assert second.process.pid != first.pid
    assert second.process.poll() is None
    assert second.command == (tmp_path / "kubelet", "--flag")
    assert starts(tmp_path, "kubelet") == 2


def test_a_kubelet_that_cannot_work_ends_the_node(node, tmp_path):
    node.start(program(tmp_path, "kubelet", "exit 1"))
    assert node.wait() == "kubelet ended with status 1"
    assert starts(tmp_path, "kubelet") == 1


def test_logs_of_both_starts_are_kept(node, tmp_path, monkeypatch):
    monkeypatch.setattr(inside, "SHORT_SECONDS", 0.0)
    node.start(program(tmp_path, "kube-apiserver", "echo here; exec sleep 60"))
    log = tmp_path / "kube-apiserver.log"
    machine.until(lambda: bool(log.read_text()), 10, "a line")
    (first,) = node.started.values()
    first.process.kill()
    node.start(program(tmp_path, "etcd", f'until [ "$(wc -l < {log})" = 2 ]; do sleep 0.02; done'))
    assert node.wait() == "etcd ended with status 0"
    assert log.read_text().splitlines() == ["here", "here"]


def test_what_a_process_runs_is_told_by_its_name():
    own = int(Path("/proc/self/stat").read_text().split()[0])
    assert machine.runs(own, Path(f"/proc/{own}/comm").read_text().strip())
    assert not machine.runs(own, "kube-controller-manager")
    assert not machine.runs(2**22 + 1, "kubelet"), "a process that is gone runs nothing"


def test_waiting_ends_with_what_was_waited_for():
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="the moon: not there after 0 s"):
        machine.until(lambda: False, 0.05, "the moon", every=0.01)
    assert time.monotonic() - begun < 5
