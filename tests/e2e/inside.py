"""The first process of the node: starts its programs, and ends when one of them does. `up.py` starts it.

The kubelet and the API server are started again when they end, as the init system of a real node does.

It has namespaces of its own for processes, networks and mounts. When it ends, by itself or by a signal, the kernel ends
everything that it started, with containers, interfaces, rules of nftables and mounts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import certificates
import configs
import control_plane
import layout
import machine
import minio
import programs
from certificates import Authority
from control_plane import ControlPlane

PRIVATE = ("/run", "/var/lib", "/var/log")
"""Folders whose paths are built into the programs: in here they lie in the cluster's folder."""
MANAGER, SCHEDULER, PROXY = "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"
RESTARTED = ("kubelet", "kube-apiserver")
"""Programs that may be killed."""
SHORT_SECONDS = 5.0
"""A program that ends so soon was not killed: it cannot work, and would end again."""
ISSUER = "https://kubernetes.default.svc"


@dataclass(frozen=True)
class Started:
    """A program that runs, and how it is started again."""

    command: tuple[str | Path, ...]
    env: Mapping[str, str]
    process: subprocess.Popen[bytes]
    time: float

    @property
    def name(self) -> str:
        """Of the program."""
        return Path(self.command[0]).name


class Node:
    """Programs that were started, and what they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: dict[int, Started] = {}
        self.authority = Authority(folder)
        admin = self.authority.issue("admin", control_plane.ADMINS)
        kubernetes = programs.KNOWN[programs.NEWEST]
        self.plane = ControlPlane(kubernetes, folder, layout.API_PORT, self.authority, admin, layout.NODE_ADDRESS)
        self.plane.kubeconfig.write_text(control_plane.kubeconfig(self.plane, admin))

    def start(self, program: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        """Start a program, its log in the folder."""
        with (self.folder / f"{program.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [program, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}
            )
        self.started[process.pid] = Started((program, *flags), env or {}, process, time.monotonic())

    def user(self, name: str, group: str = "") -> Path:
        """A kubeconfig for one program."""
        config = self.folder / f"{name.replace(':', '-')}.kubeconfig"
        config.write_text(control_plane.kubeconfig(self.plane, self.authority.issue(name, group)))
        return config

    def write(self, name: str, text: str) -> Path:
        """One file of the node."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def wait(self) -> str:
        """Until one of the programs ends for good. Returns which one; orphans of containers are buried on the way."""
        while True:
            pid, code = os.wait()
            if pid not in self.started:
                continue
            ended = self.started.pop(pid)
            # waited for here, with the orphans: the one who started it would look for it in vain
            ended.process.returncode = os.waitstatus_to_exitcode(code)
            if ended.name not in RESTARTED or time.monotonic() - ended.time < SHORT_SECONDS:
                return f"{ended.name} ended with status {ended.process.returncode}"
            program, *flags = ended.command
            self.start(Path(program), *map(str, flags), env=ended.env)


def main() -> None:
    """Everything of the node, until something of it ends."""
    folder = Path(sys.argv[1])
    for path in PRIVATE:
        own = folder / "private" / path.strip("/")
        own.mkdir(parents=True)
        run("mount", "--bind", str(own), path)
    connect()
    node = Node(folder)
    server(node)
    runtime(node)
    storage(node)
    # Rights of the others are among the first things that it stores; without them they give up.
    machine.until(node.plane.client().is_ready, control_plane.START_SECONDS, "API server")
    controllers(node)
    kubelet(node)
    layout.ready_file().touch()
    node.write("ended", node.wait())


def run(*command: str) -> None:
    """Run a command of the system. Raises subprocess.CalledProcessError."""
    subprocess.run(command, check=True)


