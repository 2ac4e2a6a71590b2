"""The same objects without Helm: what kustomize makes is what the chart makes, and an overlay changes it."""

from __future__ import annotations

import json
import os
import sys

import pytest
import trainings
import yaml
from charts import KUSTOMIZE, NAMESPACE, RELEASE, ROOT, address, one

sys.path.insert(0, str(KUSTOMIZE))
import render

MADE_BY_HELM = ("helm.sh/chart", "app.kubernetes.io/managed-by")


@pytest.fixture(scope="module")
def built(plane):
    """What `kubectl kustomize` makes of a folder."""

    def build(folder):
        done = plane.kubectl("kustomize", str(folder))
        assert (done.returncode, done.stderr) == (0, "")
        return list(yaml.safe_load_all(done.stdout))

    return build


def unhashed(objects):
    """The objects by address, the configuration under the name that it has in the chart."""
    text = json.dumps(objects)
    hashed = next(found["metadata"]["name"] for found in objects if found["kind"] == "ConfigMap")
    return {address(found): found for found in json.loads(text.replace(hashed, RELEASE))}


def without_helm(objects):
    """The objects by address, without what only Helm reads."""
    for found in objects:
        for metadata in (found["metadata"], found.get("spec", {}).get("template", {}).get("metadata", {})):
            for name in MADE_BY_HELM:
                metadata.get("labels", {}).pop(name, None)
            for name in ("helm.sh/resource-policy", "draftyard.dev/config-hash"):
                metadata.get("annotations", {}).pop(name, None)
            if metadata.get("annotations") == {}:
                del metadata["annotations"]
    return {address(found): found for found in objects}


def test_it_makes_what_the_chart_makes(helm, built):
    found, expected = unhashed(built(KUSTOMIZE)), without_helm(helm.render())
    namespace = found.pop(("v1", "Namespace", "", NAMESPACE))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    config = ("v1", "ConfigMap", NAMESPACE, RELEASE)
    ours, theirs = (yaml.safe_load(each.pop(config)["data"]["config.yaml"]) for each in (found, expected))
    assert ours == theirs
    assert found == expected


def test_what_is_committed_was_rendered_from_this_chart(helm, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["render.py", str(helm.program)])
    render.main()
    for name in ("operator.yaml", "config.yaml"):
        assert (tmp_path / name).read_text() == (KUSTOMIZE / name).read_text()


def test_the_chart_has_the_generated_kind():
    copy = ROOT / "charts" / "draftyard" / "files" / trainings.DEFINITION.name
    assert copy.read_bytes() == trainings.DEFINITION.read_bytes()


def test_a_server_takes_it(server, plane, built):
    made = server.post("api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    assert made.is_ok or made.reason == "AlreadyExists"
    flags = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    done = plane.kubectl("apply", *flags, "-k", str(KUSTOMIZE))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(built(KUSTOMIZE))


OVERLAY = {
    "images": [{"name": "draftyard-operator", "newName": "registry.example/ml/op", "digest": f"sha256:{'0' * 64}"}],
    "configMapGenerator": [
        {"name": "draftyard", "namespace": NAMESPACE, "behavior": "replace", "files": ["config.yaml"]}
    ],
}


PAGE = (ROOT / "docs" / "install.md").read_text()
PATCH = yaml.safe_load(PAGE.split("```yaml\n")[2].split("```")[0])
"""How the page changes the lists of the policy."""


def overlay(folder, changes):
    """Write an overlay of ours into a folder."""
    base = os.path.relpath(KUSTOMIZE, folder)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(changes | {"resources": [base]}))


def test_the_overlay_of_the_page_changes_the_lists_of_the_policy(built, tmp_path):
    overlay(tmp_path, PATCH)
    policy = one(built(tmp_path), "ValidatingAdmissionPolicy")
    lists = {each["name"]: json.loads(each["expression"]) for each in policy["spec"]["variables"][:2]}
    assert lists == {
        "allowedImages": ["registry.example/ml/draftyard-trainer:0.1.0"], "allowedServiceAccounts": ["trainer"],
    }  # fmt: skip


def test_an_overlay_changes_image_and_configuration(built, tmp_path):
    (tmp_path / "config.yaml").write_text("gpuResource: amd.com/gpu\n")
    overlay(tmp_path, OVERLAY)
    before, after = built(KUSTOMIZE), built(tmp_path)
    assert one(after, "ConfigMap")["data"] == {"config.yaml": "gpuResource: amd.com/gpu\n"}
    old, new = (one(objects, "Deployment")["spec"]["template"]["spec"] for objects in (before, after))
    assert new["containers"][0]["image"] == f"registry.example/ml/op@sha256:{'0' * 64}"
    name = one(after, "ConfigMap")["metadata"]["name"]
    assert name != old["volumes"][0]["configMap"]["name"]
    assert new["volumes"][0]["configMap"]["name"] == name
