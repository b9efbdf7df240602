"""The trainer: `python -m shapmix.train`. Reads from top to bottom."""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import shapmix
from shapmix import metrics, official, plots
from shapmix.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from shapmix.config import Baseline, ConfigError, TrainConfig, parse_config, save_config
from shapmix.ctrgcn import CTRGCN
from shapmix.data import nw_ucla, synthetic
from shapmix.data.clips import ClipStore, DataError, Splits
from shapmix.data.sampling import ClipSampler, Pipeline, mean_motion
from shapmix.game import undisturbed
from shapmix.layout import LayoutError
from shapmix.mixing import ShapMix

log = logging.getLogger("shapmix")


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """What a run ends with: test accuracy of its checkpoints, and the class saliency it learned ([K, Q])."""

    run_dir: Path
    accuracy: dict[str, metrics.Accuracy]
    saliency: Tensor


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = parse_config(sys.argv[1:] if argv is None else argv)
        run_with_baselines(config)
    except (CheckpointError, ConfigError, DataError, LayoutError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_with_baselines(config: TrainConfig) -> dict[str, metrics.Accuracy]:
    """Trains, then the baselines below the run's directory; prints one table and writes it to `result.json`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    splits = load_splits(config)
    run_dir = config.resume or create_run_dir(config)
    result = train(config, splits, run_dir)
    rows = dict(result.accuracy)
    for name in config.baselines:
        below = run_dir / name
        resumed = below / "checkpoints" / "last.pt"
        again = replace(baseline_config(config, name), run_dir=below, resume=below if resumed.exists() else None)
        below.mkdir(exist_ok=True)
        rows |= {f"{name} {checkpoint}": row for checkpoint, row in train(again, splits, below).accuracy.items()}
    rows = {(name if " " in name else f"{config.mix} {name}"): row for name, row in rows.items()}
    write_result(run_dir, config, rows)
    print(f"\nTest accuracy ({splits.store.class_counts(splits.test).sum()} clips); run: {run_dir}")
    print(metrics.table(rows))
    return rows


def baseline_config(config: TrainConfig, name: Baseline) -> TrainConfig:
    """The same run without mixing."""
    return replace(config, mix="none", loss="ce" if name == "plain" else "balanced", baselines=())


def train(config: TrainConfig, splits: Splits, run_dir: Path) -> Result:
    """Trains one network in `run_dir` (which exists) and measures its last and best checkpoints on the test split."""
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    store = splits.store
    class_counts = splits.class_counts()
    if len(splits.train) < config.batch_size:
        raise RunError(f"batch_size {config.batch_size} is more than the {len(splits.train)} training clips; lower it")
    steps = len(splits.train) // config.batch_size

    sampler = make_sampler(config, store)
    network = make_network(config, store).to(device)
    mixer = make_mixer(config, splits, sampler, steps).to(device)
    optimizer = make_optimizer(network, config)
    scheduler = make_scheduler(optimizer, config)
    progress = Progress(epoch=0, best=-1.0)
    checkpoints = run_dir / "checkpoints"
    if config.resume is not None:
        state = load_checkpoint(checkpoints / "last.pt", layout=store.layout.name, class_names=store.class_names)
        progress = restore(state, network, mixer, optimizer, scheduler)
    else:
        checkpoints.mkdir()
        save_config(config, run_dir / "config.yaml")
    log.info(describe(config, splits, network, device))

    with closing(SummaryWriter(run_dir / "tensorboard")) as board, (run_dir / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        for epoch in range(progress.epoch, config.epochs):
            started = time.perf_counter()
            row = train_epoch(config, sampler, splits.train, network, mixer, optimizer, epoch, steps, device)
            row |= {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
            row["clips_per_second"] = steps * config.batch_size / (time.perf_counter() - started)
            scheduler.step()
            progress.epoch = epoch + 1
            if (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs:
                measured = metrics.accuracy(*predict(network, sampler, splits.val, config.batch_size, device), class_counts)
                row["val_top1"], row["val_class_mean"] = measured.top1, measured.class_mean
                # ties go to the later epoch: it has seen more
                if measured.class_mean >= progress.best:
                    progress.best = measured.class_mean
                    save_checkpoint(checkpoints / "best.pt", snapshot(splits, network, mixer, optimizer, scheduler, progress))
            save_checkpoint(checkpoints / "last.pt", snapshot(splits, network, mixer, optimizer, scheduler, progress))
            lines.write(json.dumps(row) + "\n")
            lines.flush()
            for key, value in row.items():
                board.add_scalar(key, value, epoch + 1)
            log.info(describe_epoch(row, config.epochs))

    accuracy = {}
    for name in ("last", "best"):
        state = load_checkpoint(checkpoints / f"{name}.pt", layout=store.layout.name, class_names=store.class_names)
        network.load_state_dict(state["network"])
        logits, labels = predict(network, sampler, splits.test, config.batch_size, device)
        accuracy[name] = metrics.accuracy(logits, labels, class_counts)
        confusion = metrics.confusion_matrix(logits, labels)
        metrics.write_class_table(run_dir / f"per_class_{name}.csv", confusion, class_counts, store.class_names)
        plots.plot_confusion(run_dir / f"confusion_{name}.png", confusion, store.class_names)
    if config.mix == "shapmix":
        plots.plot_saliency(run_dir / "saliency.png", mixer.saliency.cpu(), store.layout, store.class_names)
    if config.mix != "none":
        picture_mixing(run_dir / "mixed_clip.png", config, splits, sampler, mixer)
    write_result(run_dir, config, accuracy)
    return Result(run_dir, accuracy, mixer.saliency.cpu())


def train_epoch(
    config: TrainConfig,
    sampler: ClipSampler,
    clips: Tensor,
    network: nn.Module,
    mixer: ShapMix,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    steps: int,
    device: torch.device,
) -> dict[str, Any]:
    """One pass over the training clips; returns mean losses and the accuracy on the clean clips."""
    network.train()
    store = sampler.store
    clean_sum = mixed_sum = 0.0
    right = 0
    batches = tqdm(
        epoch_batches(clips, config.batch_size, config.seed, epoch),
        total=steps,
        desc=f"epoch {epoch + 1}/{config.epochs}",
        unit="clip",
        unit_scale=config.batch_size,
        leave=False,
        disable=None,  # quiet when not a terminal
    )
    for index, chosen in enumerate(batches):
        step = epoch * steps + index
        x, labels = sampler.training(chosen, step).to(device), store.labels[chosen].to(device)
        mixer.observe(network, x, labels, step)
        batch = mixer.mix(x, labels, step)
        logits = network(batch.clips)
        clean, mixed = mixer.loss(logits, batch)
        loss = clean + mixed
        if not bool(loss.isfinite()):
            names = ", ".join(store.names[clip] for clip in chosen.tolist())
            raise RunError(f"the loss of step {step} (epoch {epoch + 1}) is {loss.item()}; clips of the batch: {names}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        clean_sum, mixed_sum = clean_sum + clean.item(), mixed_sum + mixed.item()
        right += int((logits[: len(labels)].argmax(1) == labels).sum())
        batches.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{right / ((index + 1) * config.batch_size):.3f}")
    return {"loss_clean": clean_sum / steps, "loss_mixed": mixed_sum / steps, "accuracy": right / (steps * config.batch_size)}


def picture_mixing(path: Path, config: TrainConfig, splits: Splits, sampler: ClipSampler, mixer: ShapMix) -> None:
    """One mixed clip beside what it was made of, in joint space.

    The first in the order of an epoch in which the rarer class keeps, or brings, the parts that its saliency ranks first;
    without saliency the first that pastes a window.
    """
    sampler, store, layout = replace(sampler, stream="joint"), sampler.store, sampler.store.layout
    mixer = mixer.cpu()
    favourite = layout.combinations[mixer.saliency.argmax(1)]  # [K]
    for index, chosen in enumerate(epoch_batches(splits.train, config.batch_size, config.seed, config.epochs)):
        labels = store.labels[chosen]
        batch = mixer.mix(sampler.evaluation(chosen), labels, mixer.warmup_steps + index)
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
            clips = dict(zip(titles, (clean[row], clean[partner], mixed[row]), strict=True))
            plots.plot_mixed_clip(path, clips, changed[row], layout)
            return


def epoch_batches(clips: Tensor, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Index batches of one epoch in an order that depends on (seed, epoch) alone; a last, smaller batch is left out."""
    order = clips[torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(clips)))]
    for first in range(0, len(order) - batch_size + 1, batch_size):
        yield order[first : first + batch_size]


