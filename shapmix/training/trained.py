"""A trained network as its run left it, with or without the data that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from shapmix.data.clips import ClipStore, Splits, join_clips
from shapmix.data.sampling import ClipSampler
from shapmix.mixing.mixer import ShapMix
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import Layout, parse_layout
from shapmix.training.build import load_splits, make_mixer, make_network, make_sampler
from shapmix.training.checkpoint import CheckpointError, check_fields, load_checkpoint, load_weights, not_finite, read_checkpoint
from shapmix.training.config import TrainConfig, parse_config

Checkpoint = Literal["best", "last"]

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """Which checkpoint of a run a command reads."""

    checkpoint: Checkpoint = "last"
    """last: the end of training, the figure to report; best: the best on the validation clips, often too few to choose by."""


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, on `device`, and what belongs to its input.

    `mean_motion` is [C, T, V, M], on the CPU: what the network sees where nothing is known of a part.
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
        """Recordings [T, M, V, C] of any number of people as the network takes them: the first M, or zeros for who is missing.

        Raises:
            DataError: another number of joints or coordinates, no frames, or coordinates that are not finite.
        """
        channels, _, joints, people = self.mean_motion.shape
        fitted = []
        for name, recording in zip(names, recordings, strict=True):
            if recording.dim() != 4 or recording.shape[2:] != (joints, channels):
                wanted = f"[frames, people, {joints} joints, {channels} coordinates]"
                raise DataError(f"{name}: shape {list(recording.shape)}; the network takes {wanted}")
            clip = torch.zeros(len(recording), people, joints, channels)
            clip[:, : recording.shape[1]] = recording[:, :people]
            fitted.append(clip)
        return join_clips(fitted, [0] * len(fitted), names, self.layout, self.class_names, scores=self.scores)

    def sampler(self, store: ClipStore) -> ClipSampler:
        return make_sampler(self.config, store)


def open_run(run: Path, checkpoint: Checkpoint = "last", device: torch.device = CPU) -> Trained:
    """Reads a run directory of `python -m shapmix.train`.

    Raises:
        ConfigError, CheckpointError, LayoutError: a run that cannot be read.
    """
    path = run / "checkpoints" / f"{checkpoint}.pt"
    state = read_checkpoint(path)
    config = parse_config(["--config", str(run / "config.yaml")])
    layout = parse_layout(state["layout_toml"], where=str(path))
    motion = state["mixer"].get("mean_motion")
    if not isinstance(motion, Tensor) or motion.dim() != 4 or motion.shape[2] != layout.num_joints or not motion.numel():
        raise CheckpointError(f"{path}: not a checkpoint of this trainer: its mean motion is none of layout '{layout.name}'")
    if not motion.isfinite().all():
        raise not_finite(path, "mean_motion")
    trained = Trained(nn.Identity(), config, layout, state["class_names"], motion.float(), bool(state.get("scores")))
    one = trained.store([torch.zeros(1, 1, layout.num_joints, trained.mean_motion.shape[0])], ["nothing"])
    network = make_network(config, one)
    load_weights(network, state["network"], path)
    return replace(trained, network=network.eval().to(device), device=device)


class WithData(NamedTuple):
    """A run as it was trained: the network with a checkpoint's weights, in eval mode; its mixer with its saliency, on the CPU."""

    config: TrainConfig
    splits: Splits
    network: nn.Module
    sampler: ClipSampler
    mixer: ShapMix


def open_with_data(run: Path, checkpoint: Checkpoint = "last", device: torch.device = CPU) -> WithData:
    """Reads a run directory and the data set that it was trained on.

    Raises:
        ConfigError, CheckpointError, DataError: a run or data that cannot be read.
    """
    config = parse_config(["--config", str(run / "config.yaml")])
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
