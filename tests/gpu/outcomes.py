"""A pytest plugin that writes one JSON line per finished test, so that an interrupted run keeps its outcomes.

`pytest -p tests.gpu.outcomes --outcomes FILE`. Test files with a missing package are distinguished from failing ones.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.proofs import Proof, proof_of

LACKS = re.compile(r"ModuleNotFoundError: No module named '(?!shapmix|bench|tests)")
REASON = 600  # characters kept of a failure report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True, help="file to append the lines to")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(config.getoption("--outcomes")))


class Outcomes:
    """Writes `{"test": id, "ops": [...], "backend": name}` for each test that will run, and the same with its outcome as it ends.

    outcome: passed, failed (with the `reason`), skipped, or missing: the test or its file needs a package that is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.proofs: dict[str, Proof] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.proofs = {item.nodeid: proof_of(item) for item in session.items}
        for test in self.proofs:
            self._write(test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            lacks = report.when == "setup" and report.failed and LACKS.search(report.longreprtext)
            self._write(report.nodeid, "missing" if lacks else report.outcome, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "failed":
            lacks = LACKS.search(report.longreprtext)
            self._write(report.nodeid, "missing" if lacks else "failed", report.longreprtext)
        elif report.outcome == "skipped":
            lacks = re.search("it needs .* which is not installed", str(report.longrepr))
            self._write(report.nodeid, "missing" if lacks else "skipped")

    def _write(self, test: str, outcome: str | None = None, report: str = "") -> None:
        line = {"test": test, **self.proofs.get(test, Proof())._asdict()}
        if outcome is not None:
            line["outcome"] = outcome
        if outcome == "failed":
            errors = [text[2:].strip() for text in report.splitlines() if text.startswith("E ")]
            line["reason"] = " | ".join(errors)[:REASON] or report.strip()[-REASON:]
        with self.path.open("a", encoding="utf-8") as lines:
            print(json.dumps(line), file=lines)
