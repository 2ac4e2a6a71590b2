"""The objects of the chart, without a cluster: each promise of the docs is looked for in what Helm writes."""

from __future__ import annotations

import json
import re

import pytest
import trainings
import yaml
from charts import ACCOUNT, CHART, NAMESPACE, RELEASE, VALUES_FILES, address, one
from rights import CLUSTER, WATCHED, triples

from draftyard_api import __version__
from draftyard_api.names import LABEL_MANAGED
from draftyard_operator.config import OperatorConfig

ALL = ("pytorchJobs", "kueue")
CONFIG_KEYS = {field.alias for field in OperatorConfig.model_fields.values()}


@pytest.fixture(scope="module")
def default(helm):
    return helm.render()


def config(objects):
    return yaml.safe_load(one(objects, "ConfigMap", RELEASE)["data"]["config.yaml"])


@pytest.mark.parametrize("file", VALUES_FILES, ids=lambda file: file.stem)
def test_every_values_file(helm, file):
    """Each makes objects with names of their own and the labels that tools ask for, and none that Argo CD would map."""
    objects = helm.render("--values", str(file))
    assert len({address(found) for found in objects}) == len(objects)
    for found in objects:
        assert found["metadata"].get("annotations", {}).keys() <= {"helm.sh/resource-policy", "example.com/team"}
        if found["kind"] != "CustomResourceDefinition":
            assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "draftyard"
    assert not {"PodDisruptionBudget", "Secret"} & {found["kind"] for found in objects}


def test_the_chart_is_of_the_version_that_it_installs():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


# -- The kind -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_the_kind_is_the_generated_one(helm, keep):
    found = one(helm.render(values={"crds": {"keep": keep}}), "CustomResourceDefinition")
    annotations = found["metadata"].pop("annotations", {})
    assert annotations == ({"helm.sh/resource-policy": "keep"} if keep else {})
    assert found == yaml.safe_load(trainings.DEFINITION.read_text())


def test_the_kind_can_come_from_elsewhere(helm):
    kinds = {found["kind"] for found in helm.render(values={"crds": {"enabled": False}})}
    assert "CustomResourceDefinition" not in kinds


# -- Rights ---------------------------------------------------------------------------------------------------------


def granted(role):
    """Group, resource and verb of every rule; nothing else may be in one."""
    for rule in role["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        yield from (
            (group, resource, verb)
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        )


def bound(objects):
    """Rights of the operator's account: by namespace, and in all of them under the empty name."""
    found = {}
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        ((subject),) = binding["subjects"]
        assert f"system:{subject['kind'].lower()}:{subject['namespace']}:{subject['name']}" == ACCOUNT
        namespace = binding["metadata"].get("namespace", "")
        wanted = ("rbac.authorization.k8s.io/v1", binding["roleRef"]["kind"], namespace, binding["roleRef"]["name"])
        (role,) = (each for each in objects if address(each) == wanted)
        found.setdefault(namespace, set()).update(granted(role))
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, {"": triples((*WATCHED, *CLUSTER))}, id="the whole cluster"),
        pytest.param(
            {"rbac": dict.fromkeys(ALL, False)}, {"": triples((*WATCHED, *CLUSTER), ())}, id="as little as can be"
        ),
        pytest.param(
            {"rbac": dict.fromkeys(ALL, True)}, {"": triples((*WATCHED, *CLUSTER), ALL)}, id="all that there is",
        ),
        pytest.param(
            {"watchNamespaces": ["team-a", "team-b"]},
            {"team-a": triples(WATCHED), "team-b": triples(WATCHED)}, id="two namespaces",
        ),
        pytest.param({"rbac": {"create": False}}, {}, id="rights from elsewhere"),
    ],
)  # fmt: skip
def test_rights_are_the_table(helm, values, expected):
    assert bound(helm.render(values=values)) == expected


def test_what_editors_and_viewers_get(default):
    roles = {found["metadata"]["name"]: found for found in default if found["kind"] == "ClusterRole"}
    edit, view = (roles[f"{NAMESPACE}-{RELEASE}-{name}"] for name in ("edit", "view"))
    writes = ("create", "update", "patch", "delete", "deletecollection")
    assert set(granted(edit)) == {("draftyard.dev", "drafttrainings", verb) for verb in writes}
    assert {verb for _, _, verb in granted(view)} == {"get", "list", "watch"}
    assert not any(verb in writes and resource.endswith("/status") for _, resource, verb in granted(edit))


# -- The operator ---------------------------------------------------------------------------------------------------


