"""`python -m bench.copy_speed`: a process per instruction set and number of threads, its rows, and their table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import copy_speed
from bench.cases import CASES
from shapmix.kernels import cpp

FOUND = cpp.instruction_set()
SETS = FOUND.available if FOUND else ("baseline",)


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_speed, "prepare_cpu", lambda threads: None)  # it would change this process
    monkeypatch.setattr(copy_speed, "cases", lambda: [case for case in CASES if str(case) == "mix_clips"])


@pytest.mark.usefixtures("one_case")
def test_a_process_prints_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    copy_speed.main(["--measure", "--shapes", "nw_ucla", "--budget", "0", "--threads", "1"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["ops"], row["shape"], row["dtype"], row["backend"]) == ("mix_clips", "nw_ucla", "float32", "cpp")
    assert row["copy_share"] > 0


def test_every_set_and_number_of_threads_has_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, tuple[object, ...]]] = []

    def in_process(_module: str, environment: dict[str, str], *options: object) -> list[dict[str, Any]]:
        started.append((environment["SHAPMIX_ISA"], options))
        share = 0.25 * len(started)
        return [{"ops": "mix_clips", "variant": "", "shape": "ntu", "dtype": "float32", "copy_share": share, "speedup": {"p50": 8}}]

    monkeypatch.setattr(copy_speed, "in_process", in_process)
    out = tmp_path / "rows.json"
    copy_speed.main(["--out", str(out), "--isa", SETS[-1], "--threads", "1", "3"])
    assert [(isa, options[-1]) for isa, options in started] == [(SETS[-1], 1), (SETS[-1], 3)]
    content = json.loads(out.read_text())
    assert [(run["isa"], run["threads"]) for run in content["runs"]] == [(SETS[-1], 1), (SETS[-1], 3)]
    title = copy_speed.TITLES[SETS[-1]]
    assert copy_speed.table(content).splitlines() == [
        f"| op, shape | {title}, 1 thread | {title}, 3 threads |",
        "| --- | --- | --- |",
        "| mix_clips, ntu | 25%, 8.0x | 50%, 8.0x |",
    ]


def test_the_cases_are_those_that_a_copy_bounds() -> None:
    names = {str(case) for case in copy_speed.cases()}
    assert {"batch_norm forward", "join_branches", "coalition_inputs S=31 into a buffer"} <= names
    assert not names & {"graph_conv forward", "coalition_inputs S=31"}


@pytest.mark.parametrize(
    ("options", "message"), [([], "--out is required"), (["--measure", "--threads", "0"], "--threads is 0; give at least 1")]
)
def test_bad_options_end_with_a_message(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        copy_speed.main(options)
    assert message in capsys.readouterr().err
