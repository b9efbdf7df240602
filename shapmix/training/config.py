"""What a run can be told: one typed configuration, from a data set's preset, a YAML file and the command line."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf, isfinite
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from shapmix.data.order import SAMPLERS
from shapmix.data.pools import SplitOptions
from shapmix.data.sampling import NetworkStream
from shapmix.mixing.estimators import ESTIMATORS
from shapmix.mixing.losses import LOSSES
from shapmix.mixing.mixer import Compat
from shapmix.mixing.mixers import MIXERS
from shapmix.networks.backbones import BACKBONES
from shapmix.process.command import ComputeOptions, RegisteredName, program
from shapmix.process.errors import ShapmixError
from shapmix.process.files import write_whole

DatasetName = Literal["synthetic", "nw-ucla", "store"]
Baseline = Literal["plain", "balanced"]


Mix = Annotated[str, RegisteredName(MIXERS)]
Loss = Annotated[str, RegisteredName(LOSSES)]
Estimator = Annotated[str, RegisteredName(ESTIMATORS)]
Sampler = Annotated[str, RegisteredName(SAMPLERS)]
BackboneName = Annotated[str, RegisteredName(BACKBONES, "MODULE:FUNCTION")]

NOT_SAVED = ("config", "preset", "resume", "run_dir")  # where a run came from, not what it is


@dataclass(frozen=True)
class NetworkConfig:
    """CTR-GCN, another registered network, or a custom one."""

    backbone: BackboneName = "ctrgcn"
    """A registered network, or a custom `module:function` that is called with layout, num_classes, num_people and in_channels and
    returns a module that maps clips [N, C, T, V, M] to logits [N, K]."""
    widths: tuple[int, ...] = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)
    """Output channels of each layer, multiples of 8; the number of values is the depth."""
    halve: tuple[int, ...] | None = None
    """Indices of the layers that halve the frames, from 0. None, or if only widths are set: the layers that change the width."""
    graph_gain: float = 1e-6
    """Initial BatchNorm weight of the graph units; the published 1e-6 suits long runs, 1 suits short runs of small networks."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Optimizer and learning rate: linear warm-up, then a step or cosine schedule."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd uses Nesterov momentum, as published."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    weight_decay: float = 4e-4
    """Applied to every parameter."""
    warmup_epochs: int = 5
    decay: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the epochs after which a step schedule divides the learning rate by 10."""


@dataclass(frozen=True)
class SaliencyConfig:
    """Class saliency of the body parts."""

    estimator: Estimator | None = None
    """exact_subset: all coalitions of a sixteenth of the samples; official: one random marginal of every sample; chain,
    chain_reverse: prefixes of random orders of the parts; pair_table: a coalition and its complement, without ReLU. These have
    the same cost. exact: all coalitions of all samples. None: official with --compat official, otherwise exact_subset."""
    temperature: float = 0.2
    """Softmax temperature over the combinations of a class."""
    decay: float = 0.9
    """Decay of the moving average of each class."""
    warmup_epochs: int = 5
    """Initial epochs with ST-Mix, in which the saliency is measured with empty contexts."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, in addition to the end of each epoch, SIGTERM and Ctrl-C."""

    every_minutes: float = 10.0
    """Minutes between checkpoints; 0 writes one every step."""
    every_steps: int | None = None
    keep: int = 2
    """Number of recent checkpoints to keep besides the best: last.pt, last-1.pt, and so on."""


