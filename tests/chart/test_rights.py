"""What the operator's account may do on a real API server, asked in its name: the table, all of it, and no more."""

from __future__ import annotations

import pytest
import trainings
from charts import ACCOUNT, ACCOUNTS, child, claim, installed
from rights import CLUSTER, WATCHED, triples
from rule_cases import OFFLINE

NAME = OFFLINE["metadata"]["name"]
EVERYTHING = dict.fromkeys(("pytorchJobs", "kueue"), True)
NOBODY = "system:serviceaccount:default:nobody"


@pytest.fixture(scope="module", autouse=True)
def release(plane, server):
    with installed(plane, {"rbac": EVERYTHING}):
        trainings.eventually(lambda: server.get(trainings.path("default")).is_ok)
        yield


@pytest.fixture
def operator(server):
    return server.acting_as(ACCOUNT)


def rules(server, user, namespace):
    """Every right of a user in a namespace, as the server tells it."""
    reviews = "apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    told = server.acting_as(user).post(reviews, {"spec": {"namespace": namespace}}).made()["status"]
    assert told["incomplete"] is False
    return {
        (group, resource, verb)
        for rule in told["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_it_has_the_rights_of_the_table_and_no_more(server, namespace):
    """No more than any account has that nobody ever gave a right."""
    everybody = rules(server, NOBODY, namespace)
    assert rules(server, ACCOUNT, namespace) - everybody == triples((*WATCHED, *CLUSTER), tuple(EVERYTHING))


def test_an_operator_of_one_namespace_has_no_right_outside(server, plane, namespace):
    everybody = rules(server, NOBODY, namespace)
    account = f"{ACCOUNTS}tenant"
    with installed(plane, {"crds": {"enabled": False}, "watchNamespaces": [namespace]}, "tenant"):
        assert rules(server, account, namespace) - everybody == triples(WATCHED)
        assert rules(server, account, "default") - everybody == set()
        assert server.acting_as(account).get("apis/batch/v1/jobs").status == 403


# -- What it does ---------------------------------------------------------------------------------------------------


def test_it_looks_at_runs_and_tells_their_status(server, operator, namespace):
    server.post(trainings.path(namespace), OFFLINE).made()
    operator.get("apis/draftyard.dev/v1alpha1/drafttrainings").made()
    operator.get(trainings.path(namespace, NAME)).made()
    told = operator.patch(trainings.path(namespace, NAME, "status"), {"status": {"phase": "Pending"}})
    assert told.made()["status"]["phase"] == "Pending"


def test_it_makes_changes_and_removes_jobs(server, operator, namespace):
    """With an owner whose deletion they may hold up, which this server asks a right for, as OpenShift does."""
    owner = server.post(trainings.path(namespace), OFFLINE).made()
    jobs = f"apis/batch/v1/namespaces/{namespace}/jobs"
    operator.post(jobs, child(owner, "shards")).made()
    assert operator.patch(f"{jobs}/shards", {"spec": {"parallelism": 2}}).made()["spec"]["parallelism"] == 2
    everywhere = operator.get("apis/batch/v1/jobs").made()["items"]
    assert [one["metadata"]["name"] for one in everywhere if one["metadata"]["namespace"] == namespace] == ["shards"]
    operator.delete(f"{jobs}/shards").made()


def test_it_makes_tasks_claims_and_events(operator, namespace):
    within = f"api/v1/namespaces/{namespace}"
    operator.post(f"{within}/configmaps", {"metadata": {"name": "task"}, "data": {"task.json": "{}"}}).made()
    operator.get(f"{within}/configmaps/task").made()
    operator.post(f"{within}/persistentvolumeclaims", claim("work")).made()
    operator.get(f"{within}/persistentvolumeclaims").made()
    operator.patch(f"{within}/persistentvolumeclaims/work", {"metadata": {"labels": {"a": "b"}}}).made()
    operator.get(f"{within}/pods").made()
    event = {
        "metadata": {"name": "told"}, "type": "Normal", "reason": "Accepted", "message": "",
        "involvedObject": {"kind": "DraftTraining", "namespace": namespace, "name": NAME},
    }  # fmt: skip
    operator.post(f"{within}/events", event).made()
    told = operator.request("GET", f"{within}/events", fieldSelector=f"involvedObject.name={NAME}").made()["items"]
    assert [one["metadata"]["name"] for one in told] == ["told"]


def test_it_watches(operator, namespace):
    for path in (
        "apis/draftyard.dev/v1alpha1/drafttrainings",
        "apis/batch/v1/jobs",
        "apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    ):
        url = f"{operator.url}/{path}"
        seen = operator.session.get(url, params={"watch": "true", "timeoutSeconds": "1"}, timeout=30)
        assert seen.status_code == 200


# -- What it never does ---------------------------------------------------------------------------------------------

REFUSED = (
    ("GET", "api/v1/secrets"),
    ("GET", "api/v1/namespaces/{}/secrets/hf"),
    ("POST", "api/v1/namespaces/{}/secrets"),
    ("POST", "api/v1/namespaces/{}/pods"),
    ("POST", "api/v1/namespaces/{}/pods/train/exec"),
    ("GET", "api/v1/namespaces/{}/pods/train/log"),
    ("DELETE", "api/v1/namespaces/{}/pods/train"),
    ("POST", "api/v1/namespaces/{}/serviceaccounts"),
    ("POST", "api/v1/namespaces/{}/serviceaccounts/default/token"),
    ("DELETE", "api/v1/namespaces/{}/configmaps/task"),
    ("GET", "api/v1/namespaces/{}/configmaps"),
    ("DELETE", "api/v1/namespaces/{}/persistentvolumeclaims/work"),
    ("GET", "api/v1/nodes"),
    ("GET", "api/v1/namespaces"),
    ("POST", "apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"),
    ("POST", "apis/rbac.authorization.k8s.io/v1/clusterrolebindings"),
    ("POST", "apis/draftyard.dev/v1alpha1/namespaces/{}/drafttrainings"),
    ("PATCH", "apis/draftyard.dev/v1alpha1/namespaces/{}/drafttrainings/" + NAME),
    ("PUT", "apis/draftyard.dev/v1alpha1/namespaces/{}/drafttrainings/" + NAME),
    ("DELETE", "apis/draftyard.dev/v1alpha1/namespaces/{}/drafttrainings/" + NAME),
    ("DELETE", "apis/draftyard.dev/v1alpha1/namespaces/{}/drafttrainings"),
    ("PATCH", "apis/apiextensions.k8s.io/v1/customresourcedefinitions/drafttrainings.draftyard.dev"),
    ("PUT", "apis/batch/v1/namespaces/{}/jobs/train/status"),
    ("GET", "apis/coordination.k8s.io/v1/namespaces/{}/leases/leader"),
    ("POST", "apis/coordination.k8s.io/v1/namespaces/draftyard-system/leases"),
    ("GET", "apis/draftyard.dev/v1alpha1/namespaces/{}/drafttrainings/" + NAME + "/status"),
    ("GET", "api/v1/namespaces/{}/pods/train"),
    ("GET", "api/v1/namespaces/{}/events/told"),
    ("PATCH", "api/v1/namespaces/{}/events/told"),
    ("PATCH", "apis/kubeflow.org/v1/namespaces/{}/pytorchjobs/train"),
)


@pytest.mark.parametrize(("method", "path"), REFUSED, ids=lambda value: value)
def test_it_is_refused(server, operator, namespace, method, path):
    """Before the server looks whether the object is there: rights come first."""
    server.post(trainings.path(namespace), OFFLINE).made()
    body = {"spec": {"suspend": True}} if method != "GET" else None
    kinds = {"PATCH": {"Content-Type": "application/merge-patch+json"}}
    refused = operator.request(method, path.format(namespace), body, kinds.get(method))
    assert (refused.status, refused.reason) == (403, "Forbidden")
    assert ACCOUNT in refused.message
