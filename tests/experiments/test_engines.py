"""Cells on SLURM and on Ray: the same folders, resume and table as on this machine."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path

import pytest

from shapmix import experiment
from shapmix.experiments import engines
from shapmix.experiments.plan import Cell, only, read_plan
from shapmix.process.errors import RunError
from shapmix.process.signals import Interruption, StopRequest
from tests.experiments import slurm

SMALL = "{network: {widths: [8]}, num_frames: 8, batch_size: 8, n_max: 8, imbalance: 4, mix: none, epochs: 1}"
PLAN = f"base: {SMALL}\nrows:\n  plain: {{loss: ce}}\n  odd one: {{network: {{backbone: 'nowhere:network'}}}}\n"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which SLURM's commands are found, and in which they leave what they were told."""
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct"):
        (folder / name).write_text(f"#!{sys.executable}\n" + Path(slurm.__file__).read_text())
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(engines, "POLL", 0.05)
    return folder


def test_slurm_trains_each_cell_in_a_job(
    plan: Path, tmp_path: Path, slurm_commands: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    where = ["--on", "slurm", "--cluster", "slurm_partition=gpu", "timeout_min=600"]
    with caplog.at_level(logging.INFO):
        assert experiment.main([str(plan), "--out", str(out), *where]) == 1
    assert [path.stem for path in (out / "cells").iterdir()] == ["all-plain-seed-0"]
    assert "| plain |" in (out / "table.md").read_text()
    script = (slurm_commands / "script").read_text()
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --time=600" in script
    assert "nowhere:network" in (out / "logs" / "all-odd-one-seed-0.txt").read_text()
    assert "all-odd-one-seed-0 failed" in caplog.text
    assert (out / "jobs" / "all-plain-seed-0").read_text() == f"{slurm.NUMBER}_0"
    content = json.loads((out / "cells" / "all-plain-seed-0.json").read_text())
    assert content["epochs"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("slurm_commands")
def test_jobs_outlive_the_command_which_waits_for_them_again(plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells, out, request = only(read_plan(plan).cells, ["plain"]), tmp_path / "out", StopRequest()
    request.signal = signal.SIGINT
    message = f"1 jobs go on; the same command waits for them again, `scancel {slurm.NUMBER}` stops them"
    with pytest.raises(Interruption, match=message):
        engines.train_cells(cells, out, "slurm", engines.EngineOptions(), request)
    with caplog.at_level(logging.INFO):
        assert engines.train_cells(cells, out, "slurm", engines.EngineOptions(), StopRequest()) == []
    assert "0 jobs submitted, 1 are queued or running from before" in caplog.text
    assert [path.stem for path in (out / "cells").iterdir()] == ["all-plain-seed-0"]


def test_a_job_that_slurm_stops_is_queued_again(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    job = engines.CellJob(Cell("all", "plain", 0, {}), tmp_path)
    assert job.checkpoint().function is job


@pytest.mark.slow
def test_ray_trains_each_cell_in_a_task(plan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    where = ["--on", "ray", "--cluster", "address=local", "num_cpus=1"]
    assert experiment.main([str(plan), "--out", str(out), *where]) == 1
    assert [path.stem for path in (out / "cells").iterdir()] == ["all-plain-seed-0"]
    assert "nowhere:network" in (out / "logs" / "all-odd-one-seed-0.txt").read_text()
    assert "all-odd-one-seed-0 failed" in caplog.text


def test_a_cluster_that_is_not_there_is_named(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    assert experiment.main([str(plan), "--out", str(tmp_path / "out"), "--on", "slurm"]) == 2
    assert 'on: slurm: Could not detect "srun"' in capsys.readouterr().err


@pytest.mark.usefixtures("slurm_commands")
def test_a_wrong_option_of_the_cluster_is_named(tmp_path: Path) -> None:
    cells = [Cell("all", "plain", 0, {})]
    for given, message in {
        "timeout": "cluster: 'timeout' is no KEY=VALUE",
        "minutes=3": "on: slurm: .*minutes",
    }.items():
        with pytest.raises(RunError, match=message):
            engines.train_cells(cells, tmp_path, "slurm", engines.EngineOptions(cluster=(given,)), StopRequest())
    with pytest.raises(RunError, match="cluster: 'num_gpus=1' is for --on slurm and --on ray"):
        engines.train_cells(cells, tmp_path, "local", engines.EngineOptions(cluster=("num_gpus=1",)), StopRequest())


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(RunError, match="on: ray needs the package nowhere: pip install nowhere"):
        engines.needed("nowhere", "ray")
