"""The machine around the node: what it must have, and how the node's namespaces come and go."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import layout
import waiting

NEEDED = {"unshare": "util-linux", "ip": "iproute2", "nft": "nftables", "mount": "mount", "gcc": "gcc"}
"""Programs, and the Debian packages that bring them."""
HEADERS = ("/usr/include", "/usr/local/include")
CGROUPS = Path("/sys/fs/cgroup")
INSIDE = Path(__file__).parent / "inside.py"
STOP_SECONDS = 60


def check() -> None:
    """End with one line that says what is missing."""
    if os.geteuid() != 0:
        sys.exit("given a user; accepted: root, since containers need cgroups, mounts and networks of their own")
    missing = {package for program, package in NEEDED.items() if shutil.which(program) is None}
    # what runc is built with is a library
    has_header = any((Path(folder) / "seccomp.h").exists() for folder in HEADERS)
    if missing := sorted(missing | (set() if has_header else {"libseccomp-dev"})):
        sys.exit(f"not there: {', '.join(missing)}; `apt-get install {' '.join(missing)}` brings it")
    if layout.FOLDER.exists():
        sys.exit(f"{layout.FOLDER} is there: `make cluster-down` removes the cluster that was left")


def enter() -> None:
    """Start the node's first process in namespaces of its own, and give it its link to the machine."""
    command = [
        "unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
        # The link must be there before it is set up.
        "sh", "-c", f'until ip link show {layout.NODE_LINK} >/dev/null 2>&1; do sleep 0.05; done; exec "$@"', "sh",
        sys.executable, str(INSIDE), str(layout.FOLDER),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (layout.FOLDER / "inside.log").open("wb") as log:
        holder = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    layout.pid_file().write_text(str(holder.pid))
    until(lambda: bool(children(holder.pid)), 10, "namespaces")
    run("ip", "link", "add", layout.HOST_LINK, "type", "veth", "peer", "name", layout.NODE_LINK, "netns",
        str(children(holder.pid)[0]))  # fmt: skip
    run("ip", "address", "add", f"{layout.HOST_ADDRESS}/30", "dev", layout.HOST_LINK)
    run("ip", "link", "set", layout.HOST_LINK, "up")


def leave() -> None:
    """End the node, and with it all its processes; then remove its cgroups and its folder."""
    if layout.pid_file().exists():
        pid = int(layout.pid_file().read_text())
        if holds_the_node(pid):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not holds_the_node(pid), STOP_SECONDS, "end of the node")
        # the kernel takes namespaces apart when it has time; an end of the link that goes takes the other along
        with suppress(RuntimeError):
            run("ip", "link", "delete", layout.HOST_LINK)
    for group in sorted(CGROUPS.glob(f"*/{layout.CGROUP}")):
        for folder in sorted(group.rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        group.rmdir()
    shutil.rmtree(layout.FOLDER, ignore_errors=False)


def holds_the_node(pid: int) -> bool:
    """Whether this is still the process that was started: numbers come back."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return str(INSIDE).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def children(pid: int) -> list[int]:
    """Processes that a process started, or was left with."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def processes(program: str) -> list[int]:
    """Where a program of the node runs, as this machine numbers its processes."""
    first, *_ = children(int(layout.pid_file().read_text()))
    return [pid for pid in children(first) if runs(pid, program)]


def runs(pid: int, program: str) -> bool:
    """Whether a process, if it is still there, runs this program."""
    with suppress(FileNotFoundError, ProcessLookupError):
        # the kernel keeps 15 characters
        return Path(f"/proc/{pid}/comm").read_text().strip() == program[:15]
    return False


def restart(program: str) -> None:
    """Kill a program of the node as nothing can be prepared for, and wait until it was started again."""
    (pid,) = processes(program)
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes(program) not in ([], [pid]), STOP_SECONDS, f"another {program}")


def until(is_so: Callable[[], bool], seconds: float, what: str, every: float = 0.1) -> None:
    """Wait until something is so. Raises TimeoutError that says what was waited for, and where to look."""
    waiting.until(is_so, seconds, f"logs are in {layout.FOLDER}: {what}", every)


def run(*command: str | Path) -> str:
    """Run a program, and return what it printed. Raises RuntimeError with what it said when it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
