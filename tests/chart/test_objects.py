"""Every object of the chart, judged by a real API server."""

from __future__ import annotations

import copy
import json

import pytest
from charts import NAMESPACE, VALUES_FILES, address, one


@pytest.fixture(scope="module")
def namespaces(server):
    """Those that the values files name. They may be there already."""
    for name in (NAMESPACE, "team-a", "team-b"):
        made = server.post("api/v1/namespaces", {"metadata": {"name": name}})
        assert made.is_ok or made.reason == "AlreadyExists"


@pytest.mark.parametrize("file", VALUES_FILES, ids=lambda file: file.stem)
def test_every_values_file_makes_objects_that_are_taken(helm, plane, others, namespaces, file):
    """By strict validation, so that a misspelled field is an error too."""
    objects = helm.render("--values", str(file))
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    done = plane.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len({address(found) for found in objects})
    assert all(line.endswith(" serverside-applied (server dry run)") for line in done.stdout.splitlines())


# -- Pod Security ---------------------------------------------------------------------------------------------------


@pytest.fixture
def restricted(server, namespace):
    """A namespace that takes no pod but those of Pod Security's strictest level; it has the operator's account."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    server.patch(f"api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}}).made()
    account = {"metadata": {"name": "draftyard"}}
    server.post(f"api/v1/namespaces/{namespace}/serviceaccounts", account).made()
    return f"api/v1/namespaces/{namespace}/pods"


def pod_of(objects):
    template = copy.deepcopy(one(objects, "Deployment")["spec"]["template"])
    return {"metadata": template["metadata"] | {"name": "operator"}, "spec": template["spec"]}


def test_the_operator_passes_pod_security_restricted(helm, server, restricted):
    server.post(restricted, pod_of(helm.render()), dryRun="All").made()


@pytest.mark.parametrize(
    ("block", "field", "word"),
    [
        ("pod", "runAsNonRoot", "runAsNonRoot != true"),
        ("pod", "seccompProfile", "seccompProfile"),
        ("container", "allowPrivilegeEscalation", "allowPrivilegeEscalation != false"),
        ("container", "capabilities", "unrestricted capabilities"),
    ],
)
def test_none_of_it_is_said_in_vain(helm, server, restricted, block, field, word):
    """Without any one of these fields the same pod is refused."""
    pod = pod_of(helm.render())
    holder = pod["spec"] if block == "pod" else pod["spec"]["containers"][0]
    del holder["securityContext"][field]
    refused = server.post(restricted, pod, dryRun="All")
    assert refused.status == 403
    assert word in refused.message
