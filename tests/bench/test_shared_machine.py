"""The benchmark of a step beside other work."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from bench import shared_machine
from bench.shared_machine import CONDITIONS, DEFAULT, ONE, SETTINGS

SMALL = ["--n-max", "8", "--imbalance", "2", "--num-frames", "8", "--network.widths", "8", "--batch-size", "8"]


def test_a_process_takes_a_step_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        shared_machine.serve(SMALL, 1, io.StringIO("\n\n"))
    finally:
        torch.set_num_threads(before)
    ready, *times = capsys.readouterr().out.split()
    assert ready == "ready"
    assert len(times) == 2
    assert all(float(time) > 0 for time in times)


def test_ratios_are_within_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(round_: int) -> dict[str, dict[str, dict[str, float]]]:
        times = {name: {"ms": 100.0 * round_, "runnable": 3} for name in SETTINGS} | {ONE: {"ms": 50.0 * round_, "runnable": 0}}
        return dict.fromkeys(CONDITIONS, times)

    monkeypatch.setattr(shared_machine, "measure", lambda options, limit: [of(1), of(2), of(5)])
    shared_machine.main(["--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rounds"] == 3
    for condition in CONDITIONS:
        values = found["conditions"][condition]
        assert values["runnable"] == 3
        assert values[DEFAULT]["ms"] == {"median": 200.0, "lowest": 100.0, "highest": 500.0}
        assert values[ONE]["times the default"] == {"median": 0.5, "lowest": 0.5, "highest": 0.5}


def test_processes_take_turns_beside_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_machine, "SETTINGS", {DEFAULT: {}})
    monkeypatch.setattr(shared_machine, "FEWEST", 1)
    (found,) = shared_machine.measure(SMALL, 0.0)
    assert list(found) == list(CONDITIONS)
    assert all(found[condition][DEFAULT]["ms"] > 0 for condition in CONDITIONS)
