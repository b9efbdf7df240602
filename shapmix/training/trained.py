"""Loads a trained network from its run, with or without its training data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shapmix.data.clips import ClipStore, Splits, join_clips
from shapmix.data.sampling import ClipSampler
from shapmix.draws.augment import AugmentConfig
from shapmix.mixing.mixer import ShapMix
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout, parse_layout
from shapmix.training.build import load_splits, make_mixer, make_network, make_sampler
from shapmix.training.checkpoint import CheckpointError, check_fields, load_checkpoint, load_weights, not_finite, read_checkpoint
from shapmix.training.config import parse_config
from shapmix.training.options import TrainConfig

Checkpoint = Literal["best", "last"]

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The checkpoint that a command reads."""

    checkpoint: Checkpoint = "last"
    """last: end of training, the result to report; best: best on the validation clips, which are often too few to select by."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the data of a run is."""

    data_root: Path | None = None
    """Folder of the run's data, if it was moved since the training; None: as in the run's config.yaml."""


@dataclass(frozen=True)
class Trained:
    """A network in eval mode on `device`, with the metadata of its input.

    `mean_motion` [C, T, V, M] is on the CPU; it replaces the joints outside a coalition.
    """

    network: nn.Module
    config: TrainConfig
    layout: Layout
    class_names: list[str]
    mean_motion: Tensor
    scores: bool
    device: torch.device = CPU

    @property
    def num_people(self) -> int:
        return self.mean_motion.shape[3]

    def store(self, recordings: list[Tensor], names: list[str]) -> ClipStore:
        """Fits recordings [T, M, V, C] with any number of people to the network: the first M people, zeros for missing ones.

        Raises:
            DataError: joints or coordinates do not match, there are no frames, or coordinates are not finite.
        """
        channels, _, joints, people = self.mean_motion.shape
        fitted = []
        for name, recording in zip(names, recordings, strict=True):
            if recording.dim() != 4 or recording.shape[2:] != (joints, channels):
                wanted = f"[frames, people, {joints} joints, {channels} coordinates]"
                raise DataError(f"{name}: shape {list(recording.shape)}; the network needs {wanted}")
            clip = torch.zeros(len(recording), people, joints, channels)
            clip[:, : recording.shape[1]] = recording[:, :people]
            fitted.append(clip)
        return join_clips(fitted, [0] * len(fitted), names, self.layout, self.class_names, scores=self.scores)

    def sampler(self, store: ClipStore) -> ClipSampler:
        return make_sampler(replace(self.config, augment=AugmentConfig()), store)  # nothing is trained


def open_run(run: Path, checkpoint: Checkpoint = "last", device: torch.device = CPU) -> Trained:
    """Reads a run directory of `python -m shapmix.train`.

    Raises:
        ConfigError, CheckpointError, LayoutError: the run cannot be read.
    """
    path = run / "checkpoints" / f"{checkpoint}.pt"
    state = read_checkpoint(path)
    config = parse_config(["--config", str(run / "config.yaml")])
    layout = parse_layout(state["layout_toml"], where=str(path))
    motion = state["mixer"].get("mean_motion")
    if not isinstance(motion, Tensor) or motion.dim() != 4 or motion.shape[2] != layout.num_joints or not motion.numel():
        raise CheckpointError(f"{path}: not a checkpoint of this trainer: its mean motion does not match layout '{layout.name}'")
    if not motion.isfinite().all():
        raise not_finite(path, "mean_motion")
    trained = Trained(nn.Identity(), config, layout, state["class_names"], motion.float(), bool(state.get("scores")))
    try:
        one = trained.store([torch.zeros(1, 1, layout.num_joints, trained.mean_motion.shape[0])], ["nothing"])
    except DataError as error:
        raise CheckpointError(f"{path}: not a checkpoint of this trainer: {error}") from error
    network = make_network(config, one)
    load_weights(network, state["network"], path)
    return replace(trained, network=network.eval().to(device), device=device)


class WithData(NamedTuple):
    """A run with its data: the network of a checkpoint in eval mode, and its mixer with the saliency, on the CPU."""

    config: TrainConfig
    splits: Splits
    network: nn.Module
    sampler: ClipSampler
    mixer: ShapMix


def config_with_data(run: Path, data_root: Path | None) -> TrainConfig:
    """The configuration of a run, with its data in another folder unless `data_root` is None.

    Raises:
        ConfigError: it cannot be read.
    """
    moved = [] if data_root is None else ["--data-root", str(data_root)]
    return parse_config(["--config", str(run / "config.yaml"), *moved])


def open_with_data(
    run: Path, checkpoint: Checkpoint = "last", device: torch.device = CPU, *, data_root: Path | None = None
) -> WithData:
    """Reads a run directory and its data set.

    Raises:
        ConfigError, CheckpointError, DataError: the run or the data cannot be read.
    """
    config = config_with_data(run, data_root)
    splits = load_splits(config)
    store = splits.store
    path = run / "checkpoints" / f"{checkpoint}.pt"
    state = load_checkpoint(path, layout=store.layout.name, class_names=store.class_names)
    network, sampler = make_network(config, store), make_sampler(config, store)
    load_weights(network, state["network"], path)
    mixer = make_mixer(config, splits, sampler, 1)
    check_fields(path, state, {"mixer": dict})
    load_weights(mixer, state["mixer"], path)
    return WithData(config, splits, network.eval().to(device), sampler, mixer)
