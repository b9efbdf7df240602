"""The benchmark of readers runs, on a few clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import sources


def test_the_benchmark_of_readers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("CLIPS", 4), ("FRAMES", 20), ("TABLE_CLIPS", 800), ("TABLE_POSES", 40), ("RECORDING_FRAMES", 80)):
        monkeypatch.setattr(sources, name, value)
    monkeypatch.setattr("sys.argv", ["sources", "--out", str(tmp_path / "out.json")])
    sources.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["table"]["shapmix"]["clips"] == 800
    assert {"kinetics", "arrays", "pku_mmd"} <= set(found)
    assert "x straightforward, people linked" in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_kinetics_is_opened_without_its_clips(tmp_path: Path) -> None:
    """260,000 clips of 500 poses: the poses would take 13 GB."""
    found = sources.table(tmp_path)
    assert found["shapmix"]["clips"] == 260_000
    assert found["shapmix"]["MB after 100 clips"] < 1000
    assert found["shapmix"]["MB kept"] < found["pickle.load"]["MB kept"]
