"""A control plane: one etcd and one kube-apiserver, and a kube-controller-manager on top where one is needed.

No node, no kubelet, no scheduler: objects are judged, stored, counted and collected, but no container runs.
Everything listens on loopback, on ports that were free, and lives in one folder.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import certificates
import yaml
from api_server import ApiServer
from certificates import Authority, KeyPair
from programs import Programs

from draftyard_operator.testing.ports import free_port

LOOPBACK = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/24"
ISSUER = "https://kubernetes.default.svc"
ADMINS = "system:masters"
MANAGER = "system:kube-controller-manager"
START_SECONDS = 60
TRIES = 3
LOG_LINES = 15


class NotStartedError(RuntimeError):
    """A program ended or stayed silent; the message has the end of its log."""


# -- Programs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A program that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def failure(self, how: str) -> NotStartedError:
        """What to raise when it is of no use."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return NotStartedError("\n".join((f"{self.name} {how}; the end of {self.log}:", *lines)))


@contextmanager
def started(folder: Path, program: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a program, its log in the folder, until the block is left."""
    log = folder / f"{program.name}.log"
    # A test run that is killed stops nothing; the kernel does.
    setpriv = shutil.which("setpriv")
    leash = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*leash, program, *flags],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(env or {})},
        )
    try:
        yield Running(program.name, process, log)
    finally:
        # What they store goes with the folder, so that no orderly end is needed.
        process.kill()
        process.wait()


def wait(programs: Sequence[Running], is_ready: Callable[[], bool]) -> None:
    """Wait until something is so. Raises NotStartedError when a program ended, or it took too long."""
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        for program in programs:
            if program.process.poll() is not None:
                raise program.failure(f"ended with code {program.process.returncode}")
        if time.monotonic() > deadline:
            raise programs[-1].failure(f"is not ready after {START_SECONDS} s")
        time.sleep(0.05)


# -- The control plane ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlPlane:
    """A control plane that is up."""

    programs: Programs
    folder: Path
    port: int
    authority: Authority
    admin: KeyPair
    host: str = LOOPBACK
    flags: tuple[str, ...] = ()
    """More of the API server's."""

    @property
    def url(self) -> str:
        """Where the API server answers."""
        return f"https://{self.host}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """What kubectl and every client read: full rights."""
        return self.folder / "kubeconfig"

    def client(self) -> ApiServer:
        """A client with full rights."""
        return ApiServer(self.url, self.authority.certificate, self.admin)

    def kubectl(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl as a person does, with full rights."""
        command = [self.programs["kubectl"], *args]
        # At HOME it remembers which kinds a server has, by port: another one's would be found there.
        environment = {"HOME": str(self.folder), "KUBECONFIG": str(self.kubeconfig)}
        return subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)


@contextmanager
def serving(
    programs: Programs, folder: Path, ports: Callable[[], int] = free_port, flags: tuple[str, ...] = ()
) -> Iterator[ControlPlane]:
    """A control plane, up until the block is left; `flags` are more of the API server's. Raises NotStartedError."""
    authority = Authority(folder)
    admin = authority.issue("admin", ADMINS)
    server = authority.issue("kube-apiserver", hosts=(LOOPBACK, "localhost"))
    accounts = certificates.new_key()
    (folder / "accounts.key").write_bytes(certificates.key_pem(accounts))
    (folder / "accounts.pub").write_bytes(certificates.public_pem(accounts))
    for tries_left in reversed(range(TRIES)):
        plane = ControlPlane(programs, folder, ports(), authority, admin, flags=flags)
        with ExitStack() as stack:
            try:
                bring_up(stack, plane, server, ports())
            except NotStartedError as error:
                # Between the look for a free port and its use, somebody else may take it.
                if tries_left and "address already in use" in str(error):
                    continue
                raise
            plane.kubeconfig.write_text(kubeconfig(plane, admin))
            yield plane
            return


def bring_up(stack: ExitStack, plane: ControlPlane, server: KeyPair, storage_port: int) -> None:
    """Start etcd and kube-apiserver, and wait until they serve. Raises NotStartedError."""
    shutil.rmtree(plane.folder / "etcd", ignore_errors=True)
    storage = f"http://{LOOPBACK}:{storage_port}"
    etcd = started(
        plane.folder, plane.programs["etcd"],
        "--data-dir", str(plane.folder / "etcd"),
        "--listen-client-urls", storage, "--advertise-client-urls", storage,
        # It is alone: peers are heard on any port, and never called.
        "--listen-peer-urls", f"http://{LOOPBACK}:0",
        "--unsafe-no-fsync", "--log-level", "warn",
    )  # fmt: skip
    api_server = started(
        plane.folder, plane.programs["kube-apiserver"],
        "--etcd-servers", storage, "--bind-address", LOOPBACK, "--secure-port", str(plane.port),
        "--tls-cert-file", str(server.certificate), "--tls-private-key-file", str(server.key),
        "--client-ca-file", str(plane.authority.certificate), "--authorization-mode", "RBAC",
        "--service-account-issuer", ISSUER, "--service-account-key-file", str(plane.folder / "accounts.pub"),
        "--service-account-signing-key-file", str(plane.folder / "accounts.key"),
        "--service-cluster-ip-range", SERVICE_RANGE,
        # Off by default, on in OpenShift: who holds up the deletion of an owner needs a right to its finalizers.
        "--enable-admission-plugins", "OwnerReferencesPermissionEnforcement",
        # No pod will look for it, and an address on loopback is refused.
        "--endpoint-reconciler-type", "none", *plane.flags,
    )  # fmt: skip
    both = [stack.enter_context(program) for program in (etcd, api_server)]
    client = plane.client()
    wait(both, client.is_ready)


@contextmanager
def controllers(plane: ControlPlane) -> Iterator[Running]:
    """kube-controller-manager: Jobs get pods, what lost its owner is collected, namespaces end."""
    pair = plane.authority.issue(MANAGER)
    config = plane.folder / "controllers.kubeconfig"
    config.write_text(kubeconfig(plane, pair))
    command = started(
        plane.folder, plane.programs["kube-controller-manager"],
        "--kubeconfig", str(config), "--use-service-account-credentials", "--leader-elect=false", "--secure-port", "0",
        # At the usual 20 requests per second their start would take 5 s in place of half a second.
        "--kube-api-qps", "500", "--kube-api-burst", "500",
        "--service-account-private-key-file", str(plane.folder / "accounts.key"),
        "--root-ca-file", str(plane.authority.certificate),
    )  # fmt: skip
    client = plane.client()
    with command as running:
        wait([running], lambda: client.get("api/v1/namespaces/default/serviceaccounts/default").is_ok)
        yield running


def kubeconfig(plane: ControlPlane, user: KeyPair) -> str:
    """A kubeconfig that needs no other file."""

    def inline(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    cluster = {"server": plane.url, "certificate-authority-data": inline(plane.authority.certificate)}
    secrets = {"client-certificate-data": inline(user.certificate), "client-key-data": inline(user.key)}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": secrets}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
    )
