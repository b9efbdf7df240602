"""What a run shows while it goes: a progress line, TensorBoard, pictures."""

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

from shapmix.data.clips import Splits
from shapmix.data.sampling import ClipSampler
from shapmix.mixing.mixer import ShapMix
from shapmix.pictures import plots
from shapmix.process import parallel
from shapmix.process.files import named
from shapmix.training.config import TrainConfig
from shapmix.training.example_mix import picture_mixing

Item = TypeVar("Item")


@dataclass
class Pace:
    """How fast an epoch goes in this process, and how much of the time it waits for clips."""

    clips: int = 0
    waited: float = 0.0  # seconds
    started: float = field(default_factory=time.perf_counter)

    def rates(self) -> dict[str, float]:
        """clips_per_second, the share of the time that went into clips, and on a GPU the peak of its memory in GB."""
        seconds = time.perf_counter() - self.started
        rates = {"clips_per_second": self.clips / seconds, "data_wait": self.waited / seconds}
        if torch.cuda.is_initialized():
            rates["device_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return rates


def progress_line(batches: Iterable[Item], config: TrainConfig, epoch: int, first: int, steps: int) -> tqdm[Item]:
    """The batches of an epoch behind a bar that is quiet where the output is no terminal, and on all processes but one."""
    return tqdm(
        batches,
        initial=first,
        total=steps,
        desc=f"epoch {epoch + 1}/{config.epochs}",
        unit="clip",
        unit_scale=config.batch_size,
        leave=False,
        disable=True if parallel.rank() else None,
    )


def show_figures(line: tqdm[Any], pace: Pace, loss: float, accuracy: float, clips_left: int) -> None:
    """Loss, accuracy, share of waiting, memory and the time that the whole run still takes, behind the bar."""
    if line.disable:
        return
    rates = pace.rates()
    seconds = int(clips_left / max(rates["clips_per_second"], 1e-9))
    shown = {"loss": f"{loss:.3f}", "accuracy": f"{accuracy:.3f}", "wait": f"{100 * rates['data_wait']:.0f}%"}
    if "device_memory_gb" in rates:
        shown["memory"] = f"{rates['device_memory_gb']:.1f} GB"
    line.set_postfix({**shown, "run_left": f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"}, refresh=False)


@contextmanager
def open_board(folder: Path, epoch: int) -> Iterator[SummaryWriter]:
    """TensorBoard's files from `epoch` on; what its thread cannot write is raised with the next point, and not printed."""
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
            with suppress(OSError):  # the error that is on its way says more
                board.close()
            raise
        with named(folder):
            board.close()
    finally:
        threading.excepthook = before


def log_scalars(board: SummaryWriter, row: dict[str, Any]) -> None:
    """One point an epoch for each number of a row of `metrics.jsonl`."""
    with named(Path(board.log_dir)):
        for key, value in row.items():
            board.add_scalar(key, value, row["epoch"])
        board.flush()  # a full disk shows in the epoch that it comes in


def log_pictures(
    board: SummaryWriter | None,
    run_dir: Path,
    config: TrainConfig,
    splits: Splits,
    sampler: ClipSampler,
    mixer: ShapMix,
    epoch: int,
) -> None:
    """`saliency.png` and `mixed_clip.png` of the run as they are now, in TensorBoard too."""
    if config.mix == "shapmix":
        with named(run_dir / "saliency.png"):
            plots.plot_saliency(run_dir / "saliency.png", mixer.saliency.cpu(), splits.store.layout, splits.store.class_names)
    if config.mix != "none":
        with named(run_dir / "mixed_clip.png"):
            picture_mixing(run_dir / "mixed_clip.png", config, splits, sampler, mixer)
    for name in ("saliency", "mixed_clip"):
        path = run_dir / f"{name}.png"
        if board is not None and path.exists():
            with named(Path(board.log_dir)):
                board.add_image(name, imread(path), epoch, dataformats="HWC")