@dataclass(frozen=True)
class TrainConfig(ComputeOptions, SplitOptions):
    """Train a skeleton network with Shap-Mix; `DESCRIPTION` says where values come from."""

    preset: str | None = None
    """A recipe: kinetics, ntu120, ntu120-lt, ntu60, ntu60-lt, nw-ucla, nw-ucla-lt, synthetic; None: the one named like the data
    set. nw-ucla-lt, ntu60-lt and ntu120-lt are the paper's recipe for long-tailed lists. ntu60, ntu120 and kinetics apply that to
    every training clip; it is not the recipe published for the balanced benchmarks."""
    config: Path | None = None
    """YAML file with any of the options below (nested as here)."""
    resume: Path | None = None
    """Run directory to resume. Its configuration is kept; some options, such as --epochs, may be changed."""
    run_dir: Path | None = None
    """Output directory; must be new. Default: the next free runs/DATASET-MIX-N."""

    dataset: DatasetName = "synthetic"
    """synthetic is generated from the seed; nw-ucla is read from --data-root; store is a folder written by shapmix.prepare."""
    data_root: Path | None = None
    """Folder of the data set."""
    imbalance: float | None = None
    """Ratio of the largest to the smallest class of the long-tailed training list; None keeps all training clips."""
    n_max: int | None = None
    """Training clips of the largest class; None: 100 for nw-ucla, 150 for synthetic."""
    train_list: Path | None = None
    """File with one training clip name per line, instead of a generated long-tailed list."""
    min_frames: int = 1
    """Clips with fewer frames are skipped and listed."""
    drop_empty_classes: bool = False
    """Drop and list classes without training clips, and renumber the others. Without this option such a class is an error."""
    drop_classes: tuple[str, ...] = ()
    """Names of classes that are dropped with all of their clips, and listed; the others are renumbered."""
    num_people: int | None = None
    """Number of people per clip that the network sees, the first ones; None: all recorded people."""
    stream: NetworkStream = "joint"
    """bone: joint minus parent; skip_bone: joint minus grandparent (the field's k); motion: next frame minus current frame."""
    num_frames: int = 64
    """Number of frames that clips are resized to or sampled at; a multiple of 4."""

    sampler: Sampler = "instance"
    """Sampling of an epoch: every clip once, classes by the square root of their size, classes uniformly, or the tail repeated."""
    mix: Mix = "shapmix"
    """stmix is Shap-Mix without saliency, mixup blends whole clips; shapmix.mixing.mixers describes the others."""
    loss: Loss = "balanced"
    """balanced adjusts the logits by the class prior; ce is cross-entropy; shapmix.mixing.losses describes the others."""
    blend_probability: float = 0.25
    """Fraction of batches in which shapmix and stmix apply Mixup to whole clips instead of pasting, as published."""
    compat: Compat = "default"
    """official reproduces the published code where it differs from its paper."""
    baselines: tuple[Baseline, ...] = ()
    """Also train the same network without mixing (plain: cross-entropy; balanced: adjusted logits) and compare all in a table."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)

    epochs: int = 100
    batch_size: int = 64
    """Global batch size over all processes and passes; at least 3. The learning rate refers to this batch size."""
    accumulate: int = 1
    """Gradient accumulation: passes per step and process; BatchNorm statistics are per pass."""
    sync_batchnorm: bool = True
    """Distributed training: BatchNorm over the clips of all processes, so that results match those of one process."""
    eval_every: int = 1
    """Epochs between evaluations on the validation split."""
    patience: int | None = None
    """Early stopping after this many evaluations without improvement."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, such as 0.999; the average is evaluated."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: the network runs under torch.autocast; weights, losses and saliency stay float32."""
    force: bool = False
    """Train in bf16 even on a CPU without bf16 arithmetic, where it is several times slower than fp32."""
    cuda_graph: Literal["auto", "always", "never"] = "auto"
    """Capture the training step on a GPU as one CUDA graph. auto: if possible, with CTR-GCN."""
    compile: bool = False
    """Apply torch.compile to the network; meant for custom backbones (CTR-GCN has fused kernels)."""
    non_finite: Literal["stop", "skip"] = "stop"
    """On a non-finite loss or gradient: stop with the state saved, or skip the step and continue."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    picture_every: int = 10
    """Epochs between pictures of the saliency and of a mixed clip in TensorBoard."""
    seed: int = 0
    deterministic: bool = False
    """Use deterministic operations only; an operation without a deterministic version is an error."""
    backend: Literal["auto", "reference", "cpp", "triton", "cuda"] = "auto"
    """Back end of the kernels."""


