"""The programs of a cluster, made from their Go modules: `python tests/cluster/programs.py [VERSION ...]`.

Each version of Kubernetes is one Go module in `modules/`, whose `go.mod` and `go.sum` pin everything; etcd and
Kubernetes share what both are made of.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CACHE = FOLDER.parents[1] / "build" / "bin"
NEWEST = "1.36.3"
ETCD = "go.etcd.io/etcd/server/v3"
PACKAGES = (
    ETCD,
    *(f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kubectl")),
)
STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
"""Packages that say which version a program is."""


@dataclass(frozen=True)
class Programs:
    """The programs of one version of Kubernetes, in a folder of their own."""

    version: str

    @property
    def sources(self) -> Path:
        """The Go module that they are made from."""
        return FOLDER / "modules" / self.version

    @property
    def folder(self) -> Path:
        """Where they are."""
        return CACHE / self.version

    def __getitem__(self, name: str) -> Path:
        """One program, by name."""
        return self.folder / name

    @property
    def command(self) -> list[str]:
        """How they are made; two packages at a time, since each takes up to a gigabyte."""
        major, minor, _ = self.version.split(".")
        stamps = {"gitVersion": f"v{self.version}", "gitMajor": major, "gitMinor": minor}
        flags = [f"-X {package}.{name}={value}" for package in STAMPED for name, value in stamps.items()]
        return ["go", "build", "-p", "2", "-trimpath", "-ldflags", " ".join(("-s -w", *flags))]

    @property
    def stamp(self) -> str:
        """A hash of all that decides what they are."""
        parts = [(self.sources / name).read_bytes() for name in ("go.mod", "go.sum")]
        return hashlib.sha256(b"\0".join((*parts, *map(str.encode, (*self.command, *PACKAGES))))).hexdigest()

    @property
    def are_made(self) -> bool:
        """Whether they are there, as the sources say."""
        made = self["stamp"]
        return made.exists() and made.read_text() == self.stamp

    def make(self) -> None:
        """Make what is missing: minutes when nothing is there. Raises subprocess.CalledProcessError."""
        CACHE.mkdir(parents=True, exist_ok=True)
        # Two that make the same would take twice as long each.
        with (CACHE / f"{self.version}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.are_made:
                return
            fresh = CACHE / f"{self.version}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            environment = {**os.environ, "CGO_ENABLED": "0"}
            subprocess.run([*self.command, "-o", f"{fresh}/", *PACKAGES], cwd=self.sources, env=environment, check=True)
            (fresh / "server").rename(fresh / "etcd")
            (fresh / "stamp").write_text(self.stamp)
            fresh.rename(self.folder)


def main() -> None:
    """Make the programs of the versions that are named, or of the newest one."""
    wanted = [Programs(version) for version in sys.argv[1:] or [NEWEST]]
    known = sorted(folder.name for folder in (FOLDER / "modules").iterdir())
    for programs in wanted:
        if programs.version not in known:
            sys.exit(f"given version {programs.version}; accepted: {', '.join(known)}")
        if not programs.are_made and shutil.which("go") is None:
            sys.exit("go is not there; install Go 1.26 or later, which builds Kubernetes from its modules")
        programs.make()


if __name__ == "__main__":
    main()
