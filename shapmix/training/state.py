"""The mutable state of a run, its checkpoint format, and seeding."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import shapmix
from shapmix.data.clips import Splits
from shapmix.mixing.mixer import ShapMix
from shapmix.skeleton.layout import layout_toml
from shapmix.training.checkpoint import CheckpointError, check_fields, load_weights, not_finite
from shapmix.training.options import TrainConfig


@dataclass
class Progress:
    """Progress of a run: finished epochs, finished batches of the current epoch, best validation class mean and its epoch."""

    epoch: int = 0
    batch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    clean: float = 0.0  # sums over the epoch's batches
    mixed: float = 0.0
    right: int = 0
    skipped: int = 0

    def add(self, clean: float, mixed: float, right: int) -> None:
        """Adds a trained batch."""
        self.batch += 1
        self.clean, self.mixed, self.right = self.clean + clean, self.mixed + mixed, self.right + right

    def means(self, batch_size: int) -> dict[str, float]:
        """Mean losses and accuracy of the epoch so far, and the number of skipped steps."""
        trained = max(1, self.batch - self.skipped)
        means = {
            "loss_clean": self.clean / trained,
            "loss_mixed": self.mixed / trained,
            "accuracy": self.right / (trained * batch_size),
        }
        return means | ({"skipped_steps": self.skipped} if self.skipped else {})


@dataclass
class Training:
    """All mutable state of a run."""

    network: nn.Module
    mixer: ShapMix
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the average of the weights if there is one."""
        return self.network if self.average is None else self.average.module

    def what_is_not_finite(self, loss: float, step: str) -> str:
        """Describes a non-finite step: its loss, or the first weights with a non-finite gradient."""
        if not isfinite(loss):
            return f"the loss of {step} is {loss}"
        gradients = ((name, weight.grad) for name, weight in self.network.named_parameters() if weight.grad is not None)
        first = next((name for name, gradient in gradients if not gradient.isfinite().all()), "the network")
        return f"the gradient of {step} is not finite (first in {first})"


PROGRESS = {each.name: type(each.default) for each in fields(Progress)}
FIELDS: dict[str, type | tuple[type, ...]] = {
    **{name: (int, float) if kind is float else kind for name, kind in PROGRESS.items()},
    "batch_size": int,
    "data_sha256": str,
    "mixer": dict,
    "optimizer": dict,
    "shapmix_version": str,
}


def snapshot(config: TrainConfig, splits: Splits, run: Training, data: str) -> dict[str, Any]:
    """The complete state to resume a run in another process.

    `network` has the evaluated weights; if these are an average, `trained` has the trained weights.
    """
    state = {
        "layout": splits.store.layout.name,
        "layout_toml": layout_toml(splits.store.layout),
        "scores": splits.store.scores,
        "class_names": splits.store.class_names,
        **asdict(run.progress),
        "batch_size": config.batch_size,
        "data_sha256": data,
        "network": run.evaluated.state_dict(),
        "mixer": run.mixer.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "shapmix_version": shapmix.__version__,
    }
    if run.average is not None:
        state |= {"trained": run.network.state_dict(), "averaged_steps": run.average.n_averaged}
    return state


def restore(state: dict[str, Any], config: TrainConfig, run: Training, data: str) -> None:
    """Restores the state from a `snapshot`.

    Raises:
        CheckpointError: the checkpoint belongs to a different network or different data, or was saved within an epoch with a
            different batch size.
    """
    where = "the run's checkpoint"
    check_fields(where, state, FIELDS)
    if not 0 <= state["epoch"] <= 10**9 or not 0 <= state["batch"] <= 10**9:
        raise CheckpointError(f"{where}: epoch {state['epoch']}, batch {state['batch']} are not a valid position in a run")
    if config.epochs < state["epoch"] + (state["batch"] > 0):
        raise CheckpointError(
            f"epochs: the run is in epoch {state['epoch'] + (state['batch'] > 0)} and cannot end after {config.epochs}"
        )
    if state["data_sha256"] != data:
        raise CheckpointError("the data differs from that of the run (clips, names or lists); start a new run")
    if state["batch"] and state["batch_size"] != config.batch_size:
        raise CheckpointError(f"the run stopped within an epoch with --batch-size {state['batch_size']}; resume with the same")
    if (run.average is None) != ("trained" not in state):
        raise CheckpointError("ema: the average of the weights cannot be turned on or off on resume")
    load_weights(run.network, state["network"] if run.average is None else state["trained"], where)
    load_weights(run.mixer, state["mixer"], where)
    if run.average is not None:
        check_fields(where, state, {"averaged_steps": Tensor})
        if state["averaged_steps"].shape or state["averaged_steps"].dtype != torch.int64:
            raise CheckpointError(f"{where}: not a checkpoint of this trainer: 'averaged_steps' is not a number")
        load_weights(run.average.module, state["network"], where)
        run.average.n_averaged.copy_(state["averaged_steps"])
    _restore_optimizer(state["optimizer"], run)
    run.progress = Progress(**{name: state[name] for name in PROGRESS})


def _restore_optimizer(saved: dict[str, Any], run: Training) -> None:
    """Restores the optimizer's state; its options follow the configuration."""
    groups = run.optimizer.state_dict()["param_groups"]
    try:
        if not set(saved["state"]) <= {number for group in groups for number in group["params"]}:
            raise ValueError("it has more parameters")
        run.optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        for group in run.optimizer.param_groups:
            for parameter in group["params"]:
                for name, value in run.optimizer.state[parameter].items():
                    _check_average(name, value, parameter)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
        raise CheckpointError(f"the run's checkpoint: the optimizer's state belongs to a different network: {reason}") from error


def _check_average(name: str, value: Any, parameter: Tensor) -> None:
    if value is None and name == "momentum_buffer":
        return
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} is a {type(value).__name__}")
    if value.shape != (() if name == "step" else parameter.shape):
        raise ValueError(f"{name} has shape {list(value.shape)}, its parameter {list(parameter.shape)}")
    if not value.isfinite().all():
        raise not_finite("the run's checkpoint", f"optimizer.{name}")


def seed_all(seed: int, step: int, rank: int) -> None:
    """Seeds all global generators with a function of (seed, step, process).

    The trainer does not use them, but layers of a custom network may. No generator state has to be saved to resume.
    """
    words = np.random.SeedSequence((seed, step, rank)).generate_state(3)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[1]))
    np.random.seed(int(words[2]))  # noqa: NPY002 (layers may use it)


def deterministic(settings: ExitStack) -> None:
    """Enables torch's deterministic algorithms until `settings` closes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    settings.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # filling uninitialised memory only finds bugs and costs a pass over every new tensor
    settings.callback(setattr, memory, "fill_uninitialized_memory", memory.fill_uninitialized_memory)
    memory.fill_uninitialized_memory = False
