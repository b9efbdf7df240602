"""Builds what a configuration specifies: data, sampler, network, mixer, optimizer and training step."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shapmix.data import nw_ucla, synthetic
from shapmix.data.clips import ClipStore, Splits
from shapmix.data.order import passes
from shapmix.data.sampling import ClipSampler, Pipeline, mean_motion
from shapmix.data.splits import store_splits
from shapmix.data.store import open_store
from shapmix.kernels import unavailable
from shapmix.mixing import official
from shapmix.mixing.estimators import check_budget
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MIXERS
from shapmix.networks import own
from shapmix.networks.backbones import BACKBONES, find_backbone
from shapmix.networks.frozen import freeze
from shapmix.networks.head import drop_before_head, head_of, scale_classes
from shapmix.networks.synced_norm import sync_norms
from shapmix.process import cpu, parallel
from shapmix.process.errors import RunError
from shapmix.training.eager_step import EagerStep
from shapmix.training.options import TrainConfig
from shapmix.training.state import Training
from shapmix.training.step import TrainingStep, draws_on_host, reads_on_host

DEFERRED = 0.8  # of the epochs, before LDAM (as in its paper) and the action-aware loss (19 of 24, as published) weight classes

MIXER_OPS = ("coalition_inputs", "mix_clips", "draw_plan", "saliency_update", "balanced_mix_loss")  # that `backend` is for

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def load_splits(config: TrainConfig) -> Splits:
    """Loads the configured data set with the configured number of people.

    Raises:
        DataError: data that cannot be read, or that no classifier can be trained and tested on.
        RunError: more people than are recorded.
    """
    splits = read_splits(config)
    splits.check()
    if config.num_people is None:
        return splits
    if config.num_people > splits.store.num_people:
        raise RunError(f"num_people: {config.num_people} requested, but the clips have {splits.store.num_people}")
    store = replace(splits.store, frames=splits.store.frames[:, : config.num_people].contiguous())
    return replace(splits, store=store)


def read_splits(config: TrainConfig) -> Splits:
    """Loads the configured data set as recorded."""
    if config.dataset == "synthetic":
        return synthetic.make_synthetic(n_max=config.n_max or synthetic.N_MAX, imbalance=config.imbalance or 1.0, seed=config.seed)
    assert config.data_root is not None  # check_config
    if config.dataset == "store":
        return store_splits(
            open_store(config.data_root),
            config,
            imbalance=config.imbalance,
            n_max=config.n_max,
            train_list=config.train_list,
            min_frames=config.min_frames,
            drop_empty_classes=config.drop_empty_classes,
            drop_classes=config.drop_classes,
            seed=config.seed,
        )
    return nw_ucla.load_nw_ucla(
        config.data_root,
        imbalance=config.imbalance,
        n_max=config.n_max or nw_ucla.N_MAX,
        train_list=config.train_list,
        min_frames=config.min_frames,
        drop_empty_classes=config.drop_empty_classes,
        seed=config.seed,
    )


def make_sampler(config: TrainConfig, store: ClipStore) -> ClipSampler:
    """The configured sampling pipeline, or the one that is common for this kind of data set.

    Raises:
        RunError: the pipeline cannot take clips with scores.
    """
    pipeline: Pipeline = "segments" if store.scores else "frames" if store.layout.name == "ucla20" else "crop"
    if config.pipeline != "auto":
        pipeline = config.pipeline
    if store.scores and pipeline != "segments":
        raise RunError(f"pipeline: '{pipeline}' would treat the confidence score as a coordinate; choose segments")
    return ClipSampler(store, pipeline, config.stream, config.num_frames, seed=config.seed, augment=config.augment)


def make_network(config: TrainConfig, store: ClipStore) -> nn.Module:
    """Builds the configured backbone for the store's skeleton and classes.

    Raises:
        RunError: the backbone cannot be imported or made.
    """
    name = config.network.backbone
    size = {"num_classes": store.num_classes, "num_people": store.num_people, "in_channels": store.num_coordinates}
    network = own.called(name, find_backbone(name).make, {"layout": store.layout, **size, **backbone_options(config)})
    if config.network.class_scale:
        try:
            scale_classes(network, store.num_classes)
        except ValueError as error:
            raise RunError(f"network.class_scale: {error}") from error
    if config.network.dropout:
        try:
            drop_before_head(network, store.num_classes, config.network.dropout)
        except ValueError as error:
            raise RunError(f"network.dropout: {error}") from error
    return network


def backbone_options(config: TrainConfig) -> dict[str, Any]:
    """The options of `--network` that the configured backbone takes; those that are None keep the backbone's own default.

    Raises:
        RunError: drop_path of a backbone without it.
    """
    taken = find_backbone(config.network.backbone).options
    if config.network.drop_path is not None and "drop_path" not in taken:
        with_it = ", ".join(name for name, each in BACKBONES.items() if "drop_path" in each.options)
        raise RunError(f"network.drop_path: backbone '{config.network.backbone}' has none; omit it, or choose one of {with_it}")
    options = {option: getattr(config.network, option) for option in taken}
    return {option: value for option, value in options.items() if value is not None}


def make_mixer(config: TrainConfig, splits: Splits, sampler: ClipSampler, steps: int) -> ShapMix:
    """Builds Shap-Mix with the class counts and mean motion of the data; converts schedules from epochs to steps.

    Raises:
        RunError: the mixer cannot mix clips of this skeleton or these coordinates, or the budget is too small for its estimator.
    """
    store = splits.store
    if wrong := MIXERS[config.mix].unfit(store.layout, store.dimension, store.scores):
        raise RunError(f"mix: '{config.mix}' {wrong}; choose another mix")
    if wrong := config.rule.unfit(store.layout, store.num_coordinates, store.scores):
        raise RunError(wrong)
    motion = (official.mean_motion if config.compat == "official" else mean_motion)(sampler, splits.train)
    given = config.saliency_from is not None
    warmup = 0 if given else config.saliency.warmup_epochs
    mixer = ShapMix(
        store.layout,
        splits.class_counts(),
        motion,
        mix=config.mix,
        loss=config.loss,
        estimator=config.saliency.estimator,
        budget=config.saliency.budget,
        every=config.saliency.every,
        compat=config.compat,
        temperature=config.saliency.temperature,
        blend_probability=config.blend_probability,
        label_smoothing=config.label_smoothing,
        rule=config.rule,
        scores=store.scores,
        decay=config.saliency.decay,
        tail_aware=config.saliency.tail_aware,
        warmup_steps=warmup * steps,
        # the published code's averaging begins one epoch after its contexts do
        replace_steps=(warmup + 1 if config.compat == "official" and not given else warmup) * steps,
        deferred_steps=int(DEFERRED * config.epochs) * steps,
        seed=config.seed,
        backend=None if config.backend == "auto" else config.backend,
    )
    if mixer.budget is not None and MIXERS[config.mix].guided:
        try:
            check_budget(mixer.estimator, store.layout, mixer.budget, config.batch_size)
        except ValueError as error:
            raise RunError(f"saliency.budget: {error}") from error
    return mixer


def make_optimizer(network: nn.Module, config: TrainConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """Builds the optimizer of the parameters that are not frozen; `fused` selects torch's fused GPU kernel."""
    schedule, weights = config.schedule, [weight for weight in network.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": weights}]
    if schedule.decayed == "matrices":
        of_one_axis = [weight for weight in weights if weight.dim() < 2]
        groups = [{"params": [weight for weight in weights if weight.dim() > 1]}, {"params": of_one_axis, "weight_decay": 0.0}]
    options: dict[str, Any] = {"lr": schedule.lr, "weight_decay": schedule.weight_decay, "fused": fused or None}
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    return torch.optim.SGD(groups, momentum=schedule.momentum, nesterov=schedule.nesterov, **options)


def make_training(config: TrainConfig, splits: Splits, sampler: ClipSampler, steps: int, device: torch.device) -> Training:
    """Builds network, mixer and optimizer on the device for `steps` steps per epoch, before the first step."""
    network = make_network(config, splits.store).to(device)
    if ":" in config.network.backbone:
        store = splits.store
        shape = (store.num_coordinates, config.num_frames, store.layout.num_joints, store.num_people)
        own.try_out(config.network.backbone, network, shape, store.num_classes, device)
    if config.freeze:
        try:
            freeze(network, config.freeze, head_of(network, splits.store.num_classes))
        except ValueError as error:
            raise RunError(str(error)) from error
    if parallel.ranks() > 1 and config.sync_batchnorm:
        sync_norms(network)
    optimizer = make_optimizer(network, config, fused=device.type == "cuda")
    average = None
    if config.ema is not None:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    if config.compile:
        network.compile()
    mixer = make_mixer(config, splits, sampler, steps).to(device)
    return Training(network, mixer, optimizer, average)


def make_step(
    config: TrainConfig, run: Training, sampler: ClipSampler, device: torch.device
) -> tuple[TrainingStep | EagerStep, str]:
    """Builds the captured step if it is possible and not disabled, otherwise the eager step; also returns a short description.

    Raises:
        RunError: a CUDA graph was asked for and cannot be; a batch that does not divide into processes and passes.
    """
    reason = "as asked for" if config.cuda_graph == "never" else not_captured(config, run.mixer, device)
    if reason is None and config.cuda_graph == "auto" and not find_backbone(config.network.backbone).on_device:
        reason = "a backbone may read values on the host; --cuda-graph always captures it all the same"
    if reason is not None and config.cuda_graph == "always":
        raise RunError(f"cuda_graph: the step cannot be captured as a CUDA graph: {reason}")
    store, autocast = sampler.store, PRECISIONS[config.precision]
    try:
        rows = passes(config.batch_size, parallel.rank(), parallel.ranks(), config.accumulate)
    except ValueError as error:
        raise RunError(f"{error}; change one of them") from error
    if reason is None:
        given = sampler.pipeline != "crop" or store.frames.device != device
        parts = (run.network, run.mixer, run.optimizer, sampler, config.batch_size)
        step = TrainingStep(*parts, clips_given=given, autocast=autocast, clip_norm=config.schedule.clip_norm)
        return step, "CUDA graph: on"
    clip_norm, sam, synced = config.schedule.clip_norm, config.schedule.sam, config.sync_batchnorm
    eager = EagerStep(run, store.labels, rows, autocast, sync_batchnorm=synced, clip_norm=clip_norm, sam=sam)
    return eager, f"CUDA graph: off ({reason})"


def not_captured(config: TrainConfig, mixer: ShapMix, device: torch.device) -> str | None:
    """The reason why the step cannot be captured as a CUDA graph, or None."""
    if device.type != "cuda":
        return f"the device is {device}"
    if parallel.ranks() > 1 and config.cuda_graph != "always":
        return "several processes; --cuda-graph always captures their collectives too"
    if config.accumulate > 1:
        return f"a step is {config.accumulate} passes"
    if config.schedule.sam is not None:
        return "SAM passes every batch twice"
    if config.compile:
        return "--compile"
    return draws_on_host(mixer) or reads_on_host(mixer)


def check_machine(config: TrainConfig, device: torch.device) -> None:
    """Checks before training that this machine can run the configuration.

    Raises:
        RunError: back ends that cannot run on the device, or bfloat16 on a CPU that has no products of it, without `force`.
    """
    for key, name, ops in (("backend", config.backend, MIXER_OPS), ("SHAPMIX_BACKEND", os.environ.get("SHAPMIX_BACKEND"), (None,))):
        if name in (None, "auto"):
            continue
        try:
            reason = next(filter(None, (unavailable(str(name), device, torch.float32, op) for op in ops)), None)
        except ValueError as error:
            raise RunError(f"{key}: {error}, or auto") from error
        if reason is not None:
            raise RunError(f"{key}: '{name}' cannot run on {device}: {reason}")
    if config.precision == "bf16" and device.type == "cpu" and not config.force and cpu.multiplies_bf16() is False:
        raise RunError(
            "precision: this CPU has no bfloat16 arithmetic (no avx512_bf16, no amx_bf16), so training in bf16 is several times "
            "slower than in fp32; omit --precision, or use --force"
        )
