"""What a run can be told: every option with its default, the values it takes, and what may change on resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite, pi
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from shapmix.data.order import SAMPLERS
from shapmix.data.pools import SplitOptions
from shapmix.data.sampling import NetworkStream
from shapmix.draws.augment import AugmentConfig
from shapmix.mixing.estimators import ESTIMATORS
from shapmix.mixing.losses import LOSSES
from shapmix.mixing.mixer import Compat
from shapmix.mixing.mixers import MIXERS
from shapmix.mixing.rule import Rule
from shapmix.networks.backbones import BACKBONES
from shapmix.networks.skeleton_graph import WIDTHS
from shapmix.process.command import ComputeOptions, RegisteredName
from shapmix.process.errors import ShapmixError

DatasetName = Literal["synthetic", "nw-ucla", "store"]
Baseline = Literal["plain", "balanced"]
Adjustment = float | Literal["validation"]
Stage2 = Literal["crt", "lws"]


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
    widths: tuple[int, ...] | None = None
    """Output channels of each layer, multiples of 8; the number of values is the depth. None: as published with the backbone."""
    halve: tuple[int, ...] | None = None
    """Indices of the layers that halve the frames, from 0. None, or if only widths are set: the layers that change the width."""
    graph_gain: float = 1e-6
    """Initial BatchNorm weight of the graph units; the published 1e-6 suits long runs, 1 suits short runs of small networks."""
    dropout: float = 0.0
    """Dropout before the head in training. Its draws depend on the device and on how a batch is divided into processes and passes;
    so do those of drop_path."""
    drop_path: float | None = None
    """Stochastic depth of ctrgcn and skateformer: the probability that a training step drops the last layer but for its shortcut,
    for each person of a clip (skateformer: each clip), with less for the layers before. None: 0, for skateformer the published 0.2.
    On a GPU the layers of ctrgcn then run op by op."""
    class_scale: bool = False
    """Learnable weight scaling: the head multiplies the logit of each class by a learned factor, which starts at 1."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Optimizer and learning rate: linear warm-up, then a step or cosine schedule."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov momentum, as published."""
    weight_decay: float = 4e-4
    decayed: Literal["all", "matrices"] = "all"
    """Weights that weight_decay applies to. all, as published; matrices leaves out biases, norms and other weights of one axis."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all weights; a gradient above is scaled down to it. None, as published: no limit."""
    sam: float | None = None
    """Sharpness-aware minimization: the radius rho, such as 0.05. A step passes its batch twice, in twice the time. None: off."""
    warmup_epochs: int = 5
    """Epochs in which the learning rate rises linearly, the last of which has the peak; a cosine begins after them."""
    decay: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the epochs after which a step schedule divides the learning rate by 10."""
    per: Literal["epoch", "step"] = "epoch"
    """Whether a cosine changes the learning rate after every epoch or after every training step."""
    final: float = 0.0
    """Fraction of lr at which a cosine ends."""


@dataclass(frozen=True)
class SaliencyConfig:
    """Class saliency of the body parts."""

    estimator: Estimator | None = None
    """exact_subset: all coalitions of a sixteenth of the samples; official: one random marginal of every sample; chain,
    chain_reverse: prefixes of random orders of the parts; pair_table: a coalition and its complement, without ReLU. These have
    the same cost. naive: a combination without other parts, at half the cost. exact: all coalitions of all samples. None: official
    with --compat official, otherwise exact_subset."""
    temperature: float = 0.2
    """Softmax temperature over the combinations of a class."""
    budget: float | None = None
    """Most forward passes per clip of a measurement, such as 1; fewer clips are then measured. None: the published 2."""
    every: int = 1
    """Measure in every K-th step only. The decay applies per measurement, so the averages remember K times as many steps."""
    decay: float = 0.9
    """Decay of the moving average of each class."""
    tail_aware: bool = True
    """Keep the salient parts of the rarer class of a pair; otherwise those of the clip that is pasted into."""
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
    """A published recipe: kinetics, ntu120, ntu120-lt, ntu120-lt-brl, ntu60, ntu60-lt, ntu60-lt-brl, nw-ucla, nw-ucla-lt; or
    synthetic. None: the one named like the data set. Each names its source in its file; the page Recipes lists them."""
    config: Path | None = None
    """YAML file with any of the options below (nested as here)."""
    resume: Path | None = None
    """Run directory to resume. Its configuration is kept; some options, such as --epochs, may be changed."""
    run_dir: Path | None = None
    """Output directory; must be new. Default: the next free runs/DATASET-MIX-N."""

    init_from: Path | None = None
    """Start from the weights of a run directory, a checkpoint, or a published file: a state dict of this network, from PYSKL too.
    A head of other classes is reset. With a run directory, --network is that of the run. Resuming does not read it again."""
    stage2: Stage2 | None = None
    """Second stage of training for --init-from: crt trains a new head, lws a factor per class; everything else is frozen. It sets
    reset, freeze, sampler, mix, loss, epochs and schedule; with a run directory, all other options are those of the run."""
    reset: tuple[str, ...] = ()
    """Weights that --init-from leaves at their initial values: head, or names or modules such as l10 or *.PA."""
    freeze: tuple[str, ...] = ()
    """Weights that are not trained: backbone (all but the head), or names or modules such as l1 or *.bn. Frozen BatchNorms keep
    their running statistics."""
    saliency_from: Path | None = None
    """Start from the class saliency of a run directory, a checkpoint, or a published .npy table [classes, combinations]; there is
    then no warm-up of the saliency."""

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

    pipeline: Literal["auto", "crop", "frames", "segments"] = "auto"
    """How clips become num_frames frames: crop and resize them (NTU), draw frames of all (NW-UCLA), or one frame from each of
    num_frames segments (PYSKL). auto: segments of clips with scores, frames of layout ucla20, crop of the others."""
    sampler: Sampler = "instance"
    """Sampling of an epoch: instance takes every clip once; shapmix.data.order describes those that favour rare classes."""
    mix: Mix = "shapmix"
    """stmix is Shap-Mix without saliency, mixup blends whole clips; shapmix.mixing.mixers describes the others."""
    loss: Loss = "balanced"
    """balanced adjusts the logits by the class prior; ce is cross-entropy; shapmix.mixing.losses describes the others."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes, in every loss: the loss of a clip is that of its label, and for this
    share the mean of the losses that each class would have as its label."""
    blend_probability: float = 0.25
    """Fraction of batches in which shapmix and stmix apply Mixup to whole clips instead of pasting, as published."""
    compat: Compat = "default"
    """official reproduces the published code where it differs from its paper."""
    baselines: tuple[Baseline, ...] = ()
    """Also train the same network without mixing (plain: cross-entropy; balanced: adjusted logits) and compare all in a table."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    rule: Rule = field(default_factory=Rule)

    epochs: int = 100
    repeat: int = 1
    """Passes over the training clips per epoch, shuffled together."""
    batch_size: int = 64
    """Global batch size over all processes and passes; at least 3. The learning rate refers to this batch size."""
    accumulate: int = 1
    """Gradient accumulation: passes per step and process; BatchNorm statistics are per pass."""
    sync_batchnorm: bool = True
    """Distributed training: BatchNorm over the clips of all processes, so that results match those of one process."""
    eval_every: int = 1
    """Epochs between evaluations on the validation split."""
    test_clips: int = 1
    """Views of a clip in the final test, whose probabilities are averaged: 1 is the centre of the clip, more are random crops or
    selections of frames, the same ones for all clips. Validation has 1."""
    test_mirror: bool = False
    """Also average over each of these views with left and right swapped."""
    patience: int | None = None
    """Early stopping after this many evaluations without improvement."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, such as 0.999; the average is evaluated."""
    logit_adjustment: Adjustment | None = None
    """Post-hoc logit adjustment of the final test (not of training): tau, or validation to choose it on the validation clips."""
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