DESCRIPTION = """Train a skeleton network with Shap-Mix.

Values are taken from the preset, then --config, then the command line. With --preset, --dataset, --resume or --config, --help shows
the values that result."""

LARGEST_FILE, MOST_KEYS = 1 << 20, 1000  # bytes and keys of a configuration
PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """Names for --preset."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


class ConfigError(ShapmixError, ValueError):
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
    early.add_argument("--preset")
    early.add_argument("--run-dir")
    known, _ = early.parse_known_args(argv)
    if known.resume is not None and known.run_dir is not None:
        raise ConfigError(f"run_dir: --resume {known.resume} resumes in that directory; omit --run-dir")
    files = []
    if known.resume is not None:
        files.append(known.resume / "config.yaml")
    if known.config is not None:
        files.append(known.config)
    given = [(str(path), _read_yaml(path)) for path in files]
    dataset = known.dataset or next((values["dataset"] for _, values in reversed(given) if "dataset" in values), "synthetic")
    name = known.preset or dataset
    if known.preset is not None and known.preset not in presets():
        raise ConfigError(f"preset: '{known.preset}' is unknown; give one of {', '.join(presets())}")
    if name in presets():  # an unknown data set is reported by the parser below
        # an explicit preset overrides the resumed configuration, which may then reject it
        place = 1 if known.preset is not None and known.resume is not None else 0
        given.insert(place, (f"preset {name}", _read_yaml(PRESETS / f"{name}.yaml")))
    config = TrainConfig()
    for name, values in given:
        network = values.get("network")
        halves = isinstance(network, dict) and "halve" in network
        config = _of_these_widths(_parse_file(name, values, config), config, halves)
    whose = " and ".join(name for name, _ in given) or "no preset"
    given_above = config
    config = _parse(
        list(argv), config, prog=program("train"), description=f"{DESCRIPTION} The defaults below are those of {whose}."
    )
    config = _of_these_widths(config, given_above, any(argument.startswith("--network.halve") for argument in argv))
    check_config(config)
    return config


def _of_these_widths(config: TrainConfig, before: TrainConfig, halves: bool) -> TrainConfig:
    """`halve` belongs to the widths that it was set with: new widths alone reset it."""
    if halves or config.network.widths == before.network.widths:
        return config
    return replace(config, network=replace(config.network, halve=None))


def _at_least(least: float) -> Callable[[float], bool]:
    return lambda value: least <= value < inf


RANGES: dict[str, tuple[Callable[[float], bool], str]] = {  # key -> whether it takes a value, and what it takes
    **dict.fromkeys(
        (
            *("num_people", "min_frames", "n_max", "batch_size", "epochs", "accumulate", "eval_every", "picture_every", "threads"),
            *("patience", "checkpoint.keep", "checkpoint.every_steps"),
        ),
        (_at_least(1), "must be at least 1"),
    ),
    "imbalance": (_at_least(1), "largest over smallest class, at least 1"),
    "ema": (lambda value: 0 < value < 1, "a decay between 0 and 1"),
    "blend_probability": (lambda value: 0 <= value <= 1, "a share of the batches, between 0 and 1"),
    **dict.fromkeys(("seed", "split_seed"), (lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1")),
    "network.widths": (lambda value: value >= 8 and value % 8 == 0, "each a multiple of 8"),
    "network.graph_gain": (isfinite, "a finite number"),
    "schedule.lr": (lambda value: 0 < value < inf, "above 0"),
    "schedule.weight_decay": (_at_least(0), "at least 0"),
    "schedule.warmup_epochs": (_at_least(0), "at least 0"),
    "schedule.milestones": (lambda value: 0 <= value <= 1, "each a share of the epochs, between 0 and 1"),
    "saliency.temperature": (lambda value: 0 < value < inf, "above 0"),
    "saliency.decay": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "saliency.warmup_epochs": (_at_least(0), "at least 0"),
    "checkpoint.every_minutes": (_at_least(0), "at least 0"),
}


def check_config(config: TrainConfig) -> None:
    """Raises ConfigError where values are out of range or contradict each other."""
    if config.mix != "none" and config.batch_size < 3:
        raise ConfigError(f"batch_size: mixing needs at least 3 clips in a batch, not {config.batch_size}")
    for key, (takes, words) in RANGES.items():
        value = attrgetter(key)(config)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not takes(one):
                raise ConfigError(f"{key}: {words}, not {one:g}")
    if not config.network.widths:
        raise ConfigError("network.widths: at least one layer")
    layers = len(config.network.widths)
    for layer in config.network.halve or ():
        if not 0 <= layer < layers:
            raise ConfigError(f"network.halve: {layer} is none of the {layers} layers, which are 0 to {layers - 1}")
    if config.schedule.optimizer == "sgd" and not 0 < config.schedule.momentum < 1:  # Nesterov's needs one
        raise ConfigError(f"schedule.momentum: above 0 and below 1, not {config.schedule.momentum:g}")
    if config.mix != "none" and (config.num_frames % 4 or config.num_frames < 8):
        raise ConfigError(f"num_frames: mixing windows need a multiple of 4, at least 8, not {config.num_frames}")
    if config.imbalance is not None and config.train_list is not None:
        raise ConfigError("imbalance and train_list both choose the training clips; give one")
    wrong = config.contradiction()
    if wrong is not None:
        raise ConfigError(wrong)
    if config.dataset != "store":
        for name in ("drop_classes", *(option.name for option in fields(SplitOptions))):
            if getattr(config, name) != getattr(TrainConfig, name):
                raise ConfigError(
                    f"{name}: dataset '{config.dataset}' has fixed classes and a fixed split; convert the data with "
                    "shapmix.prepare and give --dataset store"
                )
    if config.dataset == "synthetic" and (config.data_root is not None or config.train_list is not None):
        raise ConfigError("data_root and train_list are for data sets on disk; dataset 'synthetic' is generated")
    if config.dataset != "synthetic" and config.data_root is None:
        raise ConfigError(f"data_root: dataset '{config.dataset}' is read from a folder; give --data-root DIR")
    if MIXERS[config.mix].guided and config.saliency.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"saliency.warmup_epochs: Shap-Mix would begin after epoch {config.saliency.warmup_epochs} of {config.epochs}; "
            "lower it, or choose --mix stmix"
        )


# What --resume may change: how, where and how long a run goes on. "kept" is what it computes, of which `config.yaml` has one value.
ON_RESUME: dict[str, Literal["free", "kept", "of the start"]] = {
    **dict.fromkeys(
        (
            *("data_root", "train_list"),  # where the data lies: that it is the same is checked by its hash
            *("epochs", "eval_every", "patience", "non_finite", "baselines", "picture_every"),
            *("checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep"),
            *("device", "threads", "backend", "cuda_graph", "compile", "deterministic"),  # the same numbers up to rounding
            "force",  # in bf16 as before
        ),
        "free",
    ),
    **dict.fromkeys(
        (
            *(
                "dataset",
                *("split", "test_share", "fold", "test_values", "train_split", "test_split", "split_seed"),
                "imbalance",
                "n_max",
                "min_frames",
                "drop_empty_classes",
                "drop_classes",
                "num_people",
                "stream",
                "num_frames",
            ),
            *(
                "sampler",
                "mix",
                "loss",
                "blend_probability",
                "compat",
                "batch_size",
                "accumulate",
                "sync_batchnorm",
                "ema",
                "precision",
                "seed",
            ),
            *("network.backbone", "network.widths", "network.halve", "network.graph_gain"),
            *("saliency.estimator", "saliency.temperature", "saliency.decay", "saliency.warmup_epochs"),
            *("schedule.optimizer", "schedule.lr", "schedule.momentum", "schedule.weight_decay"),
            *("schedule.warmup_epochs", "schedule.decay", "schedule.milestones"),
        ),
        "kept",
    ),
    **dict.fromkeys(NOT_SAVED, "of the start"),
}


def changed_on_resume(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Option -> (value that the run had, value that it goes on with), of those that differ.

    Raises:
        ConfigError: one that a run keeps.
    """
    old, new = options(before), options(now)
    changed = {key: (old[key], new[key]) for key in new if old[key] != new[key] and ON_RESUME[key] != "of the start"}
    for key, (had, wanted) in changed.items():
        if ON_RESUME[key] == "kept":
            raise ConfigError(
                f"{key}: the run was started with {had} and cannot go on with {wanted}; "
                "leave it out, or start a new run with --run-dir"
            )
    return changed


