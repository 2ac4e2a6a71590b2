"""The site builds without a warning, and asks nobody else for anything."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pages import DOCS, PAGES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", DOCS, folder / "html"]
    done = subprocess.run([*command, "-d", folder / "trees"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_built_and_in_the_navigation(site):
    front = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / f"{page.stem}.html").is_file()
        assert page.stem == "index" or f'href="{page.stem}.html"' in front


def test_nothing_is_fetched_from_elsewhere(site):
    """Neither scripts, nor styles, nor fonts, nor pictures; links that a person follows are no matter."""
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = file.read_text()
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="((?:https?:)?//[^"]+)"', text)
        fetched += re.findall(r"url\([\"']?((?:https?:)?//[^)]+)\)|@import\s+[\"'](https?:[^\"']+)", text)
        assert fetched == [], file.name


def test_pictures_and_files_are_part_of_the_site(site):
    assert 'src="_images/one-step.svg"' in (site / "concepts.html").read_text()
    assert "llama-3.1-8b-online.yaml" in (site / "targets.html").read_text()
    assert list(site.glob("_downloads/*/llama-3.1-8b-online.yaml"))
