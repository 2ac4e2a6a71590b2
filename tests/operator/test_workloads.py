"""Kueue's own words about a wait."""

from __future__ import annotations

import dataclasses

import pytest
from world import CONFIG, NAME, NAMESPACE, World, spec

from draftyard_operator.testing.kinds import JOB, WORKLOAD
from draftyard_operator.workloads import JOB_UID, read_wait

SHORT = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu, 8 more needed"
PREEMPTED = "Preempted to accommodate a workload (UID: 1) due to prioritization in the ClusterQueue"


def condition(kind, status, message="", reason="Pending"):
    return {"type": kind, "status": status, "reason": reason, "message": message}


def workload(*conditions, checks=()):
    return {"status": {"conditions": list(conditions), "admissionChecks": list(checks)}}


def check(name, state, message=""):
    return {"name": name, "state": state, "message": message}


RESERVED = condition("QuotaReserved", "True", "Quota reserved in ClusterQueue gpus", "QuotaReserved")
WORDS = [
    pytest.param([], "", id="no workload yet"),
    pytest.param([{}], "", id="nobody has looked at it yet"),
    pytest.param([workload(condition("QuotaReserved", "False", SHORT))], SHORT, id="no quota"),
    pytest.param(
        [workload(condition("QuotaReserved", "False", SHORT), condition("Evicted", "True", PREEMPTED))], SHORT,
        id="preempted, and waits again",
    ),
    pytest.param(
        [workload(RESERVED, condition("Evicted", "True", PREEMPTED))], PREEMPTED, id="preempted, and its pods end",
    ),
    pytest.param(
        [workload(RESERVED, condition("Evicted", "False", f"Previously: {PREEMPTED}"))], "", id="about to start again",
    ),
    pytest.param(
        [workload(RESERVED, checks=[check("gke", "Pending", "no capacity"), check("budget", "Ready")])],
        "admission checks: gke: no capacity", id="an admission check is pending",
    ),
    pytest.param(
        [workload(RESERVED, checks=[check("gke", "Pending"), check("budget", "Retry", "too dear")])],
        "admission checks: gke; budget: too dear", id="two of them",
    ),
    pytest.param([{}, workload(condition("QuotaReserved", "False", SHORT))], SHORT, id="the one that says something"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "words"), WORDS)
def test_why_a_child_waits(found, words):
    assert read_wait(found) == words


# -- Where they are read ----------------------------------------------------------------------------------------------


def waiting_world(version, **config) -> World:
    """A run whose first child is suspended, on a cluster whose Kueue says why in one version of its API."""
    world = World(spec(scheduling={"queueName": "gpus"}), CONFIG.model_copy(update={"read_workloads": True} | config))
    kind = dataclasses.replace(WORKLOAD, version=version)
    world.fake.define(kind)

    def admit(verb, of, given):
        return given | {"spec": given["spec"] | {"suspend": True}} if (verb, of) == ("create", JOB) else given

    world.fake.api.admission.append(admit)
    world.settle()
    for number, uid in enumerate(("another", world.job(f"{NAME}-prepare-a1")["metadata"]["uid"])):
        metadata = {"name": f"job-{number}", "labels": {JOB_UID: uid}}
        told = workload(condition("QuotaReserved", "False", f"{SHORT} by {number}"))
        world.fake.api.create(kind, NAMESPACE, {"metadata": metadata, "spec": {}} | told)
        world.fake.api.patch(kind, NAMESPACE, metadata["name"], told, "status")
    world.settle()
    return world


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
def test_the_status_has_kueues_words_in_whatever_version_it_serves(version):
    assert waiting_world(version).status.message == f"{SHORT} by 1"


def test_without_the_right_to_read_them_the_queue_is_named():
    assert waiting_world("v1beta2", read_workloads=False).status.message == (
        f"{NAME}-prepare-a1 is suspended by its queue gpus"
    )


def test_without_kueue_the_queue_is_named():
    assert waiting_world("v1").status.message == f"{NAME}-prepare-a1 is suspended by its queue gpus"
