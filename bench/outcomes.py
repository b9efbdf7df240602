"""A pytest plugin: a line of JSON a test as it ends, so that a run that is cut short still tells what it found.

`pytest -p bench.outcomes --outcomes FILE`. A test file that lacks a package is told apart from one that fails.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True, help="file that the lines are appended to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


class Outcomes:
    """Writes `{"test": id, "outcome": passed, failed, skipped or missing}`; missing: its file needs a package not installed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "failed":
            lacks = re.search(r"ModuleNotFoundError: No module named '(?!shapmix|bench)", report.longreprtext)
            self._write(report.nodeid, "missing" if lacks else "failed")
        elif report.outcome == "skipped":
            self._write(report.nodeid, "skipped")

    def _write(self, test: str, outcome: str) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            print(json.dumps({"test": test, "outcome": outcome}), file=lines)