class ConfigError(ShapmixError, ValueError):
    """A configuration that cannot be used; the message names the key and what it takes."""


def _at_least(least: float) -> Callable[[float], bool]:
    return lambda value: least <= value < inf


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {  # key -> whether it takes a value, and what it takes
    **dict.fromkeys(
        (
            *("num_people", "min_frames", "n_max", "batch_size", "epochs", "repeat", "accumulate", "eval_every", "test_clips"),
            *("picture_every", "threads", "saliency.every"),
            *("patience", "checkpoint.keep", "checkpoint.every_steps"),
        ),
        (_at_least(1), "must be at least 1"),
    ),
    "imbalance": (_at_least(1), "largest over smallest class, at least 1"),
    "ema": (lambda value: 0 < value < 1, "a decay between 0 and 1"),
    "blend_probability": (lambda value: 0 <= value <= 1, "a share of the batches, between 0 and 1"),
    **dict.fromkeys(("seed", "split_seed"), (lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1")),
    "logit_adjustment": (lambda value: value == "validation" or 0 <= value < inf, "a tau of at least 0, or validation"),
    "network.widths": (lambda value: value >= 8 and value % 8 == 0, "each a multiple of 8"),
    "network.graph_gain": (isfinite, "a finite number"),
    "schedule.lr": (lambda value: 0 < value < inf, "above 0"),
    "schedule.sam": (lambda value: 0 < value < inf, "a radius above 0"),
    "schedule.weight_decay": (_at_least(0), "at least 0"),
    "schedule.warmup_epochs": (_at_least(0), "at least 0"),
    "schedule.milestones": (lambda value: 0 <= value <= 1, "each a share of the epochs, between 0 and 1"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a share of the labels, at least 0 and below 1"),
    **dict.fromkeys(
        ("network.dropout", "network.drop_path"), (lambda value: 0 <= value < 1, "a probability, at least 0 and below 1")
    ),
    "schedule.clip_norm": (lambda value: 0 < value < inf, "above 0"),
    "schedule.final": (lambda value: 0 <= value <= 1, "a share of lr, from 0 to 1"),
    "saliency.temperature": (lambda value: 0 < value < inf, "above 0"),
    "saliency.budget": (lambda value: 0 < value < inf, "forward passes per clip, above 0"),
    "saliency.decay": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "saliency.warmup_epochs": (_at_least(0), "at least 0"),
    "checkpoint.every_minutes": (_at_least(0), "at least 0"),
    **dict.fromkeys(
        ("augment.mirror", "augment.swap", "augment.reverse", "augment.part_drop"),
        (lambda value: 0 <= value <= 1, "a probability, from 0 to 1"),
    ),
    "augment.joint_drop": (lambda value: 0 <= value < 1, "a probability, at least 0 and below 1"),
    **dict.fromkeys(
        ("augment.scale", "augment.stretch", "augment.speed"),
        (lambda value: 0 < value < inf, "the least and the largest factor, above 0"),
    ),
    **dict.fromkeys(("augment.shear", "augment.jitter"), (_at_least(0), "at least 0")),
    "augment.rotation": (lambda value: 0 <= value <= pi, "radians, from 0 to pi"),
}


def check_range(key: str, value: Any) -> None:
    """Raises ConfigError where a value, or one of a tuple, is not what `RANGES` says that the option takes; None always is."""
    takes, words = RANGES[key]
    for one in value if isinstance(value, tuple) else (value,):
        if one is not None and not takes(one):
            raise ConfigError(f"{key}: {words}, not {one:g}")


def check_config(config: TrainConfig) -> None:
    """Raises ConfigError where values are out of range or contradict each other."""
    if MIXERS[config.mix].mixes and config.batch_size < 3:
        raise ConfigError(f"batch_size: mixing needs at least 3 clips in a batch, not {config.batch_size}")
    for key in RANGES:
        check_range(key, attrgetter(key)(config))
    for name in ("scale", "stretch", "speed"):
        low, high = getattr(config.augment, name)
        if low > high:
            raise ConfigError(f"augment.{name}: the least factor comes first, not {low:g} {high:g}")
    if config.network.widths == ():
        raise ConfigError("network.widths: at least one layer")
    layers = len(config.network.widths or WIDTHS)
    for layer in config.network.halve or ():
        if not 0 <= layer < layers:
            raise ConfigError(f"network.halve: {layer} is none of the {layers} layers, which are 0 to {layers - 1}")
    _check_schedule(config.schedule)
    if MIXERS[config.mix].mixes and (config.num_frames % 4 or config.num_frames < 8):
        raise ConfigError(f"num_frames: mixing windows need a multiple of 4, at least 8, not {config.num_frames}")
    if config.init_from is None:
        for key in ("stage2", "reset", "freeze"):
            if getattr(config, key):
                raise ConfigError(f"{key}: there are no trained weights; give --init-from FILE")
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
    options = {"mix": config.mix, "loss": config.loss, "compat": config.compat}
    wrong = config.rule.contradiction(**options, label_smoothing=config.label_smoothing)
    if wrong is not None:
        raise ConfigError(wrong)
    if config.rule.align and config.stream != "joint":
        raise ConfigError(f"rule.align: moves joints to where they hang; stream '{config.stream}' has no positions, choose joint")
    if MIXERS[config.mix].positions and config.stream != "joint":
        raise ConfigError(f"mix: '{config.mix}' mixes positions of joints; stream '{config.stream}' has none, choose joint")
    if MIXERS[config.mix].guided and config.saliency_from is None and config.saliency.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"saliency.warmup_epochs: Shap-Mix would begin after epoch {config.saliency.warmup_epochs} of {config.epochs}; "
            "lower it, or choose --mix stmix"
        )


def _check_schedule(schedule: ScheduleConfig) -> None:
    if schedule.optimizer == "sgd" and not (0 if schedule.nesterov else -1) < schedule.momentum < 1:  # Nesterov's needs one
        raise ConfigError(f"schedule.momentum: above 0 and below 1, not {schedule.momentum:g}")
    if schedule.decay == "step" and schedule.per == "step":
        raise ConfigError("schedule.per: a step schedule changes between epochs; omit it, or choose --schedule.decay cosine")
    if schedule.decay == "step" and schedule.final:
        raise ConfigError("schedule.final: a step schedule ends at its last milestone; omit it, or choose --schedule.decay cosine")


# What --resume may change: how, where and how long a run goes on. Any other option is what the run computes, and is kept.
FREE_ON_RESUME = frozenset(
    (
        *("data_root", "train_list"),  # where the data lies: that it is the same is checked by its hash
        *("epochs", "eval_every", "patience", "non_finite", "baselines", "picture_every"),
        *("test_clips", "test_mirror"),
        *("checkpoint.every_minutes", "checkpoint.every_steps", "checkpoint.keep"),
        *("device", "threads", "backend", "cuda_graph", "compile", "deterministic"),  # the same numbers up to rounding
        "force",  # in bf16 as before
        "logit_adjustment",  # of the final test alone
    )
)


def options(config: TrainConfig) -> dict[str, Any]:
    """Every option by its name on the command line, such as schedule.lr, as plain values."""
    flat: dict[str, Any] = {}
    for key, value in plain(asdict(config)).items():
        flat |= {f"{key}.{below}": each for below, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def plain(value: Any) -> Any:
    """Paths and tuples as text and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value