def options(config: TrainConfig) -> dict[str, Any]:
    """Every option by its name on the command line, such as schedule.lr, as plain values."""
    flat: dict[str, Any] = {}
    for key, value in plain(asdict(config)).items():
        flat |= {f"{key}.{below}": each for below, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved configuration as YAML that --config takes, whole or not at all."""
    values = {key: value for key, value in plain(asdict(config)).items() if key not in NOT_SAVED}
    write_whole(path, yaml.safe_dump(values, sort_keys=False))


def _parse(arguments: list[str], default: TrainConfig, prog: str, description: str = DESCRIPTION) -> TrainConfig:
    return tyro.cli(TrainConfig, args=arguments, default=default, prog=prog, description=description, console_outputs=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: more than {LARGEST_FILE} bytes are no configuration")
    try:
        values = yaml.safe_load(content)
    except Exception as error:  # YAML's constructors raise whatever Python makes of a value, such as KeyError for !!bool x
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not a {type(values).__name__}")
    _check_values(path, values)
    return values


def _check_values(path: Path, values: dict[Any, Any], group: str = "") -> None:
    """That a file holds names, values and lists of values, in groups one deep; aliases may make a large tree of a small file."""
    if len(values) > MOST_KEYS:
        raise ConfigError(f"{path}: {group or 'the file'} has {len(values)} keys, more than there are options")
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: keys are names of options, not {_short(key)}")
        if isinstance(value, dict):
            if key.replace("-", "_") in ON_RESUME:
                raise ConfigError(f"{path}: {_short(key)}: a value or a list of values, not a group")
            if group:
                raise ConfigError(f"{path}: {group}.{_short(key)} is a group inside a group; the options of {group} are values")
            _check_values(path, value, key)
            continue
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, (str, int, float, bool, type(None))):
                raise ConfigError(f"{path}: {_short(key)}: a value or a list of values, not a {type(item).__name__} in one")
            if isinstance(item, int) and item.bit_length() > 64:
                raise ConfigError(f"{path}: {_short(key)}: a number of {item.bit_length()} bits is out of range")


def _short(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _parse_file(name: str, values: dict[str, Any], default: TrainConfig) -> TrainConfig:
    with parser_errors(name):
        return _parse(list(as_arguments(values)), default, prog=name)


@contextmanager
def parser_errors(name: str) -> Iterator[None]:
    """Errors of the parser inside are those of the file `name`, in one line, and not those of the command line.

    Raises:
        ConfigError: an unknown key (the message names the nearest), a value of the wrong type, or values that contradict each
            other.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            yield
    except SystemExit:
        # without the frame around the message, of whichever characters
        words = re.sub(r"[╭╮╰╯│─+|]|-{3,}", " ", said.getvalue()).partition("For full helptext")[0].split()
        raise ConfigError(f"{name}: {' '.join(words)[:600]}") from None
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def as_arguments(values: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """Nested YAML -> the arguments that say the same, so that file and command line share one parser and its errors."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from as_arguments(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}" if value else f"{prefix}no-{key}"
        else:
            yield f"{prefix}{key}"
            yield from (str(item) for item in (value if isinstance(value, list) else [value]))


def plain(value: Any) -> Any:
    """Paths and tuples as text and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value
