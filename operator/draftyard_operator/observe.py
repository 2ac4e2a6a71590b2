"""What exists, as values: children, pods and the claim of one run, read from raw objects. Calls no API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError

from draftyard_api import names
from draftyard_api.frozen import parse_quantity
from draftyard_api.names import Stage
from draftyard_api.progress import Progress, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.status import Backend

Json = Any
ChildState = Literal["Pending", "Queued", "Running", "Succeeded", "Failed"]

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
REPLICA_INDEX = "training.kubeflow.org/replica-index"
LOST_PODS = ("Evicted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempted", "Preempting")
"""Reasons in a pod's status that say that the node, not the container, ended it."""
IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
LAST_PODS = timedelta(seconds=60)
"""What the pods of a child have to end once one of them has ended it: the one that knows why may not be the first."""
CONFIG_REASONS = ("CreateContainerConfigError",)


@dataclass(frozen=True)
class Child:
    """A Job or PyTorchJob of this run."""

    kind: Backend
    name: str
    uid: str
    stage: Stage
    attempt: int
    state: ChildState
    reason: str = ""
    message: str = ""
    is_deleting: bool = False
    completed: str = ""
    """Finished indexes as intervals (generate)."""
    failed: str = ""
    """Given up indexes (generate)."""
    parallelism: int | None = None
    ended_at: datetime | None = None
    """Since when its conditions say that it is over."""

    @property
    def is_over(self) -> bool:
        """Whether it runs no pods any more."""
        return self.state in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Problem:
    """Why a pod does not become ready."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class End:
    """How a pod's container ended."""

    exit_code: int
    reason: str = ""
    """The kubelet's word: OOMKilled, Error, Completed."""
    is_disrupted: bool = False
    disruption: str = ""
    finished_at: datetime | None = None
    result: StageResult | None = None
    text: str = ""
    """The termination message where it is no result: the end of the log."""


@dataclass(frozen=True)
class Pod:
    """A pod of this run."""

    name: str
    uid: str
    owner_uid: str
    stage: Stage
    attempt: int
    index: int = 0
    node: str = ""
    ip: str = ""
    is_ready: bool = False
    created: datetime | None = None
    deleting_since: datetime | None = None
    problem: Problem | None = None
    end: End | None = None
    image: str = ""
    """What its container runs, with the digest."""

    @property
    def is_live(self) -> bool:
        """Whether a process may still write."""
        return self.end is None


@dataclass(frozen=True)
class Claim:
    """The claim of the workspace."""

    name: str
    uid: str
    is_bound: bool
    access_modes: tuple[str, ...]
    capacity: int
    """Bytes that it has; 0 before it is bound."""
    requested: int
    """Bytes that it is asked to have."""
    owner_uid: str = ""
    claim_of: str = ""
    """The run that it was made for."""
    is_deleting: bool = False


@dataclass(frozen=True)
class Observed:
    """Everything that exists of one run."""

    children: tuple[Child, ...] = ()
    pods: tuple[Pod, ...] = ()
    claim: Claim | None = None
    progress: Progress | None = None
    """Of the first ready pod; None when none answered."""
    prepare_task: str | None = None
    """The task that the last attempt of prepare was given."""
    serves_pytorch_jobs: bool = False
    wait: str = ""
    """Why Kueue lets the child wait, where that may be read."""
    refusal: Problem | None = None
    """Why the child's pods cannot be made, while some are missing."""
    missing_claims: tuple[str, ...] = ()
    """Claims that the spec names and that do not exist."""

    def child(self, stage: Stage, attempt: int) -> Child | None:
        """The child of one attempt."""
        return next((one for one in self.children if (one.stage, one.attempt) == (stage, attempt)), None)

    def pods_of(self, stage: Stage, attempt: int | None = None) -> tuple[Pod, ...]:
        """Pods of a stage, or of one attempt of it."""
        return tuple(pod for pod in self.pods if pod.stage is stage and attempt in (None, pod.attempt))

    def live_pods(self, stage: Stage) -> tuple[Pod, ...]:
        """Pods of a stage that may still write, of whatever attempt."""
        return tuple(pod for pod in self.pods_of(stage) if pod.is_live)


# -- Children ---------------------------------------------------------------------------------------------------------


