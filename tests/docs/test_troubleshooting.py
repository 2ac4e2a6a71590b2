"""Every reason and every exit code has an entry that says what to do, and nothing else has one."""

from __future__ import annotations

import re

import pytest
from pages import DOCS

from draftyard_api.exit_codes import ExitCode
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, Phase
from draftyard_operator.ledger import COUNTED
from draftyard_operator.status import BLOCKING

PAGE = (DOCS / "troubleshooting.md").read_text()
ENTRIES = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE))
QUIET = PAGE.split("## Words that need nothing done")[1].split("\n## ")[0]
ROWS = {name: (where, what) for name, where, what in re.findall(r"^\| (\w+) \| ([^|]*) \| ([^|]*) \|$", QUIET, re.M)}


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_reason_has_one_entry_and_every_entry_a_reason():
    told = [*ENTRIES, *(name for name in ROWS if name != "reason")]
    assert sorted(told) == sorted(Reason), "docs/troubleshooting.md: a heading `### Reason`, or a row of the last table"


@pytest.mark.parametrize("reason", ENTRIES)
def test_an_entry_says_what_to_do(reason):
    assert "**Do**: " in ENTRIES[reason]


def test_rows_name_conditions():
    for where, _ in [row for name, row in ROWS.items() if name != "reason" and row[0] != "the same"]:
        assert set(where.split(", ")) <= {kind.value for kind in ConditionType}


def test_blocked_has_those_reasons_that_block():
    assert sorted(re.findall(r"^### (\w+)", section("Blocked"), re.MULTILINE)) == sorted(BLOCKING)


def test_attempts_that_count_are_told_as_such():
    """And those only."""
    attempts = section("Ended attempts")
    for reason in re.findall(r"^### (\w+)", attempts, re.MULTILINE):
        assert ("Counts." in ENTRIES[reason]) == (reason in COUNTED), reason


def test_every_exit_code_has_a_row_with_reasons():
    rows = re.findall(r"^\| (\d+) \| (\w+) \| ", section("Exit codes"), re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in ExitCode]


def test_every_phase_is_told():
    rows = re.findall(r"^\| ([A-Z]\w+(?:, \w+)*) \|", PAGE.split("## Blocked")[0], re.MULTILINE)
    assert sorted(name for row in rows for name in row.split(", ")) == sorted(Phase)