@torch.no_grad()
def predict(
    network: nn.Module, sampler: ClipSampler, clips: Tensor, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and labels [N] of the evaluation views of `clips`, on the CPU."""
    with undisturbed(network):
        logits = [network(sampler.evaluation(part).to(device)).float().cpu() for part in clips.split(batch_size)]
    return torch.cat(logits), sampler.store.labels[clips]


def load_splits(config: TrainConfig) -> Splits:
    """The data set that the configuration names, with the people it asks for."""
    splits = read_splits(config)
    if config.people is None:
        return splits
    if config.people > splits.store.num_people:
        raise RunError(f"people: {config.people} asked for, the clips have {splits.store.num_people}")
    store = replace(splits.store, frames=splits.store.frames[:, : config.people].contiguous())
    return replace(splits, store=store)


def read_splits(config: TrainConfig) -> Splits:
    """The data set as it is recorded."""
    if config.dataset == "synthetic":
        return synthetic.make_synthetic(n_max=config.n_max or synthetic.N_MAX, imbalance=config.imbalance or 1.0, seed=config.seed)
    assert config.data_root is not None  # check_config
    return nw_ucla.load_nw_ucla(
        config.data_root,
        imbalance=config.imbalance,
        n_max=config.n_max or nw_ucla.N_MAX,
        train_list=config.train_list,
        min_frames=config.min_frames,
        seed=config.seed,
    )


def make_sampler(config: TrainConfig, store: ClipStore) -> ClipSampler:
    """The feeder that the data set's field uses."""
    pipeline: Pipeline = "frames" if config.dataset == "nw-ucla" else "crop"
    return ClipSampler(store, pipeline, config.stream, config.num_frames, seed=config.seed)


def make_network(config: TrainConfig, store: ClipStore) -> CTRGCN:
    """CTR-GCN for the store's skeletons and classes."""
    return CTRGCN(
        store.layout,
        store.num_classes,
        num_people=store.num_people,
        in_channels=store.num_coordinates,
        widths=config.network.widths,
        halve=config.network.halve,
        graph_gain=config.network.graph_gain,
    )


def make_mixer(config: TrainConfig, splits: Splits, sampler: ClipSampler, steps: int) -> ShapMix:
    """Shap-Mix with the data's class counts and mean motion; schedules in epochs become steps."""
    store = splits.store
    if config.compat == "official":
        motion = official.mean_motion(store.frames, store.offsets, splits.train, config.num_frames)
    else:
        motion = mean_motion(sampler, splits.train)
    warmup = config.saliency.warmup_epochs
    return ShapMix(
        store.layout,
        splits.class_counts(),
        motion,
        mode=config.mix,
        loss=config.loss,
        estimator=config.saliency.estimator,
        compat=config.compat,
        temperature=config.saliency.temperature,
        decay=config.saliency.decay,
        warmup_steps=warmup * steps,
        # the published code's averaging begins one epoch after its contexts do
        replace_steps=(warmup + 1 if config.compat == "official" else warmup) * steps,
        seed=config.seed,
        backend=None if config.backend == "auto" else config.backend,
    )


def make_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay applies to every parameter, as published."""
    schedule = config.schedule
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(
        network.parameters(), lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay, nesterov=True
    )


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    """Stepped once an epoch."""
    schedule, chain = config.schedule, list[LRScheduler]()
    if schedule.warmup_epochs > 1:
        chain.append(LinearLR(optimizer, 1 / schedule.warmup_epochs, total_iters=schedule.warmup_epochs - 1))
    if schedule.decay == "step":
        chain.append(MultiStepLR(optimizer, [round(share * config.epochs) for share in schedule.milestones], gamma=0.1))
    else:
        chain.append(CosineAnnealingLR(optimizer, config.epochs))
    return ChainedScheduler(chain, optimizer)


@dataclass
class Progress:
    """Epochs done, and the best validation accuracy (class mean) so far."""

    epoch: int
    best: float


def snapshot(
    splits: Splits,
    network: nn.Module,
    mixer: ShapMix,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    progress: Progress,
) -> dict[str, Any]:
    """Everything that a later process needs to go on as if nothing had happened."""
    return {
        "layout": splits.store.layout.name,
        "class_names": splits.store.class_names,
        "epoch": progress.epoch,
        "best": progress.best,
        "network": network.state_dict(),
        "mixer": mixer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random_state": torch.get_rng_state(),
        "shapmix_version": shapmix.__version__,
    }


def restore(
    state: dict[str, Any], network: nn.Module, mixer: ShapMix, optimizer: torch.optim.Optimizer, scheduler: LRScheduler
) -> Progress:
    """The reverse of `snapshot`."""
    try:
        network.load_state_dict(state["network"])
        mixer.load_state_dict(state["mixer"])
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint is of another network: {str(error).splitlines()[-1].strip()}") from error
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["random_state"])
    return Progress(state["epoch"], state["best"])


def create_run_dir(config: TrainConfig) -> Path:
    """A new directory; one that exists is never written to.

    Raises:
        RunError: it exists, or cannot be made.
    """
    numbered = (Path("runs") / f"{config.dataset}-{config.mix}-{number}" for number in count(1))
    for run_dir in numbered if config.run_dir is None else [config.run_dir]:
        try:
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
        except OSError as error:
            if not run_dir.is_dir():
                raise RunError(f"run directory {run_dir} cannot be made: {error.strerror}; give another --run-dir") from error
        else:
            return run_dir
    raise RunError(f"run directory {config.run_dir} exists; give another --run-dir, or --resume {config.run_dir}")


def choose_device(name: str) -> torch.device:
    """ "auto" takes the GPU where there is one.

    Raises:
        RunError: a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"device '{name}': choose auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device '{name}': torch {torch.__version__} sees no CUDA device on this machine")
    return device


def write_result(run_dir: Path, config: TrainConfig, accuracy: dict[str, metrics.Accuracy]) -> None:
    """`result.json`: test accuracy by checkpoint and what produced it."""
    content = {
        "test": {name: row.as_dict() for name, row in accuracy.items()},
        "dataset": config.dataset,
        "mix": config.mix,
        "loss": config.loss,
        "compat": config.compat,
        "seed": config.seed,
        "versions": {"shapmix": shapmix.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    (run_dir / "result.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


if __name__ == "__main__":
    sys.exit(main())
