"""What a run shows while it goes: a progress line, TensorBoard, pictures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from matplotlib.image import imread
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from shapmix import parallel, plots
from shapmix.config import TrainConfig
from shapmix.data.clips import Splits
from shapmix.data.order import epoch_batches
from shapmix.data.sampling import ClipSampler
from shapmix.files import named
from shapmix.mixing import ShapMix

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


class MixExample(NamedTuple):
    """A clip, its partner and their mix: title -> [C, T, V, M] in joint space, and where [T, V] the mix is not the clip."""

    clips: dict[str, Tensor]
    changed: Tensor


def picture_mixing(path: Path, config: TrainConfig, splits: Splits, sampler: ClipSampler, mixer: ShapMix) -> None:
    """Draws `example_mix`, where there is one."""
    found = example_mix(config, splits, sampler, mixer)
    if found is not None:
        plots.plot_mixed_clip(path, found.clips, found.changed, sampler.store.layout, y_down=sampler.store.y_down)


def example_mix(config: TrainConfig, splits: Splits, sampler: ClipSampler, mixer: ShapMix) -> MixExample | None:
    """The first clip in the order of an epoch in which the rarer class keeps, or brings, the parts that its saliency ranks first.

    Without saliency the first that pastes a window; None where no clip of the epoch is one.
    """
    sampler, store, layout = replace(sampler, stream="joint"), sampler.store, sampler.store.layout
    mixer = deepcopy(mixer).cpu()
    favourite = layout.combinations[mixer.saliency.argmax(1)]  # [K]
    for index, chosen in enumerate(epoch_batches(splits.train, config.batch_size, config.seed, config.epochs)):
        labels = store.labels[chosen]
        batch = mixer.mix(sampler.evaluation(chosen).cpu(), labels, mixer.warmup_steps + index)
        clean, mixed = batch.clips.chunk(2)
        changed = (mixed != clean).any(1).any(-1)  # [N, T, V]
        sizes = mixer.class_counts[labels]
        for row, partner in enumerate(batch.partner.tolist()):
            pasted = sum(1 << part for part in layout.part_of_joint[changed[row].any(0)].unique().tolist())
            if changed[row].any(1).all() or not pasted:
                continue  # blended, or nothing to see
            brings = bool(sizes[row] > sizes[partner])
            kept = pasted if brings else layout.all_parts ^ pasted
            if config.mix == "shapmix" and kept != int(favourite[labels[partner if brings else row]]):
                continue
            titles = [
                f"{kind}: {store.class_names[int(labels[of])]} ({int(sizes[of])} training clips)"
                for kind, of in (("clip", row), ("partner", partner))
            ]
            share = float(batch.share[row])
            titles.append(f"mixed: {1 - share:.2f} of the clip's label, {share:.2f} of the partner's")
            return MixExample(dict(zip(titles, (clean[row], clean[partner], mixed[row]), strict=True)), changed[row])
    return None
