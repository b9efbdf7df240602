"""The trainer."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shapmix.data.clips import Splits
from shapmix.data.order import epoch_batches, epoch_order, passes
from shapmix.data.sampling import ClipSampler, resident, training_batches
from shapmix.networks import synced_norm
from shapmix.pictures import plots
from shapmix.process import parallel
from shapmix.process.device import choose_device
from shapmix.process.errors import RunError
from shapmix.process.files import append_line, named
from shapmix.process.signals import Interruption, StopRequest
from shapmix.training import metrics, progress
from shapmix.training.build import PRECISIONS, make_mixer, make_network, make_optimizer, make_sampler, make_scheduler, make_step
from shapmix.training.checkpoint import CheckpointError, load_checkpoint, load_newest, load_weights, save_checkpoint
from shapmix.training.config import TrainConfig, changed_on_resume, parse_config, save_config
from shapmix.training.eager_step import forward_backward
from shapmix.training.run_folder import data_hash, forget_later_epochs, new_run_dir, of_process_0, record_start, write_result
from shapmix.training.scores import predict
from shapmix.training.state import Progress, Training, deterministic, restore, seed_all, snapshot
from shapmix.training.step import StepResult, TrainingStep, copied, keep_where, largest_gradient, running

log = logging.getLogger("shapmix")


@dataclass(frozen=True)
class Result:
    """What a run ends with: test accuracy of its checkpoints, and the class saliency it learned ([K, Q])."""

    run_dir: Path
    accuracy: dict[str, metrics.Accuracy]
    saliency: Tensor


def train(config: TrainConfig, splits: Splits, held: ExitStack | None = None, request: StopRequest | None = None) -> Result:
    """Trains one network and measures its last and best checkpoints on the test split.

    The directory of a new run is made when everything is ready for the first step. `held` keeps it for this process until it
    closes; None: until the run ends. That of a run that goes on is held by the caller.

    Raises:
        Interruption: a signal asked for a stop; the state is saved.
        RunError, CheckpointError: what cannot start or go on.
    """
    with ExitStack() as settings:
        if config.deterministic:
            deterministic(settings)
        return _train(config, splits, held or settings, request or StopRequest())


def _train(config: TrainConfig, splits: Splits, held: ExitStack, request: StopRequest) -> Result:
    torch.manual_seed(config.seed)  # of the weights
    device = choose_device(config.device)
    store = splits.store
    class_counts = splits.class_counts()
    epoch_clips = len(epoch_order(splits.train, config.seed, 0, labels=store.labels[splits.train], sampler=config.sampler))
    if epoch_clips < config.batch_size:
        raise RunError(f"batch_size {config.batch_size} is more than the {epoch_clips} training clips of an epoch; lower it")
    try:
        rows = passes(config.batch_size, parallel.rank(), parallel.ranks(), config.accumulate)
    except ValueError as error:
        raise RunError(f"{error}; change one of them") from error
    steps = epoch_clips // config.batch_size
    writes = parallel.rank() == 0

    sampler, where = resident(make_sampler(config, store), device)
    network = make_network(config, store).to(device)
    if parallel.ranks() > 1 and config.sync_batchnorm:
        synced_norm.sync_norms(network)
    optimizer = make_optimizer(network, config, fused=device.type == "cuda")
    average = None
    if config.ema is not None:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    if config.compile:
        network.compile()
    mixer = make_mixer(config, splits, sampler, steps).to(device)
    run = Training(network, mixer, optimizer, make_scheduler(optimizer, config), average)
    forward = parallel.SharedForward(run.evaluated, PRECISIONS[config.precision])
    data = data_hash(splits)
    if config.resume is not None:
        state = load_newest(config.resume / "checkpoints" / "last.pt", layout=store.layout.name, class_names=store.class_names)
        if state is None:
            log.info("%s: stopped before its first checkpoint; starting from the beginning", config.resume)
        else:
            restore(state, config, run, data)
            check_best(config, run.progress, splits)
    model = parallel.averaged_gradients(network, broadcast_buffers=config.sync_batchnorm)
    captured, how = make_step(config, run, sampler, device)
    run_dir = config.resume or of_process_0(partial(new_run_dir, config, held))  # from here on there is something to lose
    checkpoints = run_dir / "checkpoints"
    last, best = checkpoints / "last.pt", checkpoints / "best.pt"

    def save(path: Path, keep: int = 1) -> None:
        if writes:
            save_checkpoint(path, snapshot(config, splits, run, data), keep=keep)

    if writes:
        checkpoints.mkdir(exist_ok=True)
        written, changed = run_dir / "config.yaml", dict[str, tuple[Any, Any]]()
        if config.resume is not None:
            changed = changed_on_resume(parse_config(["--config", str(written)]), config)
        for key, (before, now) in changed.items():
            log.info("%s: from here on %s, before %s", key, now, before)
        save_config(config, written)
        record_start(run_dir / "environment.jsonl", data, device, changed)
        forget_later_epochs(run_dir / "metrics.jsonl", run.progress.epoch)
    log.info("%s; %s; %s", describe(config, splits, network, device), where, how)

    with ExitStack() as files:
        board = None
        if writes:
            board = files.enter_context(progress.open_board(run_dir / "tensorboard", run.progress.epoch + 1))
        while run.progress.epoch < config.epochs and not out_of_patience(config, run.progress):
            rates = train_epoch(config, splits, sampler, run, model, captured, rows, steps, device, run_dir, save, request)
            done, seen = run.progress, max(1, steps - run.progress.skipped)
            row: dict[str, Any] = {
                "loss_clean": done.clean / seen,
                "loss_mixed": done.mixed / seen,
                "accuracy": done.right / (seen * config.batch_size),
                "epoch": done.epoch + 1,
                "lr": optimizer.param_groups[0]["lr"],
                **rates,
            }
            if done.skipped:
                row["skipped_steps"] = done.skipped
            run.scheduler.step()
            run.progress = Progress(done.epoch + 1, 0, done.best, done.best_epoch)
            if run.progress.epoch % config.eval_every == 0 or run.progress.epoch == config.epochs:
                measured = metrics.accuracy(*predict(forward, sampler, splits.val, config.batch_size, device), class_counts)
                row["val_top1"], row["val_class_mean"] = measured.top1, measured.class_mean
                # ties go to the later epoch: it has seen more
                if measured.class_mean >= run.progress.best:
                    run.progress.best, run.progress.best_epoch = measured.class_mean, run.progress.epoch
                    save(best)
            if board is not None:
                append_line(run_dir / "metrics.jsonl", json.dumps(row))
                progress.log_scalars(board, row)
                if run.progress.epoch % config.picture_every == 0 or run.progress.epoch == config.epochs:
                    progress.log_pictures(board, run_dir, config, splits, sampler, mixer, run.progress.epoch)
            save(last, config.checkpoint.keep)
            log.info(describe_epoch(row, config.epochs))
        if out_of_patience(config, run.progress):
            log.info("stopped early: the best of %d epochs was epoch %d", run.progress.epoch, run.progress.best_epoch)

    parallel.shared(None)  # process 0 has written what all read now
    accuracy = {}
    for path in (last, best):
        try:
            state = load_checkpoint(path, layout=store.layout.name, class_names=store.class_names)
        except CheckpointError as error:
            if path == last:
                raise
            log.warning("%s; the result is of the last checkpoint alone", error)
            continue
        load_weights(run.evaluated, state["network"], path)
        logits, labels = predict(forward, sampler, splits.test, config.batch_size, device)
        accuracy[path.stem] = metrics.accuracy(logits, labels, class_counts)
        if writes:
            confusion = metrics.confusion_matrix(logits, labels)
            table, picture = run_dir / f"per_class_{path.stem}.csv", run_dir / f"confusion_{path.stem}.png"
            with named(table):
                metrics.write_class_table(table, confusion, class_counts, store.class_names)
            with named(picture):
                plots.plot_confusion(picture, confusion, store.class_names)
    if writes:
        progress.log_pictures(None, run_dir, config, splits, sampler, mixer, run.progress.epoch)
        write_result(run_dir, config, accuracy)
    return Result(run_dir, accuracy, mixer.saliency.cpu())


def check_best(config: TrainConfig, progress: Progress, splits: Splits) -> None:
    """Where a run goes on without a whole `best.pt`, that is named, and the best epoch from here on takes its place."""
    assert config.resume is not None
    if progress.best_epoch == 0 or progress.epoch >= config.epochs or out_of_patience(config, progress):
        return
    try:
        path = config.resume / "checkpoints" / "best.pt"
        load_checkpoint(path, layout=splits.store.layout.name, class_names=splits.store.class_names)
    except CheckpointError as error:
        log.warning("%s; the best of the epochs from here on takes its place", error)
        progress.best = -1.0


def train_epoch(
    config: TrainConfig,
    splits: Splits,
    sampler: ClipSampler,
    run: Training,
    model: nn.Module,
    captured: TrainingStep | None,
    rows: list[Tensor],
    steps: int,
    device: torch.device,
    run_dir: Path,
    save: Callable[..., None],
    request: StopRequest,
) -> dict[str, float]:
    """The rest of the present epoch; returns its rates and leaves its sums in `run.progress`."""
    run.network.train()
    store, progress, mixer = splits.store, run.progress, run.mixer
    observer = parallel.SharedForward(run.network, PRECISIONS[config.precision])
    pace = progress.Pace()
    last = run_dir / "checkpoints" / "last.pt"
    saved, minutes = time.monotonic(), config.checkpoint.every_minutes
    batches = epoch_batches(
        splits.train,
        config.batch_size,
        config.seed,
        progress.epoch,
        first=progress.batch,
        labels=store.labels[splits.train],
        sampler=config.sampler,
    )
    numbered = ((chosen, progress.epoch * steps + number) for number, chosen in enumerate(batches, start=progress.batch))
    made: Iterable[tuple[Tensor | None, Tensor, int]] = training_batches(sampler, numbered, device)
    if captured is not None and not captured.clips_given:  # it samples
        made = ((None, chosen, step) for chosen, step in numbered)
    line = progress.progress_line(made, config, progress.epoch, progress.batch, steps)
    asked = time.perf_counter()
    for x, chosen, step in line:
        pace.waited += time.perf_counter() - asked
        seed_all(config.seed, step, parallel.rank())
        before = copied(running(run.network, mixer)) if captured is None else []  # a captured step leaves itself out
        if captured is not None:
            found = captured(chosen, step, x)
        else:
            assert x is not None
            labels = store.labels[chosen].to(device)
            mixer.observe(observer, x, labels, step)
            batch = mixer.mix(x, labels, step)
            run.optimizer.zero_grad(set_to_none=True)
            logits, clean_loss, mixed_loss = forward_backward(model, mixer, batch, rows, PRECISIONS[config.precision])
            if parallel.ranks() > 1 and not config.sync_batchnorm:
                parallel.copy_buffers(run.network)
            right_here = (logits[: len(labels)].argmax(1) == labels).sum()
            found = StepResult(clean_loss, mixed_loss, right_here, largest_gradient(run.optimizer))
        clean, mixed, right, gradient = torch.stack([value.double() for value in found]).tolist()  # the host waits here
        if isfinite(clean + mixed + gradient):
            if captured is None:
                run.optimizer.step()
            if run.average is not None:
                run.average.update_parameters(run.network)
            progress.clean, progress.mixed = progress.clean + clean, progress.mixed + mixed
            progress.right += int(right)
        else:
            names = ", ".join(store.names[clip] for clip in chosen.tolist())
            keep_where(torch.tensor(False, device=device), before)
            what = not_finite(run.network, clean + mixed, f"step {step} (epoch {progress.epoch + 1})")
            if config.non_finite == "stop":
                failed = run_dir / "checkpoints" / "failed.pt"
                save(failed)
                raise RunError(f"{what}; the state before its update is saved in {failed}; clips of the batch: {names}")
            log.warning("%s and the step is left out; clips of the batch: %s", what, names)
            progress.skipped += 1
        progress.batch += 1
        pace.clips += len(chosen)
        trained = max(1, progress.batch - progress.skipped)
        left = ((config.epochs - progress.epoch) * steps - progress.batch) * config.batch_size
        progress.show_figures(line, pace, clean + mixed, progress.right / (trained * config.batch_size), left)

        due = config.checkpoint.every_steps is not None and progress.batch % config.checkpoint.every_steps == 0
        due = due or time.monotonic() - saved >= 60 * minutes
        signal, due_anywhere = parallel.largest([request.signal, int(due)], device)
        if signal or (due_anywhere and progress.batch < steps):
            save(last, config.checkpoint.keep)
            saved = time.monotonic()
        if signal:
            parallel.shared(None)  # nobody leaves before process 0 has written
            raise Interruption(
                signal, f"stopped in epoch {progress.epoch + 1}, batch {progress.batch}; go on with --resume {run_dir}"
            )
        asked = time.perf_counter()
    return pace.rates()


def not_finite(network: nn.Module, loss: float, step: str) -> str:
    """What of a step is not finite: its loss, or a gradient and the first weights that have it."""
    if not isfinite(loss):
        return f"the loss of {step} is {loss}"
    gradients = ((name, parameter.grad) for name, parameter in network.named_parameters() if parameter.grad is not None)
    first = next((name for name, gradient in gradients if not gradient.isfinite().all()), "the network")
    return f"the gradient of {step} is not finite (first in {first})"


def out_of_patience(config: TrainConfig, progress: Progress) -> bool:
    """Whether `patience` evaluations have passed without a better one."""
    return config.patience is not None and progress.epoch - progress.best_epoch >= config.patience * config.eval_every


def describe(config: TrainConfig, splits: Splits, network: nn.Module, device: torch.device) -> str:
    """One line a human checks before leaving a run alone."""
    counts = splits.class_counts()
    size = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"{config.dataset}: {len(splits.train)} training clips ({int(counts.max())} to {int(counts.min())} a class), "
        f"{len(splits.val)} validation, {len(splits.test)} test; mix {config.mix}, loss {config.loss}; "
        f"{size / 1e3:.0f}k parameters on {device}, {torch.get_num_threads()} threads"
    )


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """One line an epoch."""
    validation = f", validation {100 * row['val_class_mean']:.1f}%" if "val_class_mean" in row else ""
    return (
        f"epoch {row['epoch']:>3}/{epochs}  loss {row['loss_clean'] + row['loss_mixed']:.3f}, "
        f"accuracy {100 * row['accuracy']:.1f}%{validation}, {row['clips_per_second']:.0f} clips/s"
    )
