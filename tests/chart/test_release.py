"""A release from its first day to its last, by Helm, on a real API server: training survives all of it."""

from __future__ import annotations

import shutil

import pytest
import trainings
import yaml
from charts import CHART, NAMESPACE, RELEASE, Helm, child, claim, installed, one
from rule_cases import OFFLINE

NAME = OFFLINE["metadata"]["name"]
KIND = f"{trainings.DEFINITIONS}/{trainings.NAME}"
BESIDE = f"namespaces/{NAMESPACE}"
DEPLOYMENT = f"apis/apps/v1/{BESIDE}/deployments/{RELEASE}"
CONFIG = f"api/v1/{BESIDE}/configmaps/{RELEASE}"
ROLE = f"apis/rbac.authorization.k8s.io/v1/clusterroles/{NAMESPACE}-{RELEASE}"
POLICY = f"apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{NAMESPACE}-{RELEASE}"
OF_THE_RELEASE = (DEPLOYMENT, CONFIG, ROLE, POLICY)


@pytest.fixture
def release(plane, server):
    """A release with default values, and the kind served."""
    with installed(plane, {}) as helm:
        trainings.eventually(lambda: server.get(trainings.path("default")).is_ok)
        yield helm


@pytest.fixture
def run(server, release, namespace):
    """A run that has a Job and a claim, each as it is stored."""
    owner = server.post(trainings.path(namespace), OFFLINE).made()
    jobs = f"apis/batch/v1/namespaces/{namespace}/jobs"
    server.post(jobs, child(owner, f"{NAME}-train-a1")).made()
    claims = f"api/v1/namespaces/{namespace}/persistentvolumeclaims"
    server.post(claims, claim(f"{NAME}-workspace")).made()
    paths = (trainings.path(namespace, NAME), f"{jobs}/{NAME}-train-a1", f"{claims}/{NAME}-workspace")
    return {path: server.get(path).made() for path in paths}


def now(server, run):
    return {path: server.get(path).made() for path in run}


def test_an_install_makes_everything(server, release):
    for path in OF_THE_RELEASE:
        assert server.get(path).is_ok
    listed = release("list", "--output", "yaml").stdout
    assert [(one["name"], one["status"]) for one in yaml.safe_load(listed)] == [(RELEASE, "deployed")]


def test_an_upgrade_changes_the_operator_and_touches_no_run(server, release, run):
    old = server.get(DEPLOYMENT).made()
    values = {"config": {"resyncSeconds": 90}, "rbac": {"pytorchJobs": False}}
    done = release("upgrade", RELEASE, str(CHART), values=values)
    assert done.returncode == 0, done.stderr
    assert "resyncSeconds: 90" in server.get(CONFIG).made()["data"]["config.yaml"]
    assert not any("kubeflow.org" in rule["apiGroups"] for rule in server.get(ROLE).made()["rules"])
    new = server.get(DEPLOYMENT).made()
    assert new["metadata"]["generation"] == old["metadata"]["generation"] + 1
    assert new["spec"]["template"]["metadata"]["annotations"] != old["spec"]["template"]["metadata"]["annotations"]
    assert now(server, run) == run


def test_a_rollback_brings_the_old_values_back(server, release):
    before = server.get(CONFIG).made()["data"]
    assert release("upgrade", RELEASE, str(CHART), values={"config": {"resyncSeconds": 90}}).returncode == 0
    assert server.get(CONFIG).made()["data"] != before
    done = release("rollback", RELEASE, "1")
    assert done.returncode == 0, done.stderr
    assert server.get(CONFIG).made()["data"] == before


def test_an_upgrade_brings_a_newer_kind(server, release, run, tmp_path):
    """Helm leaves what is in a chart's crds/ as it was installed first; ours is among the templates."""
    newer = tmp_path / "draftyard"
    shutil.copytree(CHART, newer)
    file = newer / "files" / trainings.DEFINITION.name
    definition = yaml.safe_load(file.read_text())
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["newField"] = {"type": "string"}
    file.write_text("# Generated\n" + yaml.safe_dump(definition, sort_keys=False))
    done = release("upgrade", RELEASE, str(newer))
    assert done.returncode == 0, done.stderr
    (stored,) = server.get(KIND).made()["spec"]["versions"]
    assert "newField" in stored["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert now(server, run) == run


def test_an_uninstall_keeps_the_kind_and_every_run(server, release, run):
    done = release("uninstall", RELEASE)
    assert done.returncode == 0, done.stderr
    assert "[CustomResourceDefinition] drafttrainings.draftyard.dev" in done.stdout + done.stderr
    assert [server.get(path).status for path in OF_THE_RELEASE] == [404] * len(OF_THE_RELEASE)
    assert server.get(KIND).is_ok
    assert now(server, run) == run


def test_an_install_after_an_uninstall_takes_the_runs_over(server, plane, release, run):
    assert release("uninstall", RELEASE).returncode == 0
    with installed(plane, {}):
        assert now(server, run) == run
        assert server.get(DEPLOYMENT).is_ok


def test_a_second_release_beside_the_first(server, release, namespace):
    values = {"crds": {"enabled": False}, "watchNamespaces": [namespace]}
    other = ["--namespace", namespace]
    helm = Helm(release.home, release.kubeconfig)
    objects = helm.render(*other, values=values)
    assert one(objects, "ValidatingAdmissionPolicy")["metadata"]["name"] == f"{NAMESPACE}-{RELEASE}"
    done = helm("install", "second", str(CHART), values=values)
    assert done.returncode == 0, done.stderr
    assert server.get(f"apis/apps/v1/{BESIDE}/deployments/second").is_ok
    assert helm("uninstall", "second").returncode == 0
    assert server.get(DEPLOYMENT).is_ok


def test_who_asks_for_it_loses_the_kind_with_the_release(server, release, run):
    """`crds.keep: false` does what it says."""
    assert release("upgrade", RELEASE, str(CHART), values={"crds": {"keep": False}}).returncode == 0
    assert release("uninstall", RELEASE).returncode == 0
    trainings.eventually(lambda: server.get(KIND).status == 404)
    assert server.get(next(iter(run))).status == 404
