"""What an experiment will cost: the steps of each kind of cell, timed on the devices that will train them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from torch import Tensor

from shapmix.experiments.engines import threads_of
from shapmix.experiments.plan import Cell, Plan, PlanError
from shapmix.process.cpu import prepare_cpu
from shapmix.process.errors import RunError, ShapmixError
from shapmix.process.signals import StopRequest
from shapmix.training.build import load_splits
from shapmix.training.config import as_arguments, parse_config
from shapmix.training.options import TrainConfig
from shapmix.training.trainer import Trainer

WARM, TIMED = 4, 5  # steps before the clock starts, three eager ones and a capture of a CUDA graph, and on the clock


class Cost(NamedTuple):
    """Cost of one run: its steps, and the seconds of a step and of one pass over validation clips."""

    steps: int
    step: float
    evaluations: int
    evaluation: float

    @property
    def hours(self) -> float:
        return (self.steps * self.step + self.evaluations * self.evaluation) / 3600


def forecast(plan: Plan, cells: list[Cell], devices: Sequence[str], request: StopRequest) -> str:
    """Markdown: steps, seconds a step and hours of each row and setting on each kind of device, and of all cells.

    Every kind of cell is built and trained for a few steps, on its own data and without a file; the first seed stands for all.

    Raises:
        ConfigError, DataError, RunError: a cell cannot be trained.
    """
    try:
        prepare_cpu(threads_of(devices))  # as each run does
    except ValueError as error:
        raise RunError(f"threads: {error}") from error
    lines = [f"{len(cells)} of {len(plan.cells)} cells have no result.", ""]
    lines += ["| setting | row | runs | device | steps a run | ms a step | hours a run |", "|---" * 7 + "|"]
    total = dict.fromkeys(devices, 0.0)
    for setting, row in dict.fromkeys((cell.setting, cell.row) for cell in cells):
        mine = [cell for cell in cells if (cell.setting, cell.row) == (setting, row)]
        for device in total:
            try:
                cost = measure(mine[0], device, request)
            except ShapmixError as error:
                raise PlanError(f"setting '{setting}', row '{row}' on {device}: {error}") from error
            total[device] += len(mine) * cost.hours
            figures = [str(len(mine)), device, str(cost.steps), f"{1000 * cost.step:.1f}", f"{cost.hours:.2f}"]
            lines.append(f"| {' | '.join([setting, row, *figures])} |")
    lines.append("")
    lines += [f"All on one {device}: {hours:.1f} hours" for device, hours in total.items()]
    speed = sum(1 / total[device] for device in devices if total[device])
    if len(devices) > 1 and speed:
        lines.append(f"On {', '.join(devices)} together: about {1 / speed:.1f} hours, if they do not slow each other down")
    return "\n".join(lines)


def measure(cell: Cell, device: str, request: StopRequest) -> Cost:
    """Times steps and one validation of a cell, with the data and the options of its training, in memory."""
    config = replace(parse_config(list(as_arguments(cell.options))), device=device, non_finite="skip")
    trainer = Trainer(config, load_splits(config), request)
    measures, seconds = trainer.run.mixer.measures, dict[bool, list[float]]()
    kinds = Counter(measures(step) for step in range(trainer.steps))  # with and without a measurement of the saliency
    trainer.run.network.train()
    for clips, chosen, step in epochs_without_end(trainer):
        begin = time.perf_counter()
        trainer.train_step(clips, chosen, step)  # ends with a read of the losses
        seconds.setdefault(measures(step), []).append(time.perf_counter() - begin)
        if all(len(seconds.get(kind, ())) >= WARM + TIMED for kind in kinds):
            break
    each = sum(steps * median(seconds[kind][WARM:]) for kind, steps in kinds.items()) / trainer.steps
    begin = time.perf_counter()
    trainer.measure(trainer.splits.val)
    evaluation = time.perf_counter() - begin
    return Cost(config.epochs * trainer.steps, each, evaluations(config), evaluation)


def evaluations(config: TrainConfig) -> int:
    """Validations of a run: every `eval_every` epochs and after the last."""
    return -(-config.epochs // config.eval_every)


def epochs_without_end(trainer: Trainer) -> Iterator[tuple[Tensor | None, Tensor, int]]:
    """The first epoch's batches again and again."""
    while True:
        trainer.run.progress.batch = 0
        yield from trainer.batches()
