"""Write what pages take from the code: `make docs-reference`.

    python docs/scripts/write.py            # rewrite
    python docs/scripts/write.py --check    # only say which pages are out of date

A page has places such as `<!-- sizes: begin -->` and `<!-- sizes: end -->`; what lies between is written here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import fields
import numbers_told
import series

DOCS = Path(__file__).parents[1]

PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "reference.md": {"spec": fields.spec, "status": fields.status},
    "sizing.md": {"targets": numbers_told.targets, "drafts": numbers_told.drafts, "hours": numbers_told.hours},
    "choosing.md": {"modes": numbers_told.modes},
    "metrics.md": {"operator": series.operator, "trainer": series.trainer},
}
"""Pages, their places, and who writes each."""


def main() -> int:
    """Rewrite, or compare. Returns 1 where a page was out of date and was only to be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is out of date")
    is_check = parser.parse_args().check
    stale = False
    for name, parts in PARTS.items():
        page = DOCS / name
        before = page.read_text()
        after = filled(name, before, parts)
        if before == after:
            continue
        stale = True
        if is_check:
            print(f"docs/{name} is out of date; make docs-reference writes it", file=sys.stderr)
        else:
            page.write_text(after)
    return int(is_check and stale)


def filled(name: str, text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The page with all its places written. Raises ValueError for a place that it lacks."""
    for place, made in parts.items():
        marks = f"(<!-- {place}: begin -->\n).*(<!-- {place}: end -->)"
        if not re.search(marks, text, re.DOTALL):
            raise ValueError(
                f"docs/{name}: it has no place <!-- {place}: begin -->; accepted: one for {', '.join(parts)}"
            )
        content = made()
        text = re.sub(marks, lambda found, content=content: f"{found[1]}{content}{found[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    sys.exit(main())
