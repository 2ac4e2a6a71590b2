"""What the pages say of the chart is so."""

from __future__ import annotations

import json
import re

import pytest
from charts import CHART, ROOT, VALUES
from rights import CLUSTER, WATCHED, triples

DOCS = ROOT / "docs"
INSTALL = (DOCS / "install.md").read_text()
METRICS = (DOCS / "metrics.md").read_text()
PAGES = ("install.md", "gitops.md", "kueue.md", "metrics.md", "security.md")


def between(name):
    """The lines between two markers."""
    return INSTALL.split(f"<!-- {name}: begin -->\n")[1].split(f"<!-- {name}: end -->")[0].splitlines()


def explained():
    """Every value of values.yaml with the comment above it: what is told of each one by the one who wrote it."""
    path, comment = [], ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if line.lstrip().startswith("# -- "):
            comment = line.lstrip().removeprefix("# -- ")
        elif found := re.match(r" *([A-Za-z]+):", line):
            path = [*path[:depth], found[1]]
            if comment:
                yield ".".join(path), comment
                comment = ""


def value(path):
    found = VALUES
    for name in path.split("."):
        found = found[name]
    return found


def test_every_value_is_in_the_table_with_its_default_and_what_it_does():
    rows = [f"| `{path}` | `{json.dumps(value(path))}` | {comment} |" for path, comment in explained()]
    assert between("values") == ["| value | default | what it does |", "| --- | --- | --- |", *rows]


def leaves(values, at=""):
    for name, inner in values.items():
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, f"{at}{name}.")
        else:
            yield f"{at}{name}"


def test_every_value_is_explained():
    told = [path for path, _ in explained()]
    assert [leaf for leaf in leaves(VALUES) if not any(f"{leaf}.".startswith(f"{path}.") for path in told)] == []


def test_the_rights_are_those_of_the_chart():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in between("rights")[2:]]
    told = {(group.replace("core", ""), resource, verb) for group, resource, verbs, _ in rows for verb in verbs.split()}
    assert told == triples((*WATCHED, *CLUSTER), ("pytorchJobs", "kueue"))
    for group, _, _, why in rows:
        switches = [one.value for one in (*WATCHED, *CLUSTER) if one.group == group.replace("core", "")]
        assert [f"`rbac.{name}`" in why for name in switches if name] == [True for name in switches if name]


def test_every_alert_is_in_the_table(helm):
    (rules,) = (
        one for one in helm.render(values={"metrics": {"rules": {"enabled": True}}}) if one["kind"] == "PrometheusRule"
    )
    names = [rule["alert"] for rule in rules["spec"]["groups"][0]["rules"]]
    assert re.findall(r"^\| (Draftyard\w+) \|", METRICS, re.MULTILINE) == names


@pytest.mark.parametrize("page", PAGES)
def test_every_value_that_a_page_names_is_one(page):
    """Of the chart's blocks; words such as `config.yaml` are files."""
    text = (DOCS / page).read_text()
    named = re.findall(
        r"\b((?:config|crds|rbac|metrics|networkPolicy|admissionPolicy|image)\.[a-zA-Z.]+[a-zA-Z])", text
    )
    for path in set(named) - {"config.yaml", "metrics.md", "metrics.jsonl"}:
        value(path)
