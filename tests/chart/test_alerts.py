"""Each alert fires on what it is for and on nothing near it: judged by promtool, over time that is made up."""

from __future__ import annotations

import json
import re
import subprocess

import planes
import pytest
import yaml
from charts import CHART, NAMESPACE, one
from programs import PROMTOOL

from draftyard_api.reasons import Reason
from draftyard_api.status import Phase

PHASE = 'draftyard_drafttraining_phase{namespace="ml", name="r1", phase="%s"}'
ATTEMPTS = 'draftyard_drafttraining_attempts_total{namespace="ml", stage="train", reason="%s"}'
RESTARTS = 'kube_pod_container_status_restarts_total{namespace="%s", container="%s", pod="p"}'
UP = ('draftyard_build_info{version="0.1.0"}', "1x180")
LOOK = "draftyard_last_resync_timestamp_seconds"
RUN = {"namespace": "ml", "name": "r1", "phase": "Blocked"}
STAGE = {"namespace": "ml", "stage": "train"}


@pytest.fixture(scope="module")
def rules(helm, tmp_path_factory):
    """The rules of the chart, as a file that Prometheus reads."""
    planes.found(PROMTOOL)
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(
        yaml.safe_dump(one(helm.render(values={"metrics": {"rules": {"enabled": True}}}), "PrometheusRule")["spec"])
    )
    return file


def promtool(*args):
    return subprocess.run([PROMTOOL["promtool"], *args], capture_output=True, text=True, check=False)


def holds(rules, folder, series, expected):
    """Have promtool compare what is expected of some series with what the rules make of them."""
    given = [{"series": name, "values": values} for name, values in series]
    test = {"interval": "1m", "input_series": given} | expected
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_the_rules(rules):
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 6 rules found" in done.stdout


def test_prometheus_reads_the_dashboard(rules):
    board = json.loads((CHART / "files" / "dashboard.json").read_text())
    for expression in [target["expr"] for panel in board["panels"] for target in panel["targets"]]:
        done = promtool("--experimental", "promql", "format", expression)
        assert done.returncode == 0, done.stderr
    assert promtool("--experimental", "promql", "format", "sum by (rate(x[5m])").returncode != 0


def test_the_alerts_know_the_words_of_the_status(rules):
    text = rules.read_text()
    (phases, reasons) = (re.search(rf'{name}=~?\s*"([^"]+)"', text)[1].split("|") for name in ("phase", "reason"))
    assert set(phases) <= set(Phase)
    assert set(reasons) <= set(Reason)


CASES = (
    pytest.param("OperatorDown", [], 4, None, id="no operator for four minutes"),
    pytest.param("OperatorDown", [], 6, {}, id="no operator for six minutes"),
    pytest.param("OperatorDown", [UP], 60, None, id="an operator"),
    pytest.param("OperatorRestarts", [(RESTARTS % (NAMESPACE, "operator"), "0x20 1x99")], 60, None, id="one restart"),
    pytest.param(
        "OperatorRestarts", [(RESTARTS % (NAMESPACE, "operator"), "0+1x20 20x99")], 60,
        {"namespace": NAMESPACE, "container": "operator", "pod": "p"}, id="twenty restarts",
    ),
    pytest.param("OperatorRestarts", [(RESTARTS % ("ml", "operator"), "0+1x99")], 60, None, id="restarts elsewhere"),
    pytest.param("ResyncStale", [(LOOK, "0+60x99")], 60, None, id="a look a minute"),
    pytest.param("ResyncStale", [(LOOK, "0x99")], 12, None, id="none for 12 minutes"),
    pytest.param("ResyncStale", [(LOOK, "0x99")], 17, {}, id="none for 17 minutes"),
    pytest.param("RunBlocked", [(PHASE % "Blocked", "1x99")], 8, None, id="blocked for 8 minutes"),
    pytest.param("RunBlocked", [(PHASE % "Blocked", "1x99")], 12, RUN, id="blocked for 12 minutes"),
    pytest.param(
        "RunBlocked", [(PHASE % "Blocked", "0x99"), (PHASE % "Queued", "1x99")], 60, None, id="queued for an hour"
    ),
    pytest.param("QueueDepthHigh", [("draftyard_workqueue_depth", "100x99")], 60, None, id="100 that wait"),
    pytest.param("QueueDepthHigh", [("draftyard_workqueue_depth", "101x99")], 12, {}, id="101 that wait"),
    pytest.param("AttemptBurn", [(ATTEMPTS % "OutOfMemory", "0+1x99")], 60, STAGE, id="a failure a minute"),
    pytest.param("AttemptBurn", [(ATTEMPTS % "OutOfMemory", "0x30 3x99")], 60, None, id="three failures"),
    pytest.param("AttemptBurn", [(ATTEMPTS % "Disrupted", "0+1x99")], 60, None, id="disruptions, which nobody counts"),
)  # fmt: skip


@pytest.mark.parametrize(("alert", "series", "minutes", "labels"), CASES)
def test_an_alert(rules, tmp_path, alert, series, minutes, labels):
    """Firing with these labels, or with None not at all."""
    severities = {rule["alert"]: rule["labels"] for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]}
    name = f"Draftyard{alert}"
    fired = {"alertname": name, "alertstate": "firing"} | severities[name] | (labels or {})
    text = ", ".join(f'{key}="{value}"' for key, value in fired.items())
    expected = [] if labels is None else [{"labels": f"ALERTS{{{text}}}", "value": 1}]
    query = {"expr": f'ALERTS{{alertname="{name}", alertstate="firing"}}', "eval_time": f"{minutes}m"}
    holds(rules, tmp_path, series, {"promql_expr_test": [query | {"exp_samples": expected}]})


def test_a_message_names_the_run(rules, tmp_path):
    said = {
        "summary": "DraftTraining ml/r1 waits for a person.",
        "description": "kubectl -n ml get dt r1 says why; it goes on by itself once that is gone.",
    }
    alert = {"exp_labels": RUN | {"severity": "warning"}, "exp_annotations": said}
    told = {"eval_time": "15m", "alertname": "DraftyardRunBlocked", "exp_alerts": [alert]}
    holds(rules, tmp_path, [(PHASE % "Blocked", "1x20")], {"alert_rule_test": [told]})


def test_every_alert_has_a_case_that_fires_and_one_that_does_not(rules):
    names = {
        rule["alert"].removeprefix("Draftyard") for rule in yaml.safe_load(rules.read_text())["groups"][0]["rules"]
    }
    for fires in (True, False):
        assert {case.values[0] for case in CASES if (case.values[3] is not None) is fires} == names