def test_the_configuration(default, helm):
    found = config(default)
    assert found.keys() == CONFIG_KEYS
    assert found["trainerImage"] == "draftyard-trainer:0.1.0"
    given = {
        "gpuResource": "", "allowedImages": ["a/b*"], "allowedServiceAccounts": ["trainer"], "resyncSeconds": 60,
        "maxParallelism": 8,
    }  # fmt: skip
    values = {"config": given | {"trainerImage": "a/b:1"}, "watchNamespaces": ["team-a"]}
    told = {"watchNamespaces": ["team-a"], "fsGroup": 10001, "pytorchJobs": True, "readWorkloads": False}
    assert config(helm.render(values=values)) == values["config"] | told
    rights = {"kueue": True, "pytorchJobs": False}
    assert config(helm.render(values={"config": {"fsGroup": None}, "rbac": rights})) == found | {
        "fsGroup": None, "pytorchJobs": False, "readWorkloads": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param({}, "draftyard-operator:0.1.0", id="the chart's version"),
        pytest.param({"repository": "r.example:5000/a/op", "tag": "main"}, "r.example:5000/a/op:main", id="a tag"),
        pytest.param(
            {"tag": "main", "digest": f"sha256:{'0' * 64}"}, f"draftyard-operator@sha256:{'0' * 64}",
            id="a digest wins over a tag",
        ),
    ],
)  # fmt: skip
def test_the_image(helm, image, expected):
    (container,) = one(helm.render(values={"image": image}), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == expected


def test_one_operator_and_never_two(default):
    spec = one(default, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_its_pod(default):
    pod = one(default, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["operator", "--config", "/etc/draftyard/config.yaml"]
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "192Mi"}, "limits": {"memory": "512Mi"}}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": 9090, "health": 8081}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("liveness", "readiness")]
    assert probes == [{"path": "/healthz", "port": "health"}, {"path": "/readyz", "port": "metrics"}]


def test_another_configuration_is_another_pod(default, helm):
    def annotations(values):
        return one(helm.render(values=values), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    same = one(default, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations({"metrics": {"dashboard": {"enabled": True}}}) == same
    assert annotations({"config": {"resyncSeconds": 90}}) != same


# -- Around it ------------------------------------------------------------------------------------------------------


def test_who_is_talked_to(default):
    spec = one(default, "NetworkPolicy")["spec"]
    ports = [{port["port"] for port in rule["ports"]} for rule in spec["egress"]]
    assert ports == [{53}, {443, 6443}, {9400}]
    (pods,) = spec["egress"][2]["to"]
    assert pods["podSelector"]["matchLabels"] == {LABEL_MANAGED: "true"}
    assert spec["ingress"] == [{"ports": [{"port": "metrics"}]}]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_the_account_gives_its_token_to_the_operator_only(default):
    assert one(default, "ServiceAccount")["automountServiceAccountToken"] is False
    assert one(default, "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"] is True


# -- Metrics --------------------------------------------------------------------------------------------------------

METRICS = {
    "draftyard_build_info", "draftyard_reconcile_total", "draftyard_reconcile_duration_seconds_bucket",
    "draftyard_workqueue_depth", "draftyard_workqueue_retries_total", "draftyard_api_requests_total",
    "draftyard_api_request_duration_seconds_bucket", "draftyard_last_resync_timestamp_seconds",
    "draftyard_drafttraining_info", "draftyard_drafttraining_phase", "draftyard_drafttraining_attempts_total",
    "draftyard_drafttraining_finished_total", "draftyard_stage_duration_seconds_bucket", "draftyard_gpu_seconds_total",
}  # fmt: skip
"""Series that the operator tells, as Prometheus stores them."""


@pytest.fixture(scope="module")
def monitored(helm):
    return helm.render("--values", str(CHART / "ci" / "kueue-monitoring-values.yaml"))


@pytest.fixture(scope="module")
def alerts(monitored):
    (group,) = one(monitored, "PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


@pytest.fixture(scope="module")
def dashboard(monitored):
    return json.loads(one(monitored, "ConfigMap", f"{RELEASE}-dashboard")["data"]["draftyard.json"])


def asked(expressions):
    return {name for text in expressions for name in re.findall(r"draftyard_\w+", text)}


def test_alerts(alerts):
    names = ("OperatorDown", "OperatorRestarts", "ResyncStale", "RunBlocked", "QueueDepthHigh", "AttemptBurn")
    assert alerts.keys() == {f"Draftyard{name}" for name in names}
    assert asked(rule["expr"] for rule in alerts.values()) <= METRICS
    for rule in alerts.values():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
    assert "{{ $labels.namespace }}/{{ $labels.name }}" in alerts["DraftyardRunBlocked"]["annotations"]["summary"]


def test_a_resync_is_stale_after_five_of_its_longest_intervals(helm):
    values = {"metrics": {"rules": {"enabled": True}}, "config": {"resyncSeconds": 60}}
    (group,) = one(helm.render(values=values), "PrometheusRule")["spec"]["groups"]
    (rule,) = (each for each in group["rules"] if each["alert"] == "DraftyardResyncStale")
    assert rule["expr"].endswith("> 600")


def test_the_dashboard_shows_every_series_but_one(dashboard):
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert asked(expressions) == METRICS - {"draftyard_build_info"}
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(corners)) == len(corners)


def test_series_keep_the_namespace_of_their_run(monitored):
    monitor = one(monitored, "ServiceMonitor")
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "30s", "honorLabels": True}]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = one(monitored, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_nothing_of_it_is_made_unasked(default):
    kinds = {found["kind"] for found in default}
    assert not kinds & {"ServiceMonitor", "PrometheusRule"}
    assert len([found for found in default if found["kind"] == "ConfigMap"]) == 1
