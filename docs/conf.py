"""How `make docs` builds the pages: Sphinx with MyST and furo, without a network, and with every warning an error."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import navigation  # noqa: E402  it lies beside this file

project = "Draftyard"
copyright = "the Draftyard authors"  # noqa: A001  the name that Sphinx asks for
extensions = ["myst_parser"]
exclude_patterns = ["scripts"]
myst_heading_anchors = 4
# one object a line is no JSON document, but it is what people write
suppress_warnings = ["misc.highlighting_failure"]
html_theme = "furo"
html_title = "Draftyard"
html_static_path = ["static"]
html_css_files = ["draftyard.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)\)")
"""Links to files of the repository that are no pages."""


def prepare(_app: Any, name: str, source: list[str]) -> None:
    """The front page gets the navigation; files outside of docs/ become downloads, so that a page stands for itself."""
    source[0] = OUTSIDE.sub(r"{download}`\1 <\2>`", source[0])
    if name == navigation.FRONT:
        source[0] += navigation.toctrees(path.stem for path in DOCS.glob("*.md"))


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("source-read", prepare)
