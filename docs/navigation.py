"""In which order the pages are shown: sections, and the pages of each by the names of their files.

A page that no section names is shown too, under the last heading. A name without a page is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Start", ("first-run", "concepts", "choosing", "sizing", "targets")),
    ("Train", ("data", "storage", "how-it-works", "drafts", "evaluation", "tracking", "report")),
    ("Run on a cluster", ("install", "kueue", "gitops", "security", "reliability", "metrics", "troubleshooting")),
    ("Come from elsewhere", ("from-specforge", "from-speculators")),
    ("Look up", ("reference", "performance", "quality", "real-node", "development")),
)
REST = "More"
FRONT = "index"


def sections(pages: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The headings with the pages that there are; pages without a place come last."""
    left = sorted(set(pages) - {FRONT})
    found = [(title, [name for name in names if name in left]) for title, names in SECTIONS]
    placed = {name for _, names in found for name in names}
    found.append((REST, [name for name in left if name not in placed]))
    return [(title, names) for title, names in found if names]


def toctrees(pages: Iterable[str]) -> str:
    """The same for Sphinx, as text of the front page."""
    blocks = []
    for title, names in sections(pages):
        blocks.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```"]))
    return "\n\n" + "\n\n".join(blocks) + "\n"
