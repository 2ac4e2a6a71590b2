"""Who may ask for what in a DraftTraining: the admission policy on a real API server, with users of few rights."""

from __future__ import annotations

import control_plane
import pytest
import trainings
from charts import installed
from rule_cases import OFFLINE, ONLINE, changed

RBAC = "apis/rbac.authorization.k8s.io/v1/namespaces/{}"
NAME = ONLINE["metadata"]["name"]
CONFIG = {
    "allowedImages": ["registry.example/ml/*", "tried/once:1"],
    "allowedServiceAccounts": ["trainer", "team-*", "*-ml"],
}
TRAIN = ("draftyard.dev", "drafttrainings", ["create", "get", "patch", "update", "delete"], [])
ALL_PODS = ("", "pods", ["create"], [])


@pytest.fixture(scope="module", autouse=True)
def release(plane, server):
    with installed(plane, {"config": CONFIG}):
        trainings.eventually(lambda: server.get(trainings.path("default")).is_ok)
        # A policy works some time after it was stored.
        probe = changed(ONLINE, {"pod.image": "never/allowed:1"})
        trainings.eventually(lambda: not server.post(trainings.path("default"), probe, dryRun="All").is_ok)
        yield


@pytest.fixture
def user(server, namespace):
    """A client of somebody who has the rights that are named, in the test's namespace."""

    def with_rights(name, *rights):
        rules = [
            {"apiGroups": [group], "resources": [resource], "verbs": verbs, "resourceNames": names}
            for group, resource, verbs, names in (TRAIN, *rights)
        ]
        server.post(f"{RBAC.format(namespace)}/roles", {"metadata": {"name": name}, "rules": rules}).made()
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": name}],
        }
        server.post(f"{RBAC.format(namespace)}/rolebindings", binding).made()
        client = server.acting_as(name)
        plain = changed(ONLINE, {"metadata.name": "plain"})
        trainings.eventually(lambda: client.post(trainings.path(namespace), plain, dryRun="All").is_ok)
        return client

    return with_rights


def may_get(*names):
    return ("", "secrets", ["get"], list(names))


def told(answer):
    """The message without what the server says before it."""
    assert (answer.status, answer.reason) == (403, "Forbidden"), answer.body
    return answer.message.partition(" denied request: ")[2]


# -- Secrets --------------------------------------------------------------------------------------------------------

SECRETS = {
    "target.tokenSecretRef": {"target.tokenSecretRef": {"name": "hf"}},
    "target.s3.credentialsSecretRef": {
        "target": {"model": "s3://models/llama", "s3": {"credentialsSecretRef": {"name": "hf"}}}
    },
    "data.source.s3.credentialsSecretRef": {
        "data.source": {"s3": {"uri": "s3://corpora/chat", "credentialsSecretRef": {"name": "hf"}}}
    },
    "data.regenerate.engine.secretRef": {
        "data.regenerate": {"engine": {"url": "https://llama.example/v1", "secretRef": {"name": "hf"}}}
    },
    "workspace.s3.credentialsSecretRef": {
        "workspace": {"s3": {"uri": "s3://work/here", "credentialsSecretRef": {"name": "hf"}}}
    },
    "tracking.wandb.secretRef": {
        "tracking": {"reportTo": ["wandb"], "wandb": {"project": "p", "secretRef": {"name": "hf"}}}
    },
    "tracking.swanlab.secretRef": {
        "tracking": {"reportTo": ["swanlab"], "swanlab": {"project": "p", "secretRef": {"name": "hf"}}}
    },
    "evaluate.engine.secretRef": {"evaluate.engine": {"url": "http://vllm:8000", "secretRef": {"name": "hf"}}},
    "tracking.mlflow.secretRef": {
        "tracking": {
            "reportTo": ["mlflow"],
            "mlflow": {"uri": "https://mlflow.example", "experiment": "e", "secretRef": {"name": "hf"}},
        }
    },
}


@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_is_for_who_may_read_it(user, namespace, field):
    asked = changed(ONLINE, SECRETS[field])
    reads_another = user("ada", may_get("wandb")).post(trainings.path(namespace), asked)
    assert told(reads_another) == (
        f'given spec.{field} "hf"; accepted: Secrets of namespace {namespace} that you may get, or any of them from '
        "who may create pods there: ask for one of these rights"
    )
    user("bob", may_get("hf")).post(trainings.path(namespace), asked, dryRun="All").made()
    user("eve", ALL_PODS).post(trainings.path(namespace), asked, dryRun="All").made()


def test_one_secret_of_two_is_not_enough(user, namespace):
    two = changed(ONLINE, SECRETS["target.tokenSecretRef"])
    two = changed(two, {"tracking": {"reportTo": ["wandb"], "wandb": {"project": "p", "secretRef": {"name": "wandb"}}}})
    asked = trainings.path(namespace)
    assert told(user("ada", may_get("hf")).post(asked, two)).startswith(
        'given spec.target.tokenSecretRef "hf", spec.tracking.wandb.secretRef "wandb"; accepted: '
    )
    user("bob", may_get("hf", "wandb")).post(asked, two, dryRun="All").made()


# -- Pods -----------------------------------------------------------------------------------------------------------

