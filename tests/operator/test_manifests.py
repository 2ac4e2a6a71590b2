"""What is made for each stage: by what it must have, not by what it looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from world import CONFIG, NAME, NAMESPACE, OFFLINE, ONLINE, prepared, spec

from draftyard_api.names import Stage
from draftyard_api.plan import dump
from draftyard_api.status import DraftTrainingStatus, HiddenStatesStatus, Resolved, StageStatus
from draftyard_operator import planning, tasks
from draftyard_operator.backends import child_manifest
from draftyard_operator.manifests import storage
from draftyard_operator.manifests.work import Work
from draftyard_operator.run import Run, read_run

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
FULL = spec(
    OFFLINE,
    evaluate={"minAcceptanceLength": 2.0, "engine": {"url": "http://vllm:8000", "secretRef": {"name": "engine"}}},
    target={
        "model": "meta-llama/Llama-3.1-8B-Instruct", "tensorParallel": 2,
        "tokenSecretRef": {"name": "hub", "key": "token"},
    },
    data={
        "source": {"s3": {"uri": "s3://corpora/chat", "credentialsSecretRef": {"name": "corpora"}}},
        "regenerate": {"shards": 4, "engine": {"url": "https://llama.example/v1", "secretRef": {"name": "llama"}}},
    },
    regenerate={"parallelism": 2},
    workspace={"s3": {"uri": "s3://models/draftyard", "credentialsSecretRef": {"name": "models"}}},
    draft={"initFrom": "s3://drafts/r0", "s3": {"credentialsSecretRef": {"name": "drafts"}}},
    tracking={"reportTo": ["wandb"], "wandb": {"project": "drafts", "secretRef": {"name": "wandb"}}},
    scheduling={"queueName": "gpus", "workloadPriorityClass": "high", "priorityClassName": "training"},
    pod={"nodeSelector": {"pool": "a"}, "env": [{"name": "NCCL_DEBUG", "value": "WARN"}]},
    train={
        "gpusPerNode": 8,
        "pod": {"nodeSelector": {"pool": "b"}, "shmSize": "64Gi", "resources": {"limits": {"memory": "1Gi"}}},
    },
)  # fmt: skip
STAGES = [*Stage]


def status(given: Any, attempt: int = 2) -> DraftTrainingStatus:
    """A status in which every stage has an attempt."""
    run = object_of(given)
    return DraftTrainingStatus(
        backend="Job",
        fingerprint="sha256:f1",
        resolved=Resolved(target_commit=COMMIT, aux_layers=(2, 18, 33), prepared="p1"),
        plan=planning.make_plan(run.wanted, prepared()),
        hidden_states=HiddenStatesStatus(key="k1", bytes=1),
        stages=tuple(
            StageStatus(name=stage, state="Running", attempt=attempt, completed_shards="0-3") for stage in Stage
        ),
    )


def object_of(given: Any) -> Run:
    metadata = {"name": NAME, "namespace": NAMESPACE, "uid": "uid-1", "generation": 1, "resourceVersion": "1"}
    found = read_run(
        {"apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": metadata, "spec": given}
    )
    assert found.spec is not None, found.spec_errors
    return found


def work(stage: Stage, given: Any = FULL, config=CONFIG, **changes: Any) -> Work:
    return Work(object_of(given), status(given).model_copy(update=changes), config, stage)


def template(made: Any) -> Any:
    """The pod template of a child."""
    if made["kind"] == "Job":
        return made["spec"]["template"]
    (replica,) = made["spec"]["pytorchReplicaSpecs"].values()
    return replica["template"]


def container(made: Any) -> Any:
    (found,) = template(made)["spec"]["containers"]
    return found


def env(made: Any) -> dict[str, Any]:
    entries = container(made)["env"]
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)), "an environment variable twice"
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}


# -- What all have in common ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_child_is_found_by_its_labels_and_goes_with_its_object(stage):
    made = child_manifest(work(stage))
    labels = made["metadata"]["labels"]
    assert made["metadata"]["name"] == f"{NAME}-{stage}-a2"
    expected = {"managed": "true", "run": NAME, "uid": "uid-1", "stage": stage, "attempt": "2"}
    assert {name.partition("/")[2]: value for name, value in labels.items() if "draftyard" in name} == expected
    assert (
        template(made)["metadata"]["labels"].items()
        >= {name: value for name, value in labels.items() if "draftyard" in name}.items()
    )
    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("uid-1", True, True)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_pods_pass_restricted_and_have_no_token(stage):
    found = template(child_manifest(work(stage)))["spec"]
    (inner,) = found["containers"]
    assert found["automountServiceAccountToken"] is False
    assert found["restartPolicy"] == "Never"
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert not {"hostNetwork", "hostPID", "hostIPC"} & found.keys()
    assert {next(iter(set(volume) - {"name"})) for volume in found["volumes"]} <= {"emptyDir", "configMap"}


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_no_text_of_the_spec_reaches_a_shell_and_no_value_of_a_secret_is_known(stage):
    made = child_manifest(work(stage))
    inner = container(made)
    assert inner["command"] == ["draftyard"]
    assert inner["args"] == [stage, "--task", "/run/draftyard/task/task.json"]
    secrets = {name: value for name, value in env(made).items() if isinstance(value, dict)}
    assert all(set(value) == {"secretKeyRef"} for value in secrets.values())
    assert secrets["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert secrets["AWS_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "models", "key": "AWS_ACCESS_KEY_ID"}}
    assert secrets["AWS_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True
    assert ("DATA_AWS_ACCESS_KEY_ID" in secrets) is (stage in (Stage.REGENERATE, Stage.PREPARE))
    assert ("DRAFT_AWS_ACCESS_KEY_ID" in secrets) is (stage is Stage.PREPARE)
    assert ("WANDB_API_KEY" in secrets) is (stage in (Stage.TRAIN, Stage.EVALUATE))
    assert ("OPENAI_API_KEY" in secrets) is (stage in (Stage.REGENERATE, Stage.EVALUATE))


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_caches_can_be_written_though_the_root_cannot(stage):
    made = child_manifest(work(stage))
    mounts = {mount["mountPath"] for mount in container(made)["volumeMounts"]}
    for name in ("HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert any(env(made)[name].startswith(f"{mount}/") for mount in mounts), name
    assert {"/tmp", "/dev/shm", "/run/draftyard"} <= mounts  # noqa: S108  volumes of the pod's own
    named = {volume["name"] for volume in template(made)["spec"]["volumes"]}
    assert {mount["name"] for mount in container(made)["volumeMounts"]} == named


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_the_queue_is_on_the_child_and_the_priority_on_the_pod(stage):
    made = child_manifest(work(stage))
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert template(made)["spec"]["priorityClassName"] == "training"
    assert "suspend" not in made["spec"]


NO_MINIMUM = [
    pytest.param(Stage.GENERATE, {"scheduling": {}}, id="no queue"),
    pytest.param(Stage.GENERATE, {"hiddenStates": {"shards": 4, "parallelism": 1}}, id="one pod at a time"),
    pytest.param(Stage.TRAIN, {}, id="pods that need each other"),
]


def test_a_queue_may_begin_with_fewer_shards_at_a_time():
    notes = child_manifest(work(Stage.GENERATE))["metadata"]["annotations"]
    assert notes["kueue.x-k8s.io/job-min-parallelism"] == "1"


@pytest.mark.parametrize(("stage", "changes"), NO_MINIMUM)
def test_kueue_refuses_a_minimum_that_is_none(stage, changes):
    notes = child_manifest(work(stage, FULL | changes))["metadata"]["annotations"]
    assert "kueue.x-k8s.io/job-min-parallelism" not in notes


def test_a_stage_replaces_fields_of_all_stages_as_a_whole():
    assert template(child_manifest(work(Stage.TRAIN)))["spec"]["nodeSelector"] == {"pool": "b"}
    assert template(child_manifest(work(Stage.PREPARE)))["spec"]["nodeSelector"] == {"pool": "a"}
    assert env(child_manifest(work(Stage.TRAIN)))["NCCL_DEBUG"] == "WARN"


@pytest.mark.parametrize(
    ("stage", "gpus"),
    [(Stage.REGENERATE, None), (Stage.PREPARE, None), (Stage.GENERATE, 2), (Stage.TRAIN, 8), (Stage.EVALUATE, 2)],
)
def test_gpus_are_counted_where_the_cluster_counts_them(stage, gpus):
    assert container(child_manifest(work(stage)))["resources"].get("limits", {}).get("nvidia.com/gpu") == gpus
    without = CONFIG.model_copy(update={"gpu_resource": ""})
    assert "nvidia.com/gpu" not in json.dumps(child_manifest(work(stage, config=without)))


def test_memory_and_shared_memory_are_as_asked_for():
    made = child_manifest(work(Stage.TRAIN))
    assert container(made)["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": 8}
    (shm,) = [volume for volume in template(made)["spec"]["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}


# -- Jobs -------------------------------------------------------------------------------------------------------------


def codes(made: Any, action: str) -> list[int]:
    rules = made["spec"]["podFailurePolicy"]["rules"]
    return [
        code
        for rule in rules
        if rule["action"] == action and "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    ]


@pytest.mark.parametrize("stage", [Stage.REGENERATE, Stage.GENERATE], ids=str)
def test_shards_are_made_by_an_indexed_job_whose_indexes_fail_alone(stage):
    made = child_manifest(work(stage))
    wanted = {
        "completionMode": "Indexed", "completions": 4, "parallelism": 2, "backoffLimitPerIndex": 3,
        "maxFailedIndexes": 0, "podReplacementPolicy": "Failed",
    }  # fmt: skip
    assert made["spec"].items() >= wanted.items()
    assert codes(made, "Ignore") == [69, 75, 81]
    assert codes(made, "FailIndex") == [80]
    assert codes(made, "FailJob") == [64, 65, 66, 70, 71, 73, 77, 78, 79, 82, 83]
    first = made["spec"]["podFailurePolicy"]["rules"][0]
    assert (first["action"], first["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert container(made)["name"] == stage


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE], ids=str)
def test_the_others_are_jobs_of_one_pod(stage):
    made = child_manifest(work(stage))
    assert (made["spec"]["completions"], made["spec"]["backoffLimit"]) == (1, 0)
    assert codes(made, "FailIndex") == []
    assert {rule["onExitCodes"]["containerName"] for rule in made["spec"]["podFailurePolicy"]["rules"][1:]} == {stage}
    assert "ttlSecondsAfterFinished" not in made["spec"]
    assert "activeDeadlineSeconds" not in made["spec"]


@pytest.mark.parametrize("stage", [Stage.REGENERATE, Stage.GENERATE], ids=str)
def test_parallelism_is_bounded_by_the_operator(stage):
    config = CONFIG.model_copy(update={"max_parallelism": 1})
    assert child_manifest(work(stage, config=config))["spec"]["parallelism"] == 1


def test_of_own_answers_all_shards_are_needed():
    given = FULL | {"hiddenStates": {"shards": 4, "maxFailedShards": 2}, "regenerate": {"retriesPerShard": 0}}
    made = child_manifest(work(Stage.REGENERATE, given))["spec"]
    assert (made["maxFailedIndexes"], made["backoffLimitPerIndex"], made["parallelism"]) == (0, 0, 1)


def test_the_target_that_answers_has_a_gpu_and_an_engine_has_a_key():
    assert "nvidia.com/gpu" not in json.dumps(child_manifest(work(Stage.REGENERATE)))
    key = next(
        one for one in container(child_manifest(work(Stage.REGENERATE)))["env"] if one["name"] == "OPENAI_API_KEY"
    )
    assert key["valueFrom"]["secretKeyRef"] == {"name": "llama", "key": "OPENAI_API_KEY"}
    assert "OPENAI_API_KEY" not in json.dumps(child_manifest(work(Stage.PREPARE)))
    own = FULL | {"data": FULL["data"] | {"regenerate": {}}, "target": {"model": "org/name"}}
    assert container(child_manifest(work(Stage.REGENERATE, own)))["resources"]["limits"]["nvidia.com/gpu"] == 1


# -- PyTorchJobs ------------------------------------------------------------------------------------------------------


def pytorch(nodes: int) -> Any:
    wide = {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}}
    given = spec(ONLINE, workspace=wide, train={"nodes": nodes, "gpusPerNode": 8})
    return child_manifest(work(Stage.TRAIN, given, backend="PyTorchJob"))


def test_one_node_is_a_master_alone_that_finds_itself():
    made = pytorch(1)
    assert list(made["spec"]["pytorchReplicaSpecs"]) == ["Master"]
    assert "elasticPolicy" not in made["spec"]
    assert env(made)["PET_STANDALONE"] == "1"


def test_several_nodes_are_workers_that_meet_by_c10d():
    made = pytorch(4)
    assert made["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 4
    assert list(made["spec"]["pytorchReplicaSpecs"]) == ["Worker"]
    assert made["spec"]["elasticPolicy"] == {
        "rdzvBackend": "c10d",
        "minReplicas": 4,
        "maxReplicas": 4,
        "maxRestarts": 0,
    }
    assert "PET_STANDALONE" not in env(made)


@pytest.mark.parametrize("nodes", [1, 4])
def test_attempts_are_ours_and_nothing_is_removed_behind_our_back(nodes):
    made = pytorch(nodes)
    assert made["spec"]["runPolicy"] == {"cleanPodPolicy": "None", "backoffLimit": 0, "suspend": False}
    assert made["spec"]["nprocPerNode"] == "8"
    assert container(made)["name"] == "pytorch"
    assert (env(made)["TORCH_NCCL_ASYNC_ERROR_HANDLING"], env(made)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) == ("1", "280")


# -- Storage ----------------------------------------------------------------------------------------------------------


def test_the_task_is_immutable_and_the_one_of_the_attempt():
    made = storage.task_config_map(work(Stage.TRAIN))
    told = json.loads(made["data"]["task.json"])
    assert made["immutable"] is True
    assert (told["attempt"], told["uid"], told["stage"]) == (2, "uid-1", "train")
    assert told["target"]["revision"] == COMMIT
    assert told["hiddenStates"] == {"key": "k1", "shards": [0, 1, 2, 3], "numShards": 4}
    assert told["workspace"] == "s3://models/draftyard"


def test_a_claim_is_mounted_once_wherever_it_is_named():
    given = spec(
        ONLINE,
        target={"model": "pvc://models/llama"},
        data={"source": {"file": {"uri": "pvc://scratch/chat.jsonl"}}},
        workspace={"pvc": {"existingClaim": "scratch", "path": "runs"}},
    )
    made = child_manifest(work(Stage.PREPARE, given))
    claims = [
        volume["persistentVolumeClaim"]
        for volume in template(made)["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == [{"claimName": "scratch"}, {"claimName": "models", "readOnly": True}]
    told = json.loads(storage.task_config_map(work(Stage.PREPARE, given))["data"]["task.json"])
    assert told["workspace"] == "file:///data/workspace/runs"
    assert told["target"]["model"] == "file:///data/claims/models/llama"
    assert told["data"]["source"]["file"]["uri"] == "file:///data/workspace/chat.jsonl"


@pytest.mark.parametrize(("reclaim", "owned"), [("Retain", False), ("Delete", True)])
def test_a_claim_goes_with_the_object_only_if_it_shall(reclaim, owned):
    given = spec(
        ONLINE, workspace={"pvc": {"claimTemplate": {"size": "1Ti", "reclaim": reclaim, "storageClassName": "fast"}}}
    )
    made = storage.workspace_claim(object_of(given))
    assert ("ownerReferences" in made["metadata"]) is owned
    assert made["metadata"]["labels"]["draftyard.dev/claim-of"] == NAME
    assert ("argocd.argoproj.io/sync-options" in made["metadata"].get("annotations", {})) is not owned
    assert made["spec"]["storageClassName"] == "fast"


# -- Tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "is_new"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"train": {"gpusPerNode": 4}}, False, id="how training runs"),
        pytest.param({"train": {"pod": {"nodeSelector": {"a": "b"}}}}, False, id="where training runs"),
        pytest.param({"retry": {"maxAttempts": 9}}, False, id="how often it is tried"),
        pytest.param({"train": {"epochs": 5}}, True, id="how long is trained"),
        pytest.param({"draft": {"vocabSize": 8192}}, True, id="the draft"),
        pytest.param({"export": {"ifExists": "Fail"}}, True, id="what to do with an older draft"),
    ],
)
def test_prepare_starts_again_for_what_changes_its_result(changes, is_new):
    before = object_of(ONLINE)
    given = tasks.render(tasks.task(before, status(ONLINE), Stage.PREPARE))
    assert tasks.prepare_changed(object_of(spec(ONLINE, **changes)), given) is is_new


def test_a_planned_number_of_shards_is_kept():
    given = spec(OFFLINE, hiddenStates={})
    told = tasks.settled(object_of(given).wanted, status(given))
    assert told.hidden_states is not None
    assert told.hidden_states.shards == status(given).plan.shards
    assert dump(told)["target"]["revision"] == COMMIT