def read_job(found: Mapping[str, Json]) -> Child | None:
    """A Job; None when its labels are not ours."""
    status = found.get("status") or {}
    spec = found["spec"]
    indexes = {"completed": status.get("completedIndexes", ""), "failed": status.get("failedIndexes", "")}
    return read_child("Job", found, bool(spec.get("suspend")), spec.get("parallelism"), indexes)


def read_pytorch_job(found: Mapping[str, Json]) -> Child | None:
    """A PyTorchJob; None when its labels are not ours."""
    return read_child("PyTorchJob", found, bool((found["spec"].get("runPolicy") or {}).get("suspend")))


def read_child(
    kind: Backend,
    found: Mapping[str, Json],
    is_suspended: bool,
    parallelism: int | None = None,
    indexes: Mapping[str, str] | None = None,
) -> Child | None:
    """What both kinds share: conditions say how they end."""
    place = place_of(found)
    if place is None:
        return None
    status, metadata = found.get("status") or {}, found["metadata"]
    ended = end_condition(status)
    return Child(
        kind=kind, name=metadata["name"], uid=metadata["uid"], stage=place.stage, attempt=place.attempt,
        state=child_state(status, is_suspended), reason=ended.get("reason", ""), message=ended.get("message", ""),
        ended_at=read_time(ended.get("lastTransitionTime")), is_deleting="deletionTimestamp" in metadata,
        parallelism=parallelism, **(indexes or {}),
    )  # fmt: skip


ENDS: Mapping[str, ChildState] = {"Complete": "Succeeded", "Succeeded": "Succeeded", "Failed": "Failed"}
"""Conditions that end a child. `FailureTarget` and `SuccessCriteriaMet` come before, while pods stop."""


def end_condition(status: Mapping[str, Json]) -> Mapping[str, Json]:
    """The condition that says how a child ended; empty while none does."""
    found = (one for one in status.get("conditions") or () if one["type"] in ENDS and one["status"] == "True")
    return next(found, {})


def child_state(status: Mapping[str, Json], is_suspended: bool) -> ChildState:
    """How far a child is."""
    ended = end_condition(status)
    if ended:
        return ENDS[ended["type"]]
    if is_suspended:
        return "Queued"
    return "Running" if has_active_pods(status) else "Pending"


def has_active_pods(status: Mapping[str, Json]) -> bool:
    """Whether pods of the child exist and have not ended."""
    replicas = (status.get("replicaStatuses") or {}).values()
    return bool(status.get("active") or any(replica.get("active") for replica in replicas))


@dataclass(frozen=True)
class Place:
    """Stage and attempt, as labels say them."""

    stage: Stage
    attempt: int


def place_of(found: Mapping[str, Json]) -> Place | None:
    """Where an object belongs; None when its labels do not say."""
    labels = found["metadata"].get("labels") or {}
    try:
        return Place(Stage(labels[names.LABEL_STAGE]), int(labels[names.LABEL_ATTEMPT]))
    except (KeyError, ValueError):
        return None


# -- Pods -------------------------------------------------------------------------------------------------------------


def read_pod(found: Mapping[str, Json]) -> Pod | None:
    """A pod; None when its labels are not ours."""
    place = place_of(found)
    if place is None:
        return None
    metadata, status = found["metadata"], found.get("status") or {}
    container = main_container(found, status)
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=next((one["uid"] for one in metadata.get("ownerReferences") or () if one.get("controller")), ""),
        stage=place.stage,
        attempt=place.attempt,
        index=pod_index(metadata),
        node=found.get("spec", {}).get("nodeName", ""),
        ip=status.get("podIP", ""),
        is_ready=is_true(status, "Ready"),
        created=read_time(metadata.get("creationTimestamp")),
        deleting_since=read_time(metadata.get("deletionTimestamp")),
        problem=read_problem(status, container),
        end=read_end(status, container),
        image=container.get("imageID", ""),
    )


def pod_index(metadata: Mapping[str, Json]) -> int:
    """Which of its child's pods it is."""
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    for text in (notes.get(COMPLETION_INDEX), labels.get(COMPLETION_INDEX), labels.get(REPLICA_INDEX)):
        if text is not None and text.isdecimal():
            return int(text)
    return 0


def main_container(found: Mapping[str, Json], status: Mapping[str, Json]) -> Mapping[str, Json]:
    """The status of the stage's container: the first that the pod names, whatever a mesh has injected."""
    wanted = [one["name"] for one in found.get("spec", {}).get("containers") or ()]
    ours = {*Stage, "pytorch"}
    name = next((one for one in wanted if one in ours), next(iter(wanted), ""))
    statuses = status.get("containerStatuses") or ()
    return next((one for one in statuses if one.get("name") == name), {})


