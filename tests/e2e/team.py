"""The team that trains: its namespace, and its runs as kubectl tells of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cluster
import layout
import machine
import yaml

Json = Any
NAMESPACE = "team"
RUN_SECONDS = 600
"""What a run may take, and whatever else is waited for."""
LOOK_SECONDS = 1.0
"""Between two looks: each is a program that the trainers share the cores with."""
KINDS = "jobs,pytorchjobs,pods,services,configmaps,persistentvolumeclaims"
"""Everything that a run makes, or that is made for it."""
PROGRESS = "9400/proxy/progress"

SLOW: Json = {
    "data": {"source": {"file": {"uri": "pvc://models/many.json"}}, "evalFraction": 0.01},
    "train": {"epochs": 3, "checkpoint": {"everySteps": 20, "keepLast": 2}},
    # one failure that counts would end the run
    "retry": {"maxAttempts": 1},
}
"""What makes an example take long enough to be disturbed in the middle of its stages."""


def kubectl(*arguments: str, given: str = "") -> str:
    """Run kubectl in the team's namespace. Raises RuntimeError with what it said."""
    return cluster.kubectl("--namespace", NAMESPACE, *arguments, given=given)


def asked(*arguments: str) -> Json:
    """What kubectl gets, as JSON. Raises RuntimeError with what it said."""
    return json.loads(kubectl(*arguments, "--output", "json"))


# -- What is applied ----------------------------------------------------------------------------------------------


def example(name: str, called: str = "", **changes: Json) -> Json:
    """An example of the project, with another name and with changes to its spec."""
    read = yaml.safe_load((layout.ROOT / "examples" / f"{name}.yaml").read_text())
    read["metadata"]["name"] = called or name
    return merged(read, {"spec": changes})


def slow(name: str, called: str, **changes: Json) -> Json:
    """An example that takes long enough to be disturbed."""
    return merged(example(name, called, **SLOW), {"spec": changes})


def merged(given: Json, changes: Json) -> Json:
    """A tree with changes in it; None removes."""
    if not isinstance(given, dict) or not isinstance(changes, dict):
        return changes
    kept = {key: value for key, value in given.items() if key not in changes}
    return kept | {key: merged(given.get(key), value) for key, value in changes.items() if value is not None}


def apply(run: Json) -> str:
    """Apply a run, and return its name. Raises RuntimeError with what the API server said."""
    kubectl("apply", "--filename", "-", given=yaml.safe_dump(run))
    return str(run["metadata"]["name"])


def delete(name: str) -> None:
    """Delete a run as a person does, and wait until nothing of it is left. Raises TimeoutError with what is."""
    kubectl("delete", f"dt/{name}", "--wait=true")
    machine.until(lambda: not owned(name), RUN_SECONDS, f"end of what {name} owned", LOOK_SECONDS)


# -- What is told -------------------------------------------------------------------------------------------------


def status(name: str) -> Json:
    """The status of a run."""
    return asked("get", f"dt/{name}").get("status", {})


def stage(name: str, which: str) -> Json:
    """What the status says of one stage; empty before it does."""
    return next((one for one in status(name).get("stages", ()) if one["name"] == which), {})


def has_completed(name: str) -> bool:
    """Wait with `kubectl wait`, as a person does, and say whether the run was completed."""
    try:
        kubectl("wait", f"dt/{name}", "--for=condition=Complete", f"--timeout={RUN_SECONDS}s")
    except RuntimeError as error:
        print(error, json.dumps(status(name), indent=1), sep="\n")
        return False
    return True


def until(name: str, is_so: Callable[[Json], bool], what: str, seconds: float = RUN_SECONDS) -> None:
    """Wait until the status is so. Raises TimeoutError; RuntimeError when the run has failed meanwhile."""

    def looks_so() -> bool:
        found = status(name)
        if is_so(found):
            return True
        if found.get("phase") == "Failed":
            raise RuntimeError(f"{name}: {found['reason']}: {found['message']}")
        return False

    machine.until(looks_so, seconds, f"{name}: {what}", LOOK_SECONDS)


def pods(name: str, which: str = "") -> list[Json]:
    """Pods of a run, or of one of its stages."""
    labels = f"draftyard.dev/run={name}" + (f",draftyard.dev/stage={which}" if which else "")
    return asked("get", "pods", "--selector", labels)["items"]


def working(name: str, which: str) -> dict[str, str]:
    """Pods of a stage that run, and are not asked to end: their uids, by name."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for pod in pods(name, which)
        if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
    }


def progress(name: str, which: str) -> Json:
    """The reading of the pod that is furthest; empty when none answers."""
    readings = [reading for pod in working(name, which) if (reading := reading_of(pod)).get("stage") == which]
    return max(readings, key=lambda one: one.get("done", 0), default={})


def reading_of(pod: str) -> Json:
    """What a pod answers on its progress port, through the API server; empty when it does not."""
    try:
        return json.loads(cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{PROGRESS}"))
    except (RuntimeError, json.JSONDecodeError):
        return {}


def owned(name: str) -> list[str]:
    """Everything that is there for a run, but a claim that is retained."""
    found = asked("get", KINDS)["items"]
    return [f"{one['kind']}/{one['metadata']['name']}" for one in found if belongs(one["metadata"], name)]


def belongs(metadata: Json, name: str) -> bool:
    """Whether labels or owners say so."""
    owners = [owner["name"] for owner in metadata.get("ownerReferences", ())]
    is_labelled = metadata.get("labels", {}).get("draftyard.dev/run") == name
    return is_labelled or any(owner == name or owner.startswith(f"{name}-") for owner in owners)


def in_the_middle(name: str, which: str, beyond: int = 0) -> Json:
    """Wait until a stage has done more than so much, and has more to do. Returns its reading. Raises TimeoutError."""
    found: Json = {}

    def has_come_so_far() -> bool:
        found.clear()
        found.update(progress(name, which))
        return found.get("done", 0) > beyond

    machine.until(has_come_so_far, RUN_SECONDS, f"{name}: {which} beyond {beyond}", LOOK_SECONDS)
    if found["done"] >= found["total"]:
        raise TimeoutError(f"{name}: {which} was done before it could be disturbed: {found}")
    return found
