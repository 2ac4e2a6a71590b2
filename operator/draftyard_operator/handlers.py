"""kopf: login, watches, start, stop, liveness. It only ever says "look again", and writes nothing.

No timers, no daemons, no indexes, no change handlers: those put finalizers and annotations on the object, forget what
they could not write, and stop for good at one refused PATCH.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import kopf

from draftyard_api.names import GROUP, LABEL_MANAGED, LABEL_RUN, PLURAL, VERSION
from draftyard_operator.kinds import JOB, PYTORCH_JOB, Kind
from draftyard_operator.shell import Shell, Unhealthy

Json = Any
Step = Callable[[], Awaitable[None]]
CHILDREN = (JOB, PYTORCH_JOB)


@dataclass(frozen=True)
class Hooks:
    """What else is started and stopped with the operator: the client, the metrics server."""

    start: Step
    stop: Step
    uses_kubeconfig: bool = False
    """False: the ServiceAccount of the pod."""


def registry(
    shell: Shell, hooks: Hooks, namespaces: Sequence[str] = (), children: Sequence[Kind] = CHILDREN
) -> kopf.OperatorRegistry:
    """All handlers of one operator; `children` are the kinds that it watches beside the runs."""
    made = kopf.OperatorRegistry()
    _activities(made, shell, hooks, namespaces)
    _events(made, shell, children)
    return made


def _activities(made: kopf.OperatorRegistry, shell: Shell, hooks: Hooks, namespaces: Sequence[str]) -> None:
    """How it logs in, starts, stops, and says that it is well."""

    @kopf.on.login(registry=made)
    def login(**given: Any) -> kopf.ConnectionInfo | None:
        return (
            kopf.login_with_kubeconfig(**given) if hooks.uses_kubeconfig else kopf.login_with_service_account(**given)
        )

    # A port in use does not get free by waiting: the process ends, and the kubelet starts it again.
    @kopf.on.startup(registry=made, errors=kopf.ErrorsMode.PERMANENT)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings, namespaces)
        await hooks.start()
        shell.start()

    @kopf.on.cleanup(registry=made)
    async def stop(**_: Any) -> None:
        await shell.stop()
        await hooks.stop()

    @kopf.on.probe(registry=made, id="operator")
    async def probe(**_: Any) -> str:
        try:
            shell.check()
        except Unhealthy as error:
            # Any other exception would be retried inside the request, and the probe would hang.
            raise kopf.PermanentError(str(error)) from error
        return "ok"


def _events(made: kopf.OperatorRegistry, shell: Shell, children: Sequence[Kind]) -> None:
    """What is watched."""

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=made, id="run")
    async def run(event: kopf.RawEvent, **_: Any) -> None:
        shell.saw_run(event["type"], cast("Json", event["object"]))

    async def child(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        name = labels.get(LABEL_RUN)
        if namespace and name:
            shell.saw_child(namespace, name)

    for kind in children:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=made, id=f"child-{kind.plural}")(child)


def configure(settings: kopf.OperatorSettings, namespaces: Sequence[str] = ()) -> None:
    """Settings that keep kopf quiet, and out of the way."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = [1, 2, 4, 8, 16]
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.chunk_size = 500
    settings.process.ultimate_exiting_timeout = 60
    # Should anyone add a handler that needs one.
    settings.persistence.finalizer = f"{GROUP}/kopf"
    # With namespaces named one by one, nobody may have granted the list of all namespaces and definitions.
    settings.scanning.disabled = bool(namespaces)
    for kind in CHILDREN:
        settings.watching.label_selectors[kind.group, kind.plural] = f"{LABEL_MANAGED}=true"


async def run(
    made: kopf.OperatorRegistry,
    namespaces: Sequence[str],
    liveness: str,
    stop: asyncio.Event,
) -> None:
    """Run until a signal or `stop`, and answer at the URL `liveness`.

    Raises what cannot be mended in process.
    """
    await kopf.operator(
        registry=made,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        liveness_endpoint=liveness,
        stop_flag=stop,
    )
