"""Trains a run and its baselines, and compares them in one table."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from shapmix.mixing.rule import Rule
from shapmix.process import parallel
from shapmix.process.signals import StopRequest
from shapmix.training import metrics
from shapmix.training.build import load_splits
from shapmix.training.config import changed_on_resume, parse_config
from shapmix.training.options import Baseline, TrainConfig
from shapmix.training.run_folder import check_run_dir, hold_run_dir, of_process_0, write_result
from shapmix.training.trainer import train


def run_with_baselines(config: TrainConfig, request: StopRequest | None = None) -> dict[str, metrics.Accuracy]:
    """Trains the run, then its baselines in subdirectories; prints one table and writes it to `result.json`."""
    with ExitStack() as held:  # locks of the directories
        if config.resume is not None:
            of_process_0(partial(resumed_run_dir, config, held))
        elif config.run_dir is not None:
            check_run_dir(config.run_dir)  # before the data is read; the directory is created before the first step
        splits = load_splits(config)
        result = train(config, splits, held, request)
        run_dir, rows = result.run_dir, dict(result.accuracy)
        for name in config.baselines:
            below = run_dir / name
            resume = below if (below / "config.yaml").exists() else None
            again = replace(baseline_config(config, name), run_dir=below, resume=resume)
            if resume is not None:
                of_process_0(partial(resumed_run_dir, again, held))
            rows |= {f"{name} {checkpoint}": row for checkpoint, row in train(again, splits, held, request).accuracy.items()}
        rows = {(name if " " in name else f"{config.mix} {name}"): row for name, row in rows.items()}
        if parallel.rank() == 0:
            write_result(run_dir, config, rows, splits.list_sha256)
    if parallel.rank() == 0:
        print(f"\nTest accuracy ({splits.store.class_counts(splits.test).sum()} clips); run: {run_dir}")
        print(metrics.table({f"{name}, tau {row.tau:g}" if row.tau is not None else name: row for name, row in rows.items()}))
    return rows


def resumed_run_dir(config: TrainConfig, held: ExitStack) -> Path:
    """The directory of the run to resume, locked until `held` closes.

    Raises:
        InUseError: another process has locked the directory.
        ConfigError: an option that cannot change on resume differs.
    """
    assert config.resume is not None
    hold_run_dir(config.resume, held)
    changed_on_resume(parse_config(["--config", str(config.resume / "config.yaml")]), config)
    return config.resume


def baseline_config(config: TrainConfig, name: Baseline) -> TrainConfig:
    """The configuration of the same run without mixing."""
    return replace(config, mix="none", loss="ce" if name == "plain" else "balanced", rule=Rule(), baselines=())
