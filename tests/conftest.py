"""What all tests share: where a skipped test is a failure."""

from __future__ import annotations

import os

import pytest

NO_SKIPS = "DRAFTYARD_NO_SKIPS"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With DRAFTYARD_NO_SKIPS=1 a skipped test fails the session: there, everything must run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get(NO_SKIPS) != "1":
        return
    skipped = reporter.stats.get("skipped", [])
    for report in skipped:
        reporter.write_line(f"skipped, and must not be: {report.nodeid}: {report.longrepr}", red=True)
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
