"""What people get wrong, and what nodes lack: the reason is in the status within two resyncs, and in an event."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import cluster
import installing
import machine
import team
import yaml
from team import Json

from report import Bar

CROWDED = "crowded"
"""A namespace whose quota has room for nothing."""
IN_A_BUCKET = "e2e-offline-s3"
WITHIN_SECONDS = 2 * installing.RESYNC_SECONDS
ENDLESS = float("inf")


@dataclass(frozen=True)
class Mistake:
    """A run that cannot start, and what must be said about it."""

    name: str
    reason: str
    says: str
    """Part of the message: what it is about."""
    spec: Json
    """Changes to a run in a bucket, for which no claim is bound."""
    namespace: str = team.NAMESPACE


NO_KEYS: Json = {"workspace": {"s3": {"credentialsSecretRef": {"name": "no-such-keys"}}}}
NO_CLAIMS: Json = {"target": {"model": "org/model"}, "data": {"source": {"file": None, "preset": {"name": "sharegpt"}}}}
"""A run that would need no claim: in its namespace there is none."""
MISTAKES = (
    Mistake("bad-secret", "SecretNotFound", "no-such-keys", NO_KEYS),
    Mistake("missing-claim", "ClaimNotFound", "no-such-claim", {"target": {"model": "pvc://no-such-claim/tiny"}}),
    Mistake("missing-image", "ImagePullFailed", "localhost/nowhere:1", {"pod": {"image": "localhost/nowhere:1"}}),
    Mistake("unschedulable", "Unschedulable", "node", {"pod": {"nodeSelector": {"gpu": "none-of-these"}}}),
    Mistake("quota-of-pods", "QuotaExceeded", "pods", NO_CLAIMS, CROWDED),
)  # fmt: skip


def bars() -> list[Bar]:
    """All at the same time; none of them gets as far as a container."""
    installing.add_namespace(CROWDED)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": CROWDED}}
    cluster.apply(yaml.safe_dump({**quota, "spec": {"hard": {"pods": "0"}}}))
    begun = time.monotonic()
    for mistake in MISTAKES:
        run = team.example(IN_A_BUCKET, mistake.name, **mistake.spec)
        cluster.kubectl("--namespace", mistake.namespace, "apply", "--filename", "-", given=yaml.safe_dump(run))
    seconds = {mistake.name: ENDLESS for mistake in MISTAKES}

    def all_told() -> bool:
        for mistake in MISTAKES:
            if seconds[mistake.name] == ENDLESS and is_told(mistake):
                seconds[mistake.name] = time.monotonic() - begun
        return ENDLESS not in seconds.values()

    try:
        machine.until(all_told, WITHIN_SECONDS + 10, "reasons", team.LOOK_SECONDS)
    except TimeoutError as error:
        print(error, [(mistake.name, explanation(mistake)) for mistake in MISTAKES])
    found = [bar for mistake in MISTAKES for bar in bars_of(mistake, seconds[mistake.name])]
    for mistake in MISTAKES:
        cluster.kubectl("--namespace", mistake.namespace, "delete", f"dt/{mistake.name}", "--wait=true")
    return found


def bars_of(mistake: Mistake, seconds: float) -> list[Bar]:
    """When the reason was told, and whether an event tells it."""
    events = asked(mistake, "get", "events", "--field-selector", f"involvedObject.name={mistake.name}")["items"]
    told = [event for event in events if event["reason"] == mistake.reason and event["type"] == "Warning"]
    print(f"{mistake.name}: {explanation(mistake)}")
    return [
        Bar(f"mistakes/{mistake.name}/seconds-to-{mistake.reason}", seconds, "<=", WITHIN_SECONDS),
        Bar(f"mistakes/{mistake.name}/warnings", len(told), ">=", 1),
    ]


def is_told(mistake: Mistake) -> bool:
    """Whether the status names the reason, and the thing."""
    reason, message = explanation(mistake)
    return reason == mistake.reason and mistake.says in message


def explanation(mistake: Mistake) -> tuple[str, str]:
    """What the status says at the top: reason and message."""
    status = asked(mistake, "get", f"dt/{mistake.name}").get("status", {})
    return status.get("reason", ""), status.get("message", "")


def asked(mistake: Mistake, *arguments: str) -> Any:
    """What kubectl gets in the namespace of the run."""
    return yaml.safe_load(cluster.kubectl("--namespace", mistake.namespace, *arguments, "--output", "json"))
