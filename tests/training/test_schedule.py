"""The learning rate of every step, against the published formulas written down once more."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shapmix.training.config import parse_config
from shapmix.training.options import ConfigError
from shapmix.training.schedule import describe_schedule, learning_rate

STEPS = 7  # of an epoch


def rates(*arguments: str) -> list[float]:
    config = parse_config(arguments)
    return [learning_rate(config, step, STEPS) for step in range(config.epochs * STEPS)]


def in_steps(peak: float, epochs: int, milestones: list[int]) -> list[float]:
    """CTR-GCN's `adjust_learning_rate`: linear over 5 epochs, then a tenth after each milestone; epochs count from 0."""
    every = []
    for epoch in range(epochs):
        rate = peak * (epoch + 1) / 5 if epoch < 5 else peak * math.prod(0.1 for milestone in milestones if epoch >= milestone)
        every += [rate] * STEPS
    return every


def in_a_cosine(peak: float, epochs: int, warmup: int, lowest: float) -> list[float]:
    """Shap-Mix's `adjust_learning_rate_cos` and, without warm-up, mmcv's CosineAnnealing with by_epoch=False."""
    every = [peak * (epoch + 1) / warmup for epoch in range(warmup) for _ in range(STEPS)]
    left = (epochs - warmup) * STEPS
    return every + [lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * step / left)) for step in range(left)]


def test_a_cosine_goes_by_epochs_or_by_steps() -> None:
    arguments = ["--schedule.lr", "0.2", "--schedule.decay", "cosine", "--schedule.warmup-epochs", "2", "--epochs", "6"]
    by_step = rates(*arguments, "--schedule.per", "step", "--schedule.final", "0.01")
    assert by_step == pytest.approx(in_a_cosine(0.2, 6, 2, 0.002), rel=1e-12)
    by_epoch = rates(*arguments, "--schedule.final", "0.01")
    assert by_epoch == [by_step[step - step % STEPS] for step in range(len(by_step))]
    assert rates(*arguments)[-STEPS] == pytest.approx(0.1 * (1 + math.cos(math.pi * 3 / 4)))


def test_a_cosine_that_never_begins_and_a_constant_rate() -> None:
    rising = rates("--schedule.decay", "cosine", "--schedule.warmup-epochs", "9", "--epochs", "3", "--schedule.lr", "0.9")
    assert rising == pytest.approx([0.1] * STEPS + [0.2] * STEPS + [0.3] * STEPS)
    assert set(rates("--schedule.decay", "step", "--schedule.milestones", "--schedule.warmup-epochs", "0")) == {0.01}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule.final", "1.5"], r"schedule\.final: a share of lr, from 0 to 1, not 1\.5"),
        (["--schedule.decay", "step", "--schedule.per", "step"], r"schedule\.per: a step schedule changes between epochs"),
        (["--schedule.decay", "step", "--schedule.final", "0.1"], r"schedule\.final: a step schedule ends at its last milestone"),
    ],
)
def test_values_that_contradict_the_schedule(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(arguments)


def test_one_line_describes_the_schedule(tmp_path: Path) -> None:
    lt = parse_config(["--preset", "ntu60-lt", "--data-root", str(tmp_path)])
    assert describe_schedule(lt, 12) == (
        "sgd, lr 0.1, 5 epochs of warm-up, divided by 10 after epochs 60, 80; 100 epochs of 12 steps"
    )
    sam = parse_config(["--schedule.sam", "0.05"])
    assert describe_schedule(sam, 9).startswith(f"{sam.schedule.optimizer} with SAM of radius 0.05, lr ")
    assert describe_schedule(parse_config(["--repeat", "5"]), 9) == (
        "adamw, lr 0.01, cosine per epoch to 0; 6 epochs of 9 steps, each 5 times the clips"
    )
