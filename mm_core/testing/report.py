"""A pytest plugin that writes down how the tests of a plugin ended: ``-p mm_core.testing.report``.

``MM_TEST_REPORT`` names the file. It is what ``mm plugins check`` reads.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

_HOME = "mm_core.testing."


class _Report:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._suites: set[str] = set()
        self._failed: list[str] = []
        self._skipped: dict[str, str] = {}
        self._passed = 0
        self._unread = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._unread = self._unread or report.failed

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            bases = getattr(getattr(item, "cls", None), "__mro__", ())
            self._suites |= {b.__name__ for b in bases if b.__module__.startswith(_HOME)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.append(report.nodeid)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
            self._skipped[report.nodeid] = str(reason).removeprefix("Skipped: ")
        elif report.when == "call":
            self._passed += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unread:  # a file that cannot be read: nobody knows what is in it
            return
        told: dict[str, Any] = {
            "suites": sorted(self._suites),
            "failed": sorted(set(self._failed)),
            "skipped": self._skipped,
            "passed": self._passed,
        }
        self._file.write_text(json.dumps(told), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Write the report where the variable says."""
    file = os.environ.get("MM_TEST_REPORT")
    if file:
        config.pluginmanager.register(_Report(Path(file)), "mm-report")
