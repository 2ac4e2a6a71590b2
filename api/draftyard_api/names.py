"""Every name that exists in more than one place has its home here: the API group, labels, environment, paths."""

from __future__ import annotations

from enum import StrEnum

GROUP = "draftyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DraftTraining"
PLURAL = "drafttrainings"
SINGULAR = "drafttraining"
SHORT_NAME = "dt"

MAX_RUN_NAME = 40
RUN_NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
MAX_ATTEMPT = 999


class Stage(StrEnum):
    """The steps of a run, in the order in which they happen. A run has those that its spec asks for."""

    REGENERATE = "regenerate"
    PREPARE = "prepare"
    GENERATE = "generate"
    TRAIN = "train"
    EVALUATE = "evaluate"


# -- Labels and children ------------------------------------------------------------------

LABEL_MANAGED = f"{GROUP}/managed"
LABEL_RUN = f"{GROUP}/run"
LABEL_UID = f"{GROUP}/uid"
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_CLAIM_OF = f"{GROUP}/claim-of"
"""On a retained claim: the run that it was made for; a later run of that name goes on with it."""


def child(run: str, stage: Stage, attempt: int) -> str:
    """Name of the Job or PyTorchJob of one attempt, and of its ConfigMap: at most 40 + 16 characters."""
    return f"{run}-{stage}-a{attempt}"


def claim(run: str) -> str:
    """Name of the claim that is made from `workspace.pvc.claimTemplate`."""
    return f"{run}-workspace"


# -- What a stage process finds around it ---------------------------------------------------

ENV_STATE_DIR = "DRAFTYARD_STATE_DIR"
"""Folder in which the working process leaves `progress.json` and `result.json` (default `/run/draftyard`)."""
ENV_PROGRESS_PORT = "DRAFTYARD_PROGRESS_PORT"
"""Port on which the first process of a pod says how far its stage is; unset: none."""
ENV_TERMINATION_LOG = "DRAFTYARD_TERMINATION_LOG"
"""File that receives the result as one line of JSON (default `/dev/termination-log`)."""
ENV_PARENT = "DRAFTYARD_PARENT"
"""Process id of whoever started this process, where that is another of ours on the same machine."""
ENV_PEER_SECONDS = "DRAFTYARD_PEER_SECONDS"
"""Seconds after which a training process gives up one that does not answer (default 1200)."""
ENV_SHARD = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in pods of an Indexed Job: the shard to make."""

S3_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""What S3 wants to know: the keys of a Secret, and names in the environment."""
S3_HOLDERS = {"workspace": "", "target": "TARGET_", "data": "DATA_", "draft": "DRAFT_"}
"""Before these names, since each location may have a Secret of its own; without one the plain names count."""

ENV_ENGINE_KEY = "OPENAI_API_KEY"
"""What an engine wants to know of who asks: the key of a Secret, and the name in the environment."""

ENV_CACHE = "DRAFTYARD_CACHE"
"""Folder and size of the node's cache of hidden states that lie in a bucket, such as `/nvme/draftyard:200GiB`."""
ENV_DATASETS = "DRAFTYARD_DATASETS"
"""Folder with a mirror of the hub's data sets, for presets without a way out."""

DEFAULT_STATE_DIR = "/run/draftyard"
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
TASK_DIR = f"{DEFAULT_STATE_DIR}/task"
TASK_FILE = "task.json"
PROGRESS_PORT = 9400
PROGRESS_PATH = "/progress"
WORKSPACE_MOUNT = "/data/workspace"
CLAIMS_MOUNT = "/data/claims"
"""Folder with one folder for each claim that a `pvc://` location names."""
PROGRESS_FILE = "progress.json"
RESULT_FILE = "result.json"

# -- Inside a workspace -----------------------------------------------------------------------

MANIFEST = "MANIFEST.json"
PUBLISHED = "PUBLISHED.json"
FENCE = "_EPOCH"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
HISTORY = "history.jsonl"


def conversations_path(key: str, shards: int) -> str:
    """Conversations with the target's own answers, in one cut: another number of shards is never mixed with it."""
    return f"conversations/{key}/s{shards}"


def conversation_shard_path(key: str, shards: int, shard: int) -> str:
    """What Job index `shard` of regenerate writes."""
    return f"{conversations_path(key, shards)}/shard-{shard:05d}"


def prepared_path(prepared: str) -> str:
    """Tokens, masks and the draft vocabulary of one data set under one tokenizer."""
    return f"prepare/{prepared}"


def hidden_states_path(key: str, shards: int) -> str:
    """One cut of one content: another number of shards is never mixed with it."""
    return f"hidden-states/{key}/s{shards}"


def shard_path(key: str, shards: int, shard: int) -> str:
    """Everything that Job index `shard` writes."""
    return f"{hidden_states_path(key, shards)}/shard-{shard:05d}"


def train_path(run: str) -> str:
    """Fence, checkpoints and metrics of a run."""
    return f"train/{run}"


def checkpoint_path(run: str, step: int) -> str:
    """The state after optimizer step number `step`."""
    return f"{train_path(run)}/step-{step:08d}"


def export_path(run: str) -> str:
    """The draft that SGLang and vLLM load."""
    return f"export/{run}"


def runs_path(run: str) -> str:
    """What `draftyard run` keeps of a run: the task, result and log of each stage process."""
    return f"runs/{run}"


def history_path(run: str) -> str:
    """How every stage process ended, one line each."""
    return f"{runs_path(run)}/{HISTORY}"
