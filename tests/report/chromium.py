"""Debian's Chromium, without a window: what it says, what it asks for, and whether people can read what it shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ENV_PROGRAM = "DRAFTYARD_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome")
MILLISECONDS = 240_000
"""A library of 5 MB is read on two cores that others use, too."""

MEASURE = (Path(__file__).parent / "measure.js").read_text()


def program() -> str | None:
    """Where Chromium is; None when it is not there."""
    given = os.environ.get(ENV_PROGRAM)
    return given or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A running one."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), timeout=MILLISECONDS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Looked:
    """An open page, and what it did while it was opened."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    """Lines of the console, and errors."""
    requests: list[str] = field(default_factory=list)
    """What it asked for, itself left out."""

    def measure(self, what: str) -> Any:
        """Call a function of `measure.js`."""
        return self.page.evaluate(f"() => {{ {MEASURE}; return {what}(); }}")


def look(context: BrowserContext, file: Path, draws: bool = True) -> Looked:
    """Open a file and wait until its plots are drawn."""
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS)
    looked = Looked(page)
    page.on("console", lambda message: looked.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: looked.complaints.append(str(error)))
    page.on("request", lambda request: looked.requests.append(request.url))
    page.goto(file.as_uri())
    looked.requests.remove(file.as_uri())
    if draws:
        # by an attribute: waiting for a function would evaluate a text, which the page's policy forbids
        page.wait_for_selector("html[data-drawn]", state="attached")
    return looked
