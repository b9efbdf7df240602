"""The trainer: build, train epoch by epoch, validate, save checkpoints, and test them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from shapmix.data.clips import Splits
from shapmix.data.order import epoch_batches
from shapmix.data.sampling import resident, training_batches
from shapmix.mixing.mixers import MIXERS
from shapmix.networks.frozen import hold_frozen
from shapmix.pictures import plots
from shapmix.process import parallel
from shapmix.process.device import choose_device
from shapmix.process.errors import RunError
from shapmix.process.files import append_line, named
from shapmix.process.signals import Interruption, StopRequest
from shapmix.training import metrics, progress
from shapmix.training.adjustment import adjusted, find_tau
from shapmix.training.build import PRECISIONS, make_sampler, make_step, make_training
from shapmix.training.checkpoint import CheckpointError, load_checkpoint, load_newest, load_weights, save_checkpoint
from shapmix.training.config import changed_on_resume, parse_config, save_config
from shapmix.training.example_mix import draw_mixing
from shapmix.training.options import TrainConfig
from shapmix.training.run_folder import data_hash, forget_later_epochs, new_run_dir, of_process_0, record_start, write_result
from shapmix.training.schedule import describe_schedule, learning_rate, order_of, set_learning_rate, steps_of_an_epoch
from shapmix.training.start import start
from shapmix.training.state import Progress, deterministic, restore, seed_all, snapshot
from shapmix.training.views import ONE_VIEW, Views, predict_views

log = logging.getLogger("shapmix")


@dataclass(frozen=True)
class Result:
    """The result of a run: test accuracy of its checkpoints, and the learned class saliency [K, Q]."""

    run_dir: Path
    accuracy: dict[str, metrics.Accuracy]
    saliency: Tensor


def train(config: TrainConfig, splits: Splits, held: ExitStack | None = None, request: StopRequest | None = None) -> Result:
    """Trains one network and measures its last and best checkpoints on the test split.

    Args:
        held: holds the lock of the run directory until it closes; None: until the run ends. The caller locks the directory of a
            resumed run.
        request: a stop requested by a signal.

    Raises:
        Interruption: stopped by a signal; the state is saved.
        RunError, CheckpointError: the run cannot start or resume.
    """
    with ExitStack() as settings:
        if config.deterministic:
            deterministic(settings)
        trainer = Trainer(config, splits, request or StopRequest())
        trainer.open_run_dir(held or settings)
        return trainer.train()


class Trainer:
    """One run: network, mixer, optimizer, training clips and run directory.

    The constructor only reads the data and, with `--resume`, a checkpoint; it writes nothing, so that configuration errors are
    raised before a directory is created.

    Raises:
        RunError, CheckpointError: the run cannot start or resume.
    """

    def __init__(self, config: TrainConfig, splits: Splits, request: StopRequest) -> None:
        torch.manual_seed(config.seed)  # of the weights
        self.config, self.splits, self.request = config, splits, request
        self.device = choose_device(config.device)
        self.steps = steps_of_an_epoch(config, splits)
        self.sampler, self.where = resident(make_sampler(config, splits.store), self.device)
        Views.of_run(config).check(self.sampler)
        self.run = make_training(config, splits, self.sampler, self.steps, self.device)
        self.data = data_hash(splits)
        self.started_from: dict[str, dict[str, str]] = {}
        if config.resume is None or not self.restore(config.resume):
            self.started_from = start(self.run, config, splits.store)
        self.step, self.how = make_step(config, self.run, self.sampler, self.device)
        self.evaluated = parallel.SharedForward(self.run.evaluated, PRECISIONS[config.precision])
        self.run_dir = Path()  # open_run_dir
        self.board: SummaryWriter | None = None

    # The run's directory

    def open_run_dir(self, held: ExitStack) -> None:
        """Creates the directory of a new run, and records configuration and environment."""
        config = self.config
        self.run_dir = config.resume or of_process_0(partial(new_run_dir, config, held))
        if parallel.rank() == 0:
            self.checkpoints.mkdir(exist_ok=True)
            written, changed = self.run_dir / "config.yaml", dict[str, tuple[Any, Any]]()
            if config.resume is not None:
                changed = changed_on_resume(parse_config(["--config", str(written)]), config)
            for key, (before, now) in changed.items():
                log.info("%s: from here on %s, before %s", key, now, before)
            save_config(config, written)
            record_start(self.run_dir / "environment.jsonl", self.data, self.device, changed, self.started_from)
            forget_later_epochs(self.run_dir / "metrics.jsonl", self.run.progress.epoch)
        log.info("%s; %s; %s", self.describe(), self.where, self.how)
        log.info("%s", describe_schedule(config, self.steps))

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def save(self, name: str, keep: int = 1) -> None:
        """Writes the state as a checkpoint, and keeps `keep` of that name."""
        if parallel.rank() == 0:
            save_checkpoint(self.checkpoints / name, snapshot(self.config, self.splits, self.run, self.data), keep=keep)

    def restore(self, run_dir: Path) -> bool:
        """Restores the newest checkpoint of a run; whether there is one."""
        store = self.splits.store
        state = load_newest(run_dir / "checkpoints" / "last.pt", layout=store.layout.name, class_names=store.class_names)
        if state is None:
            log.info("%s: stopped before its first checkpoint; starting from the beginning", run_dir)
            return False
        restore(state, self.config, self.run, self.data)
        self.check_best(run_dir / "checkpoints" / "best.pt")
        return True

    def check_best(self, path: Path) -> None:
        """If a resumed run has no valid `best.pt`, logs it; the best of the following epochs replaces it."""
        done, store = self.run.progress, self.splits.store
        if done.best_epoch == 0 or done.epoch >= self.config.epochs or self.out_of_patience():
            return
        try:
            load_checkpoint(path, layout=store.layout.name, class_names=store.class_names)
        except CheckpointError as error:
            log.warning("%s; the best of the following epochs replaces it", error)
            done.best = -1.0

    # Training

    def train(self) -> Result:
        """Trains the remaining epochs, and tests the last and the best checkpoint."""
        with ExitStack() as files:
            if parallel.rank() == 0:
                board = progress.open_board(self.run_dir / "tensorboard", self.run.progress.epoch + 1)
                self.board = files.enter_context(board)
            while self.run.progress.epoch < self.config.epochs and not self.out_of_patience():
                row = self.train_epoch()
                self.validate(row)
                self.record(row)
                self.save("last.pt", self.config.checkpoint.keep)
        if self.out_of_patience():
            done = self.run.progress
            log.info("stopped early: the best of %d epochs was epoch %d", done.epoch, done.best_epoch)
        return self.test()

    def train_epoch(self) -> dict[str, Any]:
        """Trains the rest of the current epoch; returns its row of `metrics.jsonl`."""
        self.run.network.train()
        if self.config.freeze:
            hold_frozen(self.run.network)
        pace, saved = progress.Pace(), time.monotonic()
        line = progress.progress_line(self.batches(), self.config, self.run.progress, self.steps)
        for clips, chosen, number in pace.timed(line):
            self.train_step(clips, chosen, number)
            pace.clips += len(chosen)
            progress.show_figures(line, pace, self.config, self.run.progress, self.steps)
            saved = self.save_where_due(saved)
        done = self.run.progress
        rate = learning_rate(self.config, (done.epoch + 1) * self.steps - 1, self.steps)  # of the epoch's last step
        row = {**done.means(self.config.batch_size), "epoch": done.epoch + 1, "lr": rate, **pace.rates()}
        self.run.progress = Progress(done.epoch + 1, 0, done.best, done.best_epoch)
        return row

    def batches(self) -> Iterator[tuple[Tensor | None, Tensor, int]]:
        """(clips, their indices, step) of the rest of the epoch; clips are None if the step samples them."""
        config, done = self.config, self.run.progress
        left = epoch_batches(order_of(config, self.splits, done.epoch), config.batch_size, first=done.batch)
        numbered = ((chosen, done.epoch * self.steps + number) for number, chosen in enumerate(left, start=done.batch))
        if self.step.takes_clips:
            yield from training_batches(self.sampler, numbered, self.device, views=self.run.mixer.views)
        else:
            yield from ((None, chosen, number) for chosen, number in numbered)

    def train_step(self, clips: Tensor | None, chosen: Tensor, number: int) -> None:
        """Runs one step and updates the sums of the epoch; a non-finite step changes nothing.

        Raises:
            RunError: the step is non-finite and `non_finite` is "stop"; the state is saved.
        """
        done = self.run.progress
        seed_all(self.config.seed, number, parallel.rank())
        set_learning_rate(self.run.optimizer, learning_rate(self.config, number, self.steps))
        found = self.step(chosen, number, clips)
        clean, mixed, right, gradient = torch.stack([value.double() for value in found]).tolist()  # synchronises with the host
        if isfinite(clean + mixed + gradient):
            done.add(clean, mixed, int(right))
            if self.run.average is not None:
                self.run.average.update_parameters(self.run.network)
            return
        what = self.run.what_is_not_finite(clean + mixed, f"step {number} (epoch {done.epoch + 1})")
        names = ", ".join(self.splits.store.names[clip] for clip in chosen.tolist())
        if self.config.non_finite == "stop":
            self.save("failed.pt")
            failed = self.checkpoints / "failed.pt"
            raise RunError(f"{what}; the state before its update is saved in {failed}; clips of the batch: {names}")
        log.warning("%s and the step is skipped; clips of the batch: %s", what, names)
        done.batch, done.skipped = done.batch + 1, done.skipped + 1

    def save_where_due(self, saved: float) -> float:
        """Saves within an epoch if the schedule or a signal requires it; returns the time of the last save.

        Raises:
            Interruption: stopped by a signal.
        """
        schedule, done = self.config.checkpoint, self.run.progress
        due = schedule.every_steps is not None and done.batch % schedule.every_steps == 0
        due = due or time.monotonic() - saved >= 60 * schedule.every_minutes
        signal, due_anywhere = parallel.largest([self.request.signal, int(due)], self.device)
        if signal or (due_anywhere and done.batch < self.steps):
            self.save("last.pt", schedule.keep)
            saved = time.monotonic()
        if signal:
            parallel.shared(None)  # barrier: wait until process 0 has written
            place = f"epoch {done.epoch + 1}, batch {done.batch}"
            raise Interruption(signal, f"stopped in {place}; resume with --resume {self.run_dir}")
        return saved

    def out_of_patience(self) -> bool:
        """Early stopping: whether `patience` evaluations have passed without improvement."""
        patience, done = self.config.patience, self.run.progress
        return patience is not None and done.epoch - done.best_epoch >= patience * self.config.eval_every

    # Measuring

    def validate(self, row: dict[str, Any]) -> None:
        """Adds the validation accuracy to the row if it is due, and saves the best checkpoint; ties go to the later epoch."""
        done = self.run.progress
        if done.epoch % self.config.eval_every and done.epoch != self.config.epochs:
            return
        found = self.measure(self.splits.val)[0]
        row["val_top1"], row["val_class_mean"] = found.top1, found.class_mean
        if found.class_mean >= done.best:
            done.best, done.best_epoch = found.class_mean, done.epoch
            self.save("best.pt")

    def record(self, row: dict[str, Any]) -> None:
        """Writes the epoch's row to `metrics.jsonl` and TensorBoard, and draws pictures if they are due."""
        epoch = self.run.progress.epoch
        if self.board is not None:
            append_line(self.run_dir / "metrics.jsonl", json.dumps(row))
            progress.log_scalars(self.board, row)
            if epoch % self.config.picture_every == 0 or epoch == self.config.epochs:
                self.draw()
                progress.log_pictures(self.board, self.run_dir, epoch)
        log.info(progress.describe_epoch(row, self.config.epochs))

    def test(self) -> Result:
        """Measures the last and the best checkpoint on the test split, and writes the result."""
        parallel.shared(None)  # barrier: process 0 has written the checkpoints
        config, store, counts = self.config, self.splits.store, self.splits.class_counts()
        reached = {}
        for name in ("last", "best"):
            path = self.checkpoints / f"{name}.pt"
            try:
                state = load_checkpoint(path, layout=store.layout.name, class_names=store.class_names)
            except CheckpointError as error:
                if name == "last":
                    raise
                log.warning("%s; the result is of the last checkpoint alone", error)
                continue
            load_weights(self.run.evaluated, state["network"], path)
            views = Views.of_run(config)
            tau = find_tau(config.logit_adjustment, self.splits, partial(self.probabilities, views=views))
            if tau is not None:
                log.info("%s.pt: logits adjusted with tau %g", name, tau)
            reached[name], confusion = self.measure(self.splits.test, tau, views)
            if parallel.rank() == 0:
                table, picture = self.run_dir / f"per_class_{name}.csv", self.run_dir / f"confusion_{name}.png"
                with named(table):
                    metrics.write_class_table(table, confusion, counts, store.class_names)
                with named(picture):
                    plots.plot_confusion(picture, confusion, store.class_names)
        if parallel.rank() == 0:
            self.draw()
            write_result(self.run_dir, config, reached, self.splits.list_sha256)
        return Result(self.run_dir, reached, self.run.mixer.saliency.cpu())

    def measure(self, clips: Tensor, tau: float | None = None, views: Views = ONE_VIEW) -> tuple[metrics.Accuracy, Tensor]:
        """Accuracy and confusion matrix [K, K] of the evaluated network on clips [N] of the store, adjusted with tau."""
        labels, counts = self.splits.store.labels[clips], self.splits.class_counts()
        probabilities = adjusted(self.probabilities(clips, views), counts, tau)
        found = replace(metrics.accuracy(probabilities, labels, counts), tau=tau)
        return found, metrics.confusion_matrix(probabilities, labels)

    def probabilities(self, clips: Tensor, views: Views) -> Tensor:
        """[N, K] float64 of the evaluated network on clips [N] of the store, averaged over their views."""
        return predict_views(self.evaluated, self.sampler, clips, self.config.batch_size, self.device, views)

    def draw(self) -> None:
        """Draws `saliency.png` and `mixed_clip.png` for the current state."""
        mixer, store = self.run.mixer, self.splits.store
        saliency, mixed_clip = self.run_dir / "saliency.png", self.run_dir / "mixed_clip.png"
        if MIXERS[self.config.mix].guided:
            with named(saliency):
                plots.plot_saliency(saliency, mixer.saliency.cpu(), store.layout, store.class_names)
        if MIXERS[self.config.mix].mixes:
            with named(mixed_clip):
                draw_mixing(mixed_clip, self.config, self.splits, self.sampler, mixer)

    def describe(self) -> str:
        """One line that summarises the run."""
        config, splits = self.config, self.splits
        counts = splits.class_counts()
        parameters = list(self.run.network.parameters())
        trained, size = (sum(each.numel() for each in some) for some in ([p for p in parameters if p.requires_grad], parameters))
        count = f"{size / 1e3:.0f}k" if trained == size else f"{trained:,} trained of {size:,}"
        return (
            f"{config.dataset}: {len(splits.train)} training clips ({int(counts.max())} to {int(counts.min())} a class), "
            f"{len(splits.val)} validation, {len(splits.test)} test; mix {config.mix}, loss {config.loss}; "
            f"{count} parameters on {self.device}, {torch.get_num_threads()} threads"
        )
