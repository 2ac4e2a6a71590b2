"""Every rule, by the tables that an API server is judged by too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rule_cases import CASES, Case, errors_of
from update_cases import UPDATES

from draftyard_api import document, frozen, rules
from draftyard_api.rule import violations

Json = Any


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python(case):
    assert sorted(errors_of(case.document)) == sorted(case.refused)


def with_defaults(case: Case) -> Json:
    """A document as a rule sees it: the schema is met, and every default is there."""
    training = document.DraftTraining.model_validate_json(json.dumps(case.document))
    return training.model_dump(mode="json", by_alias=True, exclude_none=True)


def spec_of(made: Json) -> Json:
    return document.check(made, local=False).spec.model_dump(mode="json", by_alias=True, exclude_none=True)


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.name)
def test_python_update(case):
    specs = (spec_of(made) for made in (case.old, case.new))
    assert sorted(frozen.check_update(*specs, is_frozen=case.is_frozen)) == sorted(case.words)


def test_every_rule_has_a_case_that_breaks_it():
    broken = {found.rule.text for case in CASES for found in violations(rules.RULES, with_defaults(case))}
    assert {rule.text for rule in rules.RULES} - broken == set()


def test_rules_say_what_was_given_and_what_is_accepted():
    assert [rule.text for rule in rules.RULES if "given" not in rule.text or "; accepted: " not in rule.text] == []


def test_rules_know_what_they_read():
    found = {(rule.at, rule.field): rule.reads for rule in rules.RULES}
    assert found["spec", "train.rowTokens"] == {"train.rowTokens", "data.maxLength"}
    assert found["spec.target", "model"] == {"model"}
    assert found["spec.tracking", "wandb"] == {"reportTo", "wandb"}
