"""What the chart takes, and how it says no."""

from __future__ import annotations

import json

import pytest
from charts import CHART, RELEASE, VALUES, VALUES_FILES

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_lint(helm):
    for file in VALUES_FILES:
        done = helm("lint", "--strict", str(CHART), "--values", str(file))
        assert done.returncode == 0, done.stdout + done.stderr


def told(schema, at=()):
    """Every value that the schema tells of, with those above it."""
    for name, inner in schema.get("properties", {}).items():
        yield (*at, name)
        yield from told(inner, (*at, name))


def test_every_value_of_the_schema_is_in_the_file_that_people_read():
    """The other way round, lint would complain: no value is taken that the schema does not know."""

    def is_written(path):
        found = VALUES
        for name in path:
            if name not in found:
                return False
            found = found[name]
        return True

    assert [path for path in told(SCHEMA) if not is_written(path)] == [("global",)]


@pytest.mark.parametrize(
    ("values", "place", "words"),
    [
        pytest.param({"replicas": 2}, "", "additional properties 'replicas' not allowed", id="an unknown value"),
        pytest.param({"config": {"gpu": "x"}}, "/config", "'gpu' not allowed", id="an unknown value further down"),
        pytest.param({"image": {"digest": "sha256:00"}}, "/image/digest", "does not match pattern", id="half a digest"),
        pytest.param({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'", id="an unknown word"),
        pytest.param({"watchNamespaces": "team-a"}, "/watchNamespaces", "got string, want array", id="a text for a list"),
        pytest.param({"watchNamespaces": ["Team_A"]}, "/watchNamespaces/0", "does not match pattern", id="no namespace"),
        pytest.param({"config": {"resyncSeconds": 1}}, "/config/resyncSeconds", "minimum: got 1, want 5", id="too small"),
        pytest.param({"config": {"maxParallelism": "9"}}, "/config/maxParallelism", "got string, want integer", id="a number in quotes"),
        pytest.param({"config": {"allowedImages": ["a b"]}}, "/config/allowedImages/0", "does not match pattern", id="no image"),
        pytest.param({"config": {"allowedImages": ["x[ab]"]}}, "/config/allowedImages/0", "does not match pattern", id="another pattern than a star"),
        pytest.param({"config": {"fsGroup": 0}}, "/config/fsGroup", "minimum: got 0, want 1", id="the group of root"),
        pytest.param({"admissionPolicy": {"actions": ["Deny", "Warn"]}}, "/admissionPolicy/actions", "'not' failed", id="two answers that exclude each other"),
        pytest.param({"admissionPolicy": {"actions": []}}, "/admissionPolicy/actions", "minItems: got 0, want 1", id="no answer"),
        pytest.param({"networkPolicy": {"apiServerPorts": [0]}}, "/networkPolicy/apiServerPorts/0", "got 0, want 1", id="no port"),
        pytest.param({"metrics": {"serviceMonitor": {"interval": "often"}}}, "/metrics/serviceMonitor/interval", "does not match pattern", id="no duration"),
        pytest.param({"crds": {"keep": "yes"}}, "/crds/keep", "got string, want boolean", id="a word for a truth"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(helm, values, place, words):
    done = helm("template", RELEASE, str(CHART), values=values)
    assert done.returncode == 1
    assert f"at '{place}'" in done.stderr
    assert words in done.stderr


def test_an_older_kubernetes_is_refused(helm):
    done = helm("template", RELEASE, str(CHART), "--kube-version", "1.30.9")
    assert done.returncode == 1
    assert "chart requires kubeVersion: >=1.31.0-0 which is incompatible with Kubernetes v1.30.9" in done.stderr
    assert helm("template", RELEASE, str(CHART), "--kube-version", "1.31.0").returncode == 0
