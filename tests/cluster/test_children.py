"""What the operator makes is what a real API server takes: every field known, nothing dropped, Pod Security kept."""

from __future__ import annotations

import pytest
from test_manifests import FULL, STAGES, container, template, work
from world import ONLINE, spec

from draftyard_api.names import Stage
from draftyard_operator.backends import child_manifest
from draftyard_operator.manifests import storage
from draftyard_operator.reconcile import lost_fields

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
CLAIM = spec(ONLINE, workspace={"pvc": {"claimTemplate": {"size": "1Ti", "storageClassName": "fast"}}}, evaluate={})


def in_namespace(made, namespace):
    """A manifest for a namespace of the test, without an owner that is not there."""
    metadata = {name: value for name, value in made["metadata"].items() if name != "ownerReferences"}
    return made | {"metadata": metadata | {"namespace": namespace}}


@pytest.fixture
def restricted(server, namespace):
    """A namespace that enforces the standard `restricted`."""
    server.patch(f"api/v1/namespaces/{namespace}", {"metadata": {"labels": RESTRICTED}}).made()
    return namespace


@pytest.mark.parametrize("given", [FULL, CLAIM], ids=["a bucket, every block", "a claim"])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_every_job_is_taken_as_it_is(server, restricted, stage, given):
    if given is CLAIM and stage is Stage.GENERATE:
        given = CLAIM | {"mode": "Offline", "hiddenStates": {"shards": 4}}
    if given is CLAIM and stage is Stage.REGENERATE:
        given = CLAIM | {"data": CLAIM["data"] | {"regenerate": {"shards": 4}}}
    sent = in_namespace(child_manifest(work(stage, given)), restricted)
    stored = server.post(f"apis/batch/v1/namespaces/{restricted}/jobs", sent).made()
    assert lost_fields(sent, stored) == set()


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_every_pod_passes_the_standard_restricted(server, restricted, stage):
    """Pod Security judges pods, not Jobs. Their priority class must exist, so it is left out here."""
    found = template(child_manifest(work(stage)))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{stage}", "labels": found["metadata"]["labels"]},
    }
    account = {"metadata": {"name": "default"}}
    server.post(f"api/v1/namespaces/{restricted}/serviceaccounts", account)
    inner = {name: value for name, value in found["spec"].items() if name != "priorityClassName"}
    stored = server.post(f"api/v1/namespaces/{restricted}/pods", pod | {"spec": inner}).made()
    assert [
        mount for mount in stored["spec"]["containers"][0]["volumeMounts"] if "serviceaccount" in mount["mountPath"]
    ] == []


def test_a_pod_that_breaks_the_standard_is_refused(server, restricted):
    """So that the test above can fail."""
    found = template(child_manifest(work(Stage.TRAIN)))["spec"]
    inner = container(child_manifest(work(Stage.TRAIN))) | {"securityContext": {"privileged": True}}
    server.post(f"api/v1/namespaces/{restricted}/serviceaccounts", {"metadata": {"name": "default"}})
    kept = {name: value for name, value in found.items() if name != "priorityClassName"}
    answer = server.post(
        f"api/v1/namespaces/{restricted}/pods", {"metadata": {"name": "pod"}, "spec": kept | {"containers": [inner]}}
    )
    assert not answer.is_ok


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_every_task_is_taken(server, namespace, stage):
    sent = in_namespace(storage.task_config_map(work(stage)), namespace)
    assert server.post(f"api/v1/namespaces/{namespace}/configmaps", sent).made()["immutable"] is True


def test_the_claim_is_taken(server, namespace):
    sent = in_namespace(storage.workspace_claim(work(Stage.TRAIN, CLAIM).run), namespace)
    stored = server.post(f"api/v1/namespaces/{namespace}/persistentvolumeclaims", sent).made()
    assert lost_fields(sent, stored) == set()