def is_true(status: Mapping[str, Json], kind: str) -> bool:
    """Whether a condition holds."""
    return any(one["type"] == kind and one["status"] == "True" for one in status.get("conditions") or ())


def read_problem(status: Mapping[str, Json], container: Mapping[str, Json]) -> Problem | None:
    """Why the pod does not start, in our words."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Problem(schedule_reason(condition.get("message", "")), condition.get("message", ""))
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in IMAGE_REASONS:
        return Problem(Reason.IMAGE_PULL_FAILED, f"{reason}: {message}")
    if reason in CONFIG_REASONS:
        return Problem(Reason.SECRET_NOT_FOUND if "secret" in message else Reason.PENDING, f"{reason}: {message}")
    if reason and reason not in ("ContainerCreating", "PodInitializing"):
        return Problem(Reason.PENDING, f"{reason}: {message}")
    return None


def schedule_reason(message: str) -> Reason:
    """A pod without a node: because of its volumes, or because of the nodes."""
    lower = message.lower()
    is_volume = "persistentvolumeclaim" in lower or "volume node affinity" in lower or "volume binding" in lower
    return Reason.VOLUME_NOT_BOUND if is_volume else Reason.UNSCHEDULABLE


def read_end(status: Mapping[str, Json], container: Mapping[str, Json]) -> End | None:
    """How a pod ended; None while it may still write."""
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    ended = (container.get("state") or {}).get("terminated") or {}
    disruption = read_disruption(status)
    message = ended.get("message", "")
    result = read_result(message)
    default = 0 if status["phase"] == "Succeeded" else 137
    return End(
        exit_code=int(ended.get("exitCode", default)),
        reason=ended.get("reason", ""),
        is_disrupted=disruption is not None,
        disruption=disruption or "",
        finished_at=read_time(ended.get("finishedAt")),
        result=result,
        text="" if result else message or status.get("message", ""),
    )


def read_disruption(status: Mapping[str, Json]) -> str | None:
    """What took the pod away; None when nothing did."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("message") or condition.get("reason", ""))
    if status.get("reason") in LOST_PODS:
        return f"{status['reason']}: {status.get('message', '')}"
    return None


def read_result(text: str) -> StageResult | None:
    """The result in a termination message; None where it is the end of a log, or nothing."""
    try:
        return StageResult.model_validate_json(text)
    except ValidationError:
        return None


# -- The claim --------------------------------------------------------------------------------------------------------


def read_claim(found: Mapping[str, Json]) -> Claim:
    """A PersistentVolumeClaim."""
    metadata, spec, status = found["metadata"], found["spec"], found.get("status") or {}
    requested = ((spec.get("resources") or {}).get("requests") or {}).get("storage", 0)
    return Claim(
        name=metadata["name"],
        uid=metadata["uid"],
        is_bound=status.get("phase") == "Bound",
        access_modes=tuple(spec.get("accessModes") or ()),
        capacity=int(parse_quantity((status.get("capacity") or {}).get("storage", 0))),
        requested=int(parse_quantity(requested)),
        owner_uid=next(
            (one["uid"] for one in metadata.get("ownerReferences") or () if one.get("kind") == names.KIND), ""
        ),
        claim_of=(metadata.get("labels") or {}).get(names.LABEL_CLAIM_OF, ""),
        is_deleting="deletionTimestamp" in metadata,
    )


# -- Times and lists --------------------------------------------------------------------------------------------------


def read_time(text: str | None) -> datetime | None:
    """A time as Kubernetes writes it."""
    if not text:
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def lingers(child: Child, pods: Iterable[Pod], now: datetime) -> bool:
    """Whether pods of a child that is over have had their time to end, and still run."""
    if not child.is_over or (child.ended_at is not None and now - child.ended_at < LAST_PODS):
        return False
    return any(pod.is_live and pod.owner_uid == child.uid for pod in pods)


def first_ready(pods: Iterable[Pod], owner_uid: str) -> Pod | None:
    """The ready pod with the lowest index that the child owns: a foreign pod with our labels is not asked."""
    ready = (pod for pod in pods if pod.is_live and pod.is_ready and pod.ip and pod.owner_uid == owner_uid)
    return min(ready, key=lambda pod: pod.index, default=None)
