"""Both modes on a real node, as a user would: install the chart, apply the examples, wait. `make e2e`.

Every point ends with a line `bar NAME VALUE (needs ...) ok|short`, computed from what the cluster says.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import cluster
import layout
import machine
import programs
import volumes
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from report import Bar  # noqa: E402  beside the benchmarks, which are no package

IMAGES = ROOT / "build" / "images"
SYSTEM, TEAM = "draftyard-system", "team"
RUNS = ("e2e-offline", "e2e-online")
RUN_SECONDS = 600
VALUES = {
    "image": {"repository": "localhost/draftyard-operator", "pullPolicy": "Never"},
    "config": {"trainerImage": "localhost/draftyard-trainer:0.1.0", "gpuResource": ""},
}
Json = Any


def main() -> None:
    """Install once, run both examples, and say what came of them."""
    install()
    bars = [bar for name in RUNS for bar in run(name)]
    print("\n".join(map(str, bars)))


def install() -> None:
    """Images, a namespace that enforces `restricted`, volumes with a tiny model, and the chart with plain helm."""
    for image in ("operator", "trainer"):
        cluster.load(IMAGES / f"{image}.tar")
    volumes.write_inputs()
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM, "labels": enforced}}
    cluster.apply(yaml.safe_dump(namespace))
    volumes.add(TEAM)
    values = layout.FOLDER / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    machine.run(
        programs.HELM["helm"], "install", "draftyard", ROOT / "charts" / "draftyard", "--namespace", SYSTEM,
        "--create-namespace", "--values", values, "--kubeconfig", cluster.KUBECONFIG,
    )  # fmt: skip
    cluster.wait_for_deployment(SYSTEM, "draftyard")


def run(name: str) -> list[Bar]:
    """One example to its end, and its object removed again."""
    cluster.kubectl("apply", "--namespace", TEAM, "--filename", str(ROOT / "examples" / f"{name}.yaml"))
    begun = time.monotonic()
    wait = ("wait", f"dt/{name}", "--for=condition=Complete", f"--timeout={RUN_SECONDS}s")
    completed = said(lambda: cluster.kubectl("--namespace", TEAM, *wait))
    seconds = time.monotonic() - begun
    status = asked("get", f"dt/{name}").get("status", {})
    pods = asked("get", "pods", "--selector", f"draftyard.dev/run={name}")["items"]
    bars = [
        Bar(f"{name}/complete", float(completed), ">=", 1),
        Bar(f"{name}/seconds", seconds, "<=", RUN_SECONDS),
        Bar(f"{name}/acceptance-length", float(status.get("acceptance", {}).get("length", 0)), ">=", 1),
        Bar(f"{name}/pods-with-a-token", sum(map(has_token, pods)), "<=", 0),
        Bar(f"{name}/most-pods-at-a-time", most_at_a_time(pods), ">=", 2),
    ]
    cluster.kubectl("--namespace", TEAM, "delete", f"dt/{name}", "--wait=true")
    machine.until(lambda: not owned(name), RUN_SECONDS, f"end of what {name} owned")
    return [*bars, Bar(f"{name}/left-behind", len(owned(name)), "<=", 0)]


def said(question: Any) -> bool:
    """Whether kubectl agrees."""
    try:
        question()
    except RuntimeError as error:
        print(error)
        return False
    return True


def asked(*arguments: str) -> Json:
    """What kubectl gets, as JSON."""
    return json.loads(cluster.kubectl("--namespace", TEAM, *arguments, "--output", "json"))


def has_token(pod: Json) -> bool:
    """Whether a pod may talk to the API server."""
    projected = [
        source for volume in pod["spec"].get("volumes", ()) for source in volume.get("projected", {}).get("sources", ())
    ]
    return any("serviceAccountToken" in source for source in projected)


def most_at_a_time(pods: list[Json]) -> int:
    """Shards, or workers, whose containers ran at the same moment."""
    spans = []
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", ()):
            ended = container["state"].get("terminated")
            if ended:
                spans.append((ended["startedAt"], ended["finishedAt"]))
    # times in RFC 3339 of one zone sort as texts
    return max((sum(start <= moment < end for start, end in spans) for moment, _ in spans), default=0)


def owned(name: str) -> list[str]:
    """Names of everything that carries the run's label."""
    kinds = "jobs,pytorchjobs,pods,configmaps,persistentvolumeclaims"
    found = asked("get", kinds, "--selector", f"draftyard.dev/run={name}")["items"]
    return [f"{each['kind']}/{each['metadata']['name']}" for each in found]


if __name__ == "__main__":
    main()
