"""Every flag of the other trainers is told, every flag that is told is one, and where it went is a place."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pages
import pytest
from pages import DOCS

SOURCES = {
    "from-specforge.md": ("specforge-scripts.txt", "specforge-0.2.0.txt"),
    "from-speculators.md": ("speculators-0.9.0.txt",),
}
BY_ITSELF = ("by itself", "not ", "of other algorithms")


def flags(page):
    return [flag for name in SOURCES[page] for flag in (DOCS / "scripts" / name).read_text().splitlines()]


def rows(page):
    """Patterns of each row with where they went."""
    found = []
    for left, right in re.findall(r"^\| (`.*?`) \| (.*) \|$", (DOCS / page).read_text(), re.MULTILINE):
        found.append((re.findall(r"`([^`]+)`", left), right))
    return found


@pytest.mark.parametrize("page", SOURCES)
def test_every_flag_has_one_row(page):
    patterns = [pattern for left, _ in rows(page) for pattern in left]
    told = {flag: [one for one in patterns if fnmatchcase(flag, one)] for flag in flags(page)}
    assert {flag: found for flag, found in told.items() if len(found) != 1} == {}
    unknown = [pattern for pattern in patterns if not any(fnmatchcase(flag, pattern) for flag in flags(page))]
    assert unknown == []


@pytest.mark.parametrize("page", SOURCES)
def test_a_flag_went_to_a_field_or_to_a_reason(page):
    for left, right in rows(page):
        paths = re.findall(r"`([a-z]\w*(?:\.\w+)*)`", right)
        known = [path for path in paths if pages.node(f"spec.{path}") is not None]
        is_command = "`draftyard " in right
        is_variable = re.search(r"`[A-Z_]+`", right)
        assert known or is_command or is_variable or right.startswith(BY_ITSELF), left
