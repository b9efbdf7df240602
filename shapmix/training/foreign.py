"""A run directory of weights that were trained elsewhere, so that every command of a trained network takes them."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import torch

from shapmix.process.files import write_whole
from shapmix.training.build import load_splits, make_sampler, make_training
from shapmix.training.checkpoint import CheckpointError, save_checkpoint
from shapmix.training.config import save_config
from shapmix.training.options import TrainConfig
from shapmix.training.run_folder import check_run_dir, data_hash, new_run_dir, record_start
from shapmix.training.start import load_network
from shapmix.training.state import snapshot
from shapmix.training.weights import read_weights

log = logging.getLogger("shapmix")


def write_run(config: TrainConfig) -> Path:
    """Writes the run directory of `config.init_from` as of a run before its first step, and returns it.

    Raises:
        CheckpointError: the weights do not fit, or tensors of the network would start anew.
        ConfigError, DataError, RunError: the network cannot be made, the data cannot be read, or the directory is in use.
    """
    assert config.init_from is not None
    cpu = torch.device("cpu")
    if config.run_dir is not None:
        check_run_dir(config.run_dir)  # before the data is read
    weights, splits = read_weights(config.init_from), load_splits(config)
    run = make_training(config, splits, make_sampler(config, splits.store), 1, cpu)
    loaded = load_network(run.network, weights, config, splits.store)
    anew = {name: reason for name, reason in loaded.anew.items() if not name.endswith(".num_batches_tracked")}
    if anew:
        name, reason = next(iter(anew.items()))
        raise CheckpointError(
            f"{weights.path}: '{name}' would be untrained ({reason}); give the data that the weights were trained for, or train "
            "them on with python -m shapmix.train --init-from"
        )
    log.info("%s: %s", weights.path, loaded)
    data = data_hash(splits)
    with ExitStack() as held:
        run_dir = new_run_dir(config, held)
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        save_config(config, run_dir / "config.yaml")
        write_whole(run_dir / "metrics.jsonl", "")  # no epochs
        record_start(run_dir / "environment.jsonl", data, cpu, {}, {"init_from": weights.record})
        save_checkpoint(run_dir / "checkpoints" / "last.pt", snapshot(config, splits, run, data))
    return run_dir
