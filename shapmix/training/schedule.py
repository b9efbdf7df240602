"""The steps of a run, and the learning rate as a function of the step alone, so that resuming needs no state of a scheduler."""

from __future__ import annotations

from math import cos, pi

import torch
from torch import Tensor

from shapmix.data.clips import Splits
from shapmix.data.order import epoch_order
from shapmix.process.errors import RunError
from shapmix.training.options import TrainConfig


def order_of(config: TrainConfig, splits: Splits, epoch: int) -> Tensor:
    """Indices of the training clips of an epoch, in their order."""
    labels = splits.store.labels[splits.train]
    return epoch_order(splits.train, config.seed, epoch, labels=labels, sampler=config.sampler, repeat=config.repeat)


def steps_of_an_epoch(config: TrainConfig, splits: Splits) -> int:
    """Whole batches of an epoch.

    Raises:
        RunError: the clips do not fill one.
    """
    clips = len(order_of(config, splits, 0))
    if clips < config.batch_size:
        raise RunError(f"batch_size {config.batch_size} is more than the {clips} training clips of an epoch; lower it")
    return clips // config.batch_size


def milestones(config: TrainConfig) -> list[int]:
    """Epochs after which a step schedule divides the learning rate by 10."""
    return [round(share * config.epochs) for share in config.schedule.milestones]


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The learning rate of step `step`, from 0, of a run with `steps` steps per epoch.

    The formulas are those of the published training scripts: warm-up goes by epochs, and a cosine begins where it ends. torch's
    schedulers are not used because a chain of them starts the cosine with the warm-up, and because they are stepped, not evaluated.
    """
    schedule, epoch = config.schedule, step // steps
    if epoch < schedule.warmup_epochs:
        return schedule.lr * (epoch + 1) / schedule.warmup_epochs
    if schedule.decay == "step":
        return schedule.lr * 0.1 ** sum(epoch >= milestone for milestone in milestones(config))
    done = (step / steps if schedule.per == "step" else epoch) - schedule.warmup_epochs
    lowest = schedule.final * schedule.lr
    return lowest + (schedule.lr - lowest) * (1 + cos(pi * done / (config.epochs - schedule.warmup_epochs))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def describe_schedule(config: TrainConfig, steps: int) -> str:
    """One line: optimizer, learning rate over the run, and its length."""
    schedule = config.schedule
    warmup = f", {schedule.warmup_epochs} epochs of warm-up" if schedule.warmup_epochs else ""
    if schedule.decay == "step":
        epochs = ", ".join(str(milestone) for milestone in milestones(config))
        decay = f"divided by 10 after epochs {epochs}" if epochs else "constant"
    else:
        decay = f"cosine per {schedule.per} to {schedule.final * schedule.lr:g}"
    sam = f" with SAM of radius {schedule.sam:g}" if schedule.sam is not None else ""
    passes = f", each {config.repeat} times the clips" if config.repeat > 1 else ""
    return f"{schedule.optimizer}{sam}, lr {schedule.lr:g}{warmup}, {decay}; {config.epochs} epochs of {steps} steps{passes}"
