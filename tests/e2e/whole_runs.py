"""Runs from `kubectl apply` to their end: both modes on a claim, and Offline in a bucket."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Iterator

import cluster
import drafts
import installing
import minio
import team
from team import Json

from report import Bar

OFFLINE, ONLINE, BUCKET = "e2e-offline", "e2e-online", "e2e-offline-s3"


def on_claims() -> list[Bar]:
    """Both modes, each with a workspace on a claim; their drafts are kept."""
    return [bar for name in (OFFLINE, ONLINE) for bar in on_a_claim(name)]


def on_a_claim(name: str) -> list[Bar]:
    """One example, its draft kept, and its object removed again."""
    bars = completed(name)
    drafts.keep(name)
    return [*bars, *removed(name)]


def in_a_bucket() -> list[Bar]:
    """Offline with a workspace in a bucket and keys in a Secret, of which nothing is told to anybody."""
    bars = completed(BUCKET)
    listed = installing.storage().list_objects_v2(Bucket=installing.BUCKET).get("Contents", ())
    published = [found for found in listed if found["Key"].endswith(f"export/{BUCKET}/PUBLISHED.json")]
    told = list(texts(BUCKET))
    leaks = [text for text in told if any(secret in text for secret in secrets())]
    # the one place where they may be shows that the search would find them
    there = cluster.kubectl("--namespace", team.NAMESPACE, "get", f"secret/{installing.KEYS}", "--output", "json")
    return [
        *bars,
        Bar(f"{BUCKET}/published", len(published), ">=", 1),
        Bar(f"{BUCKET}/texts-searched-for-secrets", len(told), ">=", 10),
        Bar(f"{BUCKET}/texts-with-a-secret", len(leaks), "<=", 0),
        Bar(f"{BUCKET}/secrets-found-where-they-are", sum(secret in there for secret in secrets()), ">=", 2),
        *removed(BUCKET),
    ]


def completed(name: str) -> list[Bar]:
    """Apply an example and wait for its end."""
    begun = time.monotonic()
    team.apply(team.example(name))
    is_complete = team.has_completed(name)
    seconds = time.monotonic() - begun
    acceptance, pods = team.status(name).get("acceptance", {}), team.pods(name)
    return [
        Bar(f"{name}/complete", is_complete, ">=", 1),
        Bar(f"{name}/seconds", seconds, "<=", team.RUN_SECONDS),
        Bar(f"{name}/acceptance-length", float(acceptance.get("length", 0)), ">=", 1),
        Bar(f"{name}/pods-with-a-token", sum(map(has_token, pods)), "<=", 0),
        Bar(f"{name}/most-pods-at-a-time", most_at_a_time(pods), ">=", 2),
    ]


def removed(name: str) -> list[Bar]:
    """Delete a run. Raises TimeoutError with what is left."""
    team.delete(name)
    return [Bar(f"{name}/left-behind", len(team.owned(name)), "<=", 0)]


# -- Pods -----------------------------------------------------------------------------------------------------------


def has_token(pod: Json) -> bool:
    """Whether a pod may talk to the API server."""
    projected = [
        source for volume in pod["spec"].get("volumes", ()) for source in volume.get("projected", {}).get("sources", ())
    ]
    return any("serviceAccountToken" in source for source in projected)


def most_at_a_time(pods: Iterable[Json]) -> int:
    """Shards, or workers, whose containers ran at the same moment."""
    states = [one["state"].get("terminated") for pod in pods for one in pod["status"].get("containerStatuses", ())]
    spans = [(ended["startedAt"], ended["finishedAt"]) for ended in states if ended]
    # times in RFC 3339 of one zone sort as texts
    return max((sum(start <= moment < end for start, end in spans) for moment, _ in spans), default=0)


# -- Secrets --------------------------------------------------------------------------------------------------------


def secrets() -> list[str]:
    """What nobody may be told: keys as they are, and as a Secret writes them."""
    keys = (minio.ACCESS_KEY, minio.SECRET_KEY)
    return [*keys, *(base64.b64encode(key.encode()).decode() for key in keys)]


def texts(name: str) -> Iterator[str]:
    """Everything that is told of a run: the object, events, ConfigMaps, children, pods, and the logs of all."""
    yield team.kubectl("get", f"dt/{name}", "--output", "yaml")
    for kind in ("events", "configmaps", "jobs", "pods"):
        yield from (str(found) for found in team.asked("get", kind)["items"])
    for pod in team.pods(name):
        yield team.kubectl("logs", pod["metadata"]["name"])
    for pod in installing.operator_pods():
        yield cluster.kubectl("--namespace", installing.SYSTEM, "logs", pod)
