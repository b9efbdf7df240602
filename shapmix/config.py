"""What a run can be told: one typed configuration, from a data set's preset, a YAML file and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from shapmix.estimators import Estimator
from shapmix.mixing import Compat, Loss, Mode
from shapmix.reference.clips import Stream

DatasetName = Literal["synthetic", "nw-ucla"]
Baseline = Literal["plain", "balanced"]

NOT_SAVED = ("config", "resume", "run_dir")  # where a run came from, not what it is


@dataclass(frozen=True)
class NetworkConfig:
    """CTR-GCN."""

    widths: tuple[int, ...] = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)
    """Channels of each layer, multiples of 8; their number is the depth."""
    halve: tuple[int, ...] | None = None
    """Layers (counted from 0) that halve the frames; None: those that change the width."""
    graph_gain: float = 1e-6
    """Start of the graph units' BatchNorm weight; the published 1e-6 suits long runs, 1 short runs of small networks."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Optimiser and learning rate: linear warm-up, then steps or a cosine."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is with Nesterov momentum, as published."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 4e-4
    """Applied to every parameter."""
    warmup_epochs: int = 5
    decay: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of the epochs after which a step schedule divides the rate by 10."""


@dataclass(frozen=True)
class SaliencyConfig:
    """Class saliency of the body parts."""

    estimator: Estimator | None = None
    """exact_subset: every coalition on a sixteenth of the samples; official: one drawn marginal on every sample; chain,
    chain_reverse: the prefixes of random orders of the parts; pair_table: a coalition and its complement, without rectifying. All
    at the same cost. exact: every coalition of every sample. None: official with --compat official, else exact_subset."""
    temperature: float = 0.2
    """Of the softmax over a class's combinations."""
    decay: float = 0.9
    """Of the class average."""
    warmup_epochs: int = 5
    """Epochs of ST-Mix, in which the saliency is measured with empty contexts."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a skeleton network with Shap-Mix.

    Values come from the data set's preset, then from --config, then from the command line.
    """

    config: Path | None = None
    """YAML file with any of the options below (nested as here)."""
    resume: Path | None = None
    """Run directory to go on with; its configuration holds, the command line may extend it (--epochs)."""
    run_dir: Path | None = None
    """Where to write; must be new. Default: the next free runs/DATASET-MIX-N."""

    dataset: DatasetName = "synthetic"
    """synthetic is generated from the seed; nw-ucla is read from --data-root."""
    data_root: Path | None = None
    """Folder of the data set."""
    imbalance: float | None = None
    """Largest over smallest class of the long-tailed training list; None keeps every training clip."""
    n_max: int | None = None
    """Training clips of the largest class; None: 100 of nw-ucla, 150 of synthetic."""
    train_list: Path | None = None
    """File with one training clip name a line, in place of a list made by rule."""
    min_frames: int = 1
    """Clips with fewer frames are left out, and named."""
    people: int | None = None
    """People of a clip that the network sees, the first ones; None: all that are recorded."""
    stream: Stream = "joint"
    num_frames: int = 64
    """Frames that a clip is resized to, or that are picked of it; a multiple of 4."""

    mix: Mode = "shapmix"
    loss: Loss = "balanced"
    """balanced adjusts the logits by the class prior."""
    compat: Compat = "default"
    """official reproduces the published code's departures from its paper."""
    baselines: tuple[Baseline, ...] = ()
    """Also train the same network without mixing (plain: cross-entropy; balanced: adjusted logits), and show all side by side."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)

    epochs: int = 100
    batch_size: int = 64
    """At least 3."""
    eval_every: int = 1
    """Epochs between evaluations on the validation split."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    backend: Literal["auto", "reference", "cpp", "triton", "cuda"] = "auto"
    """Of the kernels."""
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what it takes."""


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Preset, then the resumed run, then the file, then the command line; the later wins.

    Raises:
        ConfigError: an unreadable file, or values that contradict each other.
        SystemExit: an unknown key (the message names the nearest) or a value of the wrong type.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    early.add_argument("--resume", type=Path)
    early.add_argument("--dataset")
    known, _ = early.parse_known_args(argv)
    files = []
    if known.resume is not None:
        files.append(known.resume / "config.yaml")
    if known.config is not None:
        files.append(known.config)
    given = [(str(path), _read_yaml(path)) for path in files]
    dataset = known.dataset or next((values["dataset"] for _, values in reversed(given) if "dataset" in values), "synthetic")
    preset = Path(__file__).parent / "presets" / f"{dataset}.yaml"
    if preset.exists():  # an unknown data set is reported by the parser below
        given.insert(0, (f"preset {dataset}", _read_yaml(preset)))
    config = TrainConfig()
    for name, values in given:
        config = _parse(list(_as_arguments(values)), config, prog=name)
    config = _parse(list(argv), config, prog="shapmix.train")
    check_config(config)
    return config


def check_config(config: TrainConfig) -> None:
    """Raises ConfigError where values are out of range or contradict each other."""
    if config.mix != "none" and config.batch_size < 3:
        raise ConfigError(f"batch_size: mixing needs at least 3 clips in a batch, not {config.batch_size}")
    if config.people is not None and config.people < 1:
        raise ConfigError(f"people: at least 1, not {config.people}")
    if config.batch_size < 1 or config.epochs < 1 or config.eval_every < 1:
        raise ConfigError("batch_size, epochs and eval_every must be at least 1")
    if config.mix != "none" and (config.num_frames % 4 or config.num_frames < 8):
        raise ConfigError(f"num_frames: mixing windows need a multiple of 4, at least 8, not {config.num_frames}")
    if config.imbalance is not None and config.imbalance < 1:
        raise ConfigError(f"imbalance: largest over smallest class, at least 1, not {config.imbalance:g}")
    if config.imbalance is not None and config.train_list is not None:
        raise ConfigError("imbalance and train_list both choose the training clips; give one")
    if config.dataset == "synthetic" and (config.data_root is not None or config.train_list is not None):
        raise ConfigError("data_root and train_list are for data sets on disk; dataset 'synthetic' is generated")
    if config.dataset != "synthetic" and config.data_root is None:
        raise ConfigError(f"data_root: dataset '{config.dataset}' is read from a folder; give --data-root DIR")
    if config.mix == "shapmix" and config.saliency.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"saliency.warmup_epochs: Shap-Mix would begin after epoch {config.saliency.warmup_epochs} of {config.epochs}; "
            "lower it, or choose --mix stmix"
        )


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved configuration as YAML that --config takes."""
    values = {key: value for key, value in _plain(asdict(config)).items() if key not in NOT_SAVED}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _parse(arguments: list[str], default: TrainConfig, prog: str) -> TrainConfig:
    return tyro.cli(
        TrainConfig, args=arguments, default=default, prog=prog, config=(tyro.conf.FlagConversionOff,), console_outputs=True
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not a {type(values).__name__}")
    return values


def _as_arguments(values: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """Nested YAML -> the arguments that say the same, so that file and command line share one parser and its errors."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _as_arguments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
            yield from (str(item) for item in (value if isinstance(value, list) else [value]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value