def connect() -> None:
    """The link to the machine is there already; the bridge of the pods is ours."""
    for link, address in (("lo", ""), (layout.NODE_LINK, f"{layout.NODE_ADDRESS}/30")):
        if address:
            run("ip", "address", "add", address, "dev", link)
        run("ip", "link", "set", link, "up")
    run("ip", "link", "add", layout.BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{layout.BRIDGE_ADDRESS}/16", "dev", layout.BRIDGE)
    run("ip", "link", "set", layout.BRIDGE, "up")
    # the API server calls webhooks by the addresses of Services, and a packet needs a way before it is redirected
    run("ip", "route", "add", layout.SERVICE_RANGE, "dev", layout.BRIDGE)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def server(node: Node) -> None:
    """etcd and the API server."""
    folder, made, authority = node.folder, node.plane.programs, node.authority
    accounts = certificates.new_key()
    node.write("accounts.key", certificates.key_pem(accounts).decode())
    node.write("accounts.pub", certificates.public_pem(accounts).decode())
    hosts = ("127.0.0.1", layout.NODE_ADDRESS, layout.BRIDGE_ADDRESS, layout.API_SERVICE_ADDRESS, "localhost")
    names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    serving, to_kubelet = authority.issue("kube-apiserver", hosts=(*hosts, *names)), node.plane.admin
    etcd = "http://127.0.0.1:2379"
    node.start(
        made["etcd"], "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
        "--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:0",
    )  # fmt: skip
    node.start(
        made["kube-apiserver"],
        "--etcd-servers", etcd, "--secure-port", str(layout.API_PORT),
        # the address that pods find behind the Service
        "--advertise-address", layout.BRIDGE_ADDRESS, "--service-cluster-ip-range", layout.SERVICE_RANGE,
        "--tls-cert-file", str(serving.certificate), "--tls-private-key-file", str(serving.key),
        "--client-ca-file", str(authority.certificate), "--authorization-mode", "Node,RBAC",
        "--enable-admission-plugins", "NodeRestriction,OwnerReferencesPermissionEnforcement",
        "--service-account-key-file", str(folder / "accounts.pub"), "--service-account-issuer", ISSUER,
        "--service-account-signing-key-file", str(folder / "accounts.key"),
        "--kubelet-preferred-address-types", "InternalIP", "--allow-privileged=true",
        "--kubelet-client-certificate", str(to_kubelet.certificate), "--kubelet-client-key", str(to_kubelet.key),
    )  # fmt: skip


def controllers(node: Node) -> None:
    """Controllers and scheduler."""
    folder, made, authority = node.folder, node.plane.programs, node.authority
    manager, scheduler = node.user(MANAGER), node.user(SCHEDULER)
    node.start(
        made["kube-controller-manager"], "--kubeconfig", str(manager), "--use-service-account-credentials",
        "--leader-elect=false", "--bind-address", "127.0.0.1", "--root-ca-file", str(authority.certificate),
        "--service-account-private-key-file", str(folder / "accounts.key"), "--kube-api-qps", "200",
        "--kube-api-burst", "200",
    )  # fmt: skip
    node.start(
        programs.NODE["kube-scheduler"], "--kubeconfig", str(scheduler), "--authentication-kubeconfig", str(scheduler),
        "--authorization-kubeconfig", str(scheduler), "--leader-elect=false", "--bind-address", "127.0.0.1",
    )  # fmt: skip


def runtime(node: Node) -> None:
    """containerd."""
    home = node.folder / "containerd"
    node.write("containerd/net.d/10-pods.conflist", configs.network())
    told = configs.containerd(home, programs.NETWORK.folder, programs.RUNC["runc"])
    path = f"{programs.CONTAINERD.folder}:{os.environ['PATH']}"
    config = node.write("containerd/config.toml", told)
    node.start(programs.CONTAINERD["containerd"], "--config", str(config), env={"PATH": path})


def kubelet(node: Node) -> None:
    """kubelet and kube-proxy."""
    folder, authority = node.folder, node.authority
    serving = authority.issue("kubelet", hosts=(layout.NODE, "127.0.0.1", layout.BRIDGE_ADDRESS))
    told = configs.kubelet(folder, authority.certificate, serving.certificate, serving.key)
    user = node.user(f"system:node:{layout.NODE}", "system:nodes")
    node.start(
        programs.NODE["kubelet"], "--kubeconfig", str(user), "--config", str(node.write("kubelet.yaml", told)),
        "--hostname-override", layout.NODE, "--node-ip", layout.BRIDGE_ADDRESS, "--root-dir", str(folder / "kubelet"),
    )  # fmt: skip
    rules = node.write("proxy.yaml", configs.proxy(node.user(PROXY)))
    node.start(programs.NODE["kube-proxy"], "--config", str(rules))


def storage(node: Node) -> None:
    """An S3 server beside the cluster, which pods reach at the bridge."""
    data = node.folder / "minio"
    data.mkdir()
    shown = {
        "MINIO_ROOT_USER": minio.ACCESS_KEY, "MINIO_ROOT_PASSWORD": minio.SECRET_KEY, "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off", "HOME": str(data), "GOMAXPROCS": "2",
    }  # fmt: skip
    node.start(minio.program(), "server", "--quiet", "--address", f":{layout.S3_PORT}", str(data / "data"), env=shown)


if __name__ == "__main__":
    main()
