"""Real runs to report on, and a real browser to look with."""

from __future__ import annotations

from collections.abc import Iterator

import chromium
import pytest
from playwright.sync_api import Browser
from report_runs import build_runs
from workshops import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return build_runs(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium.program() is None:
        pytest.skip("Chromium is not there: `make browser` installs it")
    with chromium.started() as running:
        yield running
