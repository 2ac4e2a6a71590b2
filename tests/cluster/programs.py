"""The programs of a cluster, made from their Go modules: `python tests/cluster/programs.py [MODULE ...]`.

Each version of Kubernetes is one Go module in `modules/`, whose `go.mod` and `go.sum` pin everything; etcd and
Kubernetes share what both are made of. Helm, promtool, and what only a node needs, are modules of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
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
    """The programs of one Go module; those of a version of Kubernetes, if nothing else is said."""

    version: str
    """Its folder in `modules/`, and theirs among the programs."""
    packages: tuple[str, ...] = PACKAGES
    """Go packages of the programs."""
    tags: tuple[str, ...] = ()
    """What of them is left out, or put in."""
    named: str = ""
    """The variable of Go that says their version, where they ask for one."""
    links_c: bool = False
    """Whether they are made with a C compiler; the others run in an image that is empty but for them."""

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
    def values(self) -> dict[str, str]:
        """Variables of Go that say which version a program is."""
        number = self.version.rpartition("-")[2]
        if not any(package.startswith("k8s.io/kubernetes/") for package in self.packages):
            return {self.named: number} if self.named else {}
        major, minor, _ = number.split(".")
        told = {"gitVersion": f"v{number}", "gitMajor": major, "gitMinor": minor}
        return {f"{package}.{name}": value for package in STAMPED for name, value in told.items()}

    @property
    def command(self) -> list[str]:
        """How they are made; two packages at a time, since each takes up to a gigabyte."""
        flags = [f"-X {variable}={value}" for variable, value in self.values.items()]
        tags = ["-tags", ",".join(self.tags)] if self.tags else []
        return ["go", "build", "-p", "2", "-trimpath", *tags, "-ldflags", " ".join(("-s -w", *flags))]

    @property
    def stamp(self) -> str:
        """A hash of all that decides what they are."""
        parts = [(self.sources / name).read_bytes() for name in ("go.mod", "go.sum")]
        return hashlib.sha256(b"\0".join((*parts, *map(str.encode, (*self.command, *self.packages))))).hexdigest()

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
            environment = {**os.environ, "CGO_ENABLED": str(int(self.links_c))}
            command = [*self.command, "-o", f"{fresh}/", *self.packages]
            subprocess.run(command, cwd=self.sources, env=environment, check=True)
            if ETCD in self.packages:
                (fresh / "server").rename(fresh / "etcd")
            (fresh / "stamp").write_text(self.stamp)
            fresh.rename(self.folder)

    def source_of(self, module: str) -> Path:
        """The sources of one of its Go modules, fetched if they are not there. Raises subprocess.CalledProcessError."""
        command = ["go", "mod", "download", "-json", module]
        found = subprocess.run(command, cwd=self.sources, capture_output=True, text=True, check=True)
        return Path(json.loads(found.stdout)["Dir"])


KUBERNETES = tuple(Programs(version) for version in ("1.34.4", NEWEST))
HELM = Programs("helm-4.3.1", ("helm.sh/helm/v4/cmd/helm",))
# Prometheus' own test of alerts; it needs none of the clouds in which Prometheus looks for targets.
PROMTOOL = Programs("promtool-3.13.5", ("github.com/prometheus/prometheus/cmd/promtool",), ("remove_all_sd",))
_CONTAINERD = "github.com/containerd/containerd/v2"
_NETWORK = "github.com/containernetworking/plugins/plugins"
_RUNC = "github.com/opencontainers/runc"
NODE = Programs(
    f"node-{NEWEST}", tuple(f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-proxy", "kube-scheduler", "kubelet"))
)
CONTAINERD = Programs(
    "containerd-2.3.7",
    tuple(f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
    tags=("no_btrfs", "no_devmapper", "no_zfs"),
    named=f"{_CONTAINERD}/version.Version",
)
RUNC = Programs("runc-1.4.0", (_RUNC,), tags=("seccomp",), named="main.version", links_c=True)
NETWORK = Programs(
    "cni-plugins-1.9.1",
    tuple(f"{_NETWORK}/{name}" for name in ("ipam/host-local", "main/bridge", "main/loopback", "meta/portmap")),
)
COREDNS = Programs("coredns-1.14.7", ("github.com/coredns/coredns",))
TRAINING_MODULE = "github.com/kubeflow/training-operator"
TRAINING = Programs("training-operator-1.9.4", (f"{TRAINING_MODULE}/cmd/training-operator.v1",))
KNOWN = {
    each.version: each for each in (*KUBERNETES, HELM, PROMTOOL, NODE, CONTAINERD, RUNC, NETWORK, COREDNS, TRAINING)
}


def main() -> None:
    """Make the programs that are named by their module, or those that tests need."""
    for name in sys.argv[1:] or (NEWEST, HELM.version, PROMTOOL.version, TRAINING.version):
        if name not in KNOWN:
            sys.exit(f"given {name}; accepted: {', '.join(sorted(KNOWN))}")
        if not KNOWN[name].are_made and shutil.which("go") is None:
            sys.exit("go is not there; install Go 1.26 or later, which builds Kubernetes and Helm from their modules")
        KNOWN[name].make()


if __name__ == "__main__":
    main()