REF = {"secretKeyRef": {"name": "other", "key": "k"}}
FIELDS = {
    "image": {"image": "tried/once:1"},
    "imagePullSecrets": {"imagePullSecrets": [{"name": "registry"}]},
    "serviceAccountName": {"serviceAccountName": "trainer"},
    "volumes": {"volumes": [{"name": "v", "secret": {"secretName": "other"}}]},
    "env[].valueFrom": {"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": REF}]},
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("block", ["pod", "regenerate.pod", "prepare.pod", "generate.pod", "train.pod", "evaluate.pod"])
def test_a_field_of_a_pod_is_for_who_may_create_pods(server, user, namespace, block, field):
    own = {"data.regenerate": {}} if block.startswith("regenerate") else {}
    asked = changed(OFFLINE, own | {block: FIELDS[field]})
    assert told(user("ada", may_get("hf", "other")).post(trainings.path(namespace), asked)) == (
        f"given spec.{block}.{field}; accepted: none of them from who may not create pods in namespace {namespace}: "
        "leave them out, or ask for that right"
    )
    user("eve", ALL_PODS).post(trainings.path(namespace), asked, dryRun="All").made()


def test_all_fields_are_named_at_once(user, namespace):
    asked = changed(ONLINE, {"pod": FIELDS["image"], "train.pod": FIELDS["volumes"] | FIELDS["env[].valueFrom"]})
    words = told(user("ada").post(trainings.path(namespace), asked))
    assert words.startswith("given spec.pod.image, spec.train.pod.volumes, spec.train.pod.env[].valueFrom; accepted: ")


def test_the_rest_of_a_pod_is_for_everybody(user, namespace):
    free = {
        "resources": {"requests": {"cpu": "8"}}, "nodeSelector": {"gpu": "h100"}, "env": [{"name": "A", "value": "1"}],
        "shmSize": "1Gi", "volumeMounts": [], "tolerations": [{"operator": "Exists"}],
    }  # fmt: skip
    user("ada").post(trainings.path(namespace), changed(ONLINE, {"train.pod": free})).made()


# -- Lists of the operator ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "is_allowed"),
    [
        ("image", "registry.example/ml/trainer:2", True),
        ("image", "tried/once:1", True),
        ("image", "draftyard-trainer:0.1.0", True),
        ("image", "tried/once:12", False),
        ("image", "registry.example/mlx/trainer", False),
        ("image", "registryxexample/ml/trainer", False),
        ("image", "mirror/registry.example/ml/trainer", False),
        ("serviceAccountName", "trainer", True),
        ("serviceAccountName", "team-a", True),
        ("serviceAccountName", "team-b-ml", True),
        ("serviceAccountName", "b-ml", True),
        ("serviceAccountName", "trainers", False),
        ("serviceAccountName", "default", False),
    ],
)
def test_images_and_accounts_are_those_of_the_lists(server, namespace, field, value, is_allowed):
    """For everybody, also for who has all rights: the operator would not use another one."""
    answer = server.post(trainings.path(namespace), changed(ONLINE, {"train.pod": {field: value}}), dryRun="All")
    if is_allowed:
        answer.made()
        return
    accepted = {
        "image": "draftyard-trainer:0.1.0, registry.example/ml/*, tried/once:1, no image (config.allowedImages",
        "serviceAccountName": "trainer, team-*, *-ml, no name (config.allowedServiceAccounts",
    }
    assert told(answer) == f"given {field} {value}; accepted: {accepted[field]} of the operator)"


# -- Edits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def of_eve(user, namespace):
    """A run with a Secret, an image and a claim, made by who may."""
    asked = changed(ONLINE, SECRETS["target.tokenSecretRef"] | {"pod": FIELDS["image"]})
    user("eve", ALL_PODS).post(trainings.path(namespace), asked).made()
    return trainings.path(namespace, NAME)


def test_an_edit_takes_the_rights_of_what_stands_beside_it(user, of_eve):
    """A new tracker could send elsewhere what the Secret opens."""
    answer = user("ada").patch(of_eve, {"spec": {"train": {"seed": 7}}})
    assert told(answer).startswith("given spec.pod.image; accepted: ")


def test_a_field_that_goes_is_an_edit_too(user, of_eve):
    answer = user("ada").patch(of_eve, {"spec": {"pod": None}})
    assert told(answer).startswith('given spec.target.tokenSecretRef "hf"; accepted: ')


def test_everybody_may_stop_label_and_delete(user, of_eve):
    ada = user("ada")
    assert ada.patch(of_eve, {"spec": {"suspend": True}}).made()["spec"]["suspend"] is True
    assert ada.patch(of_eve, {"spec": {"suspend": False}}).made()["spec"]["suspend"] is False
    ada.patch(of_eve, {"metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/hold"]}}).made()
    ada.delete(of_eve).made()
    ada.patch(of_eve, {"metadata": {"finalizers": None}}).made()
    assert ada.get(of_eve).status == 404


def test_the_status_is_not_asked_about(server, of_eve):
    server.patch(f"{of_eve}/status", {"status": {"phase": "Running"}}).made()


def test_the_server_finds_nothing_wrong_with_the_policy(server, plane):
    """It checks the expressions against the schema of the kind; that takes a controller."""
    path = "apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/draftyard-system-draftyard"
    with control_plane.controllers(plane):
        status = trainings.eventually(lambda: server.get(path).made().get("status"))
    assert status["typeChecking"] == {}
