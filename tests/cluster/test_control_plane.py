"""The rig itself: it says what went wrong, and leaves nothing behind, however it ends."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import control_plane
import psutil
import pytest
import trainings
from control_plane import LOOPBACK, NotStartedError

from draftyard_operator.testing.ports import free_port

UP = Path(control_plane.__file__).with_name("up.py")


@pytest.fixture
def up(plane, tmp_path):
    """`up.py`, as a person starts it, with the log in a file and what it makes in the test's folder."""
    command = [sys.executable, UP, "--kubernetes", plane.programs.version]
    said = tmp_path / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "TMPDIR": str(tmp_path)})
    yield process, said
    process.kill()
    process.wait()


def children(process):
    return psutil.Process(process.pid).children(recursive=True)


def are_gone(processes):
    """Whether none runs any more; one whose parent was killed may wait for somebody to read its end."""
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def test_people_get_a_line_to_copy_and_it_ends_with_everything(up, plane):
    process, said = up
    line = trainings.eventually(lambda: re.search(r"export KUBECONFIG=(\S+) PATH=(\S+):\$PATH\n", said.read_text()))
    kubeconfig, programs = map(Path, line.groups())
    done = subprocess.run(
        [programs / "kubectl", "--kubeconfig", kubeconfig, "get", "dt"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "No resources found in default namespace.\n")
    started = children(process)
    assert {one.name() for one in started} >= {"etcd", "kube-apiserver"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert are_gone(started)
    assert not kubeconfig.parent.exists()


def test_what_it_started_dies_when_it_is_killed(up):
    process, _ = up
    started = trainings.eventually(lambda: len(found := children(process)) > 1 and found)
    process.kill()
    process.wait()
    trainings.eventually(lambda: are_gone(started))


def test_a_program_that_ends_is_an_error_with_its_last_words(tmp_path):
    with (
        control_plane.started(tmp_path, Path("/bin/sh"), "-c", "echo no such flag; exit 3") as shell,
        pytest.raises(NotStartedError) as error,
    ):
        control_plane.wait([shell], lambda: False)
    assert str(error.value) == f"sh ended with code 3; the end of {tmp_path / 'sh.log'}:\nno such flag"


def test_a_port_that_was_taken_in_between_is_given_up_for_another(plane, tmp_path):
    with socket.create_server((LOOPBACK, 0)) as taken:
        ports = itertools.chain([taken.getsockname()[1]], iter(free_port, None))
        with control_plane.serving(plane.programs, tmp_path, ports.__next__) as second:
            assert second.port != taken.getsockname()[1]
            assert second.client().is_ready()
