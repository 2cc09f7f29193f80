"""A plugin of pytest for .ci/run: a test that is skipped for any other reason than these has failed."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

EXPECTED = (
    "root writes anywhere",  # CI runs as root.
)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _refuse(report: Report) -> Report:
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(expected in reason for expected in EXPECTED):
            report.outcome = "failed"
            report.longrepr = f"{reason}\nThis skip is not in .ci/unexpected_skips.py: install what the test needs."
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Look at the report of a test."""
    return _refuse((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Look at the report of a module: it may be skipped as a whole."""
    return _refuse((yield))
