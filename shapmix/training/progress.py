"""Progress of a run: progress bar, TensorBoard, one line per epoch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shapmix.process import parallel
from shapmix.process.files import named
from shapmix.training.options import TrainConfig
from shapmix.training.state import Progress

Item = TypeVar("Item")


@dataclass
class Pace:
    """Throughput of an epoch in this process, and the fraction of time spent waiting for clips."""

    clips: int = 0
    waited: float = 0.0  # seconds
    started: float = field(default_factory=time.perf_counter)

    def rates(self) -> dict[str, float]:
        """clips_per_second, the fraction of time spent waiting for data, and on a GPU the peak memory in GB."""
        seconds = time.perf_counter() - self.started
        rates = {"clips_per_second": self.clips / seconds, "data_wait": self.waited / seconds}
        if torch.cuda.is_initialized():
            rates["device_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return rates

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches and records the waiting time."""
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()


def progress_line(batches: Iterable[Item], config: TrainConfig, done: Progress, steps: int) -> tqdm[Item]:
    """A progress bar over the remaining batches of an epoch; only on process 0 and only in a terminal."""
    return tqdm(
        batches,
        initial=done.batch,
        total=steps,
        desc=f"epoch {done.epoch + 1}/{config.epochs}",
        unit="clip",
        unit_scale=config.batch_size,
        leave=False,
        disable=True if parallel.rank() else None,
    )


def show_figures(line: tqdm[Any], pace: Pace, config: TrainConfig, done: Progress, steps: int) -> None:
    """Shows loss, accuracy, waiting time, memory and the remaining time of the run next to the bar."""
    if line.disable:
        return
    rates, means = pace.rates(), done.means(config.batch_size)
    left = ((config.epochs - done.epoch) * steps - done.batch) * config.batch_size
    seconds = int(left / max(rates["clips_per_second"], 1e-9))
    shown = {
        "loss": f"{means['loss_clean'] + means['loss_mixed']:.3f}",
        "accuracy": f"{means['accuracy']:.3f}",
        "wait": f"{100 * rates['data_wait']:.0f}%",
    }
    if "device_memory_gb" in rates:
        shown["memory"] = f"{rates['device_memory_gb']:.1f} GB"
    line.set_postfix({**shown, "run_left": f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"}, refresh=False)


@contextmanager
def open_board(folder: Path, epoch: int) -> Iterator[SummaryWriter]:
    """Opens a TensorBoard writer from `epoch` on; write errors of its thread are raised with the next point, not printed."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (type(failed.thread).__module__.startswith("tensorboard.") and isinstance(failed.exc_value, OSError)):
            before(failed)

    threading.excepthook = hook
    try:
        with named(folder):
            board = SummaryWriter(folder, purge_step=epoch)
        try:
            yield board
        except BaseException:
            with suppress(OSError):  # the original error is more informative
                board.close()
            raise
        with named(folder):
            board.close()
    finally:
        threading.excepthook = before


def log_scalars(board: SummaryWriter, row: dict[str, Any]) -> None:
    """Logs each number of a row of `metrics.jsonl` as a point of its epoch."""
    with named(Path(board.log_dir)):
        for key, value in row.items():
            board.add_scalar(key, value, row["epoch"])
        board.flush()  # reports a full disk in the same epoch


def log_pictures(board: SummaryWriter, run_dir: Path, epoch: int) -> None:
    """Logs the pictures `saliency.png` and `mixed_clip.png` of a run, if they exist."""
    for name in ("saliency", "mixed_clip"):
        path = run_dir / f"{name}.png"
        if path.exists():
            with named(Path(board.log_dir)):
                board.add_image(name, imread(path), epoch, dataformats="HWC")


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line for an epoch, from its row of `metrics.jsonl`."""
    validation = f", validation {100 * row['val_class_mean']:.1f}%" if "val_class_mean" in row else ""
    return (
        f"epoch {row['epoch']:>3}/{epochs}  loss {row['loss_clean'] + row['loss_mixed']:.3f}, "
        f"accuracy {100 * row['accuracy']:.1f}%{validation}, {row['clips_per_second']:.0f} clips/s"
    )
