"""The CPU back end: C++ called with raw pointers, on as many threads as torch uses."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from shapmix.reference import CropPlan, MixPlan

from .checks import DTYPES as ALL_DTYPES
from .checks import SUM_DTYPES, dtype_name, row_stride, set_strides

DTYPES = {
    "sample_clips": SUM_DTYPES,
    "coalition_inputs": ALL_DTYPES,
    "normalised_coalition_inputs": ALL_DTYPES,
    "mix_clips": ALL_DTYPES,
    "draw_plan": SUM_DTYPES,
    "saliency_update": ALL_DTYPES,
    "balanced_mix_loss": ALL_DTYPES,
    "graph_conv": (torch.float32, torch.float64, torch.bfloat16),
    "batch_norm": (torch.float32, torch.float64, torch.bfloat16),
    "join_branches": (torch.float32, torch.float64, torch.bfloat16),
}
_NAMES = {dtype: dtype_name(dtype) for dtype in ALL_DTYPES}


@cache
def load() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or None and the reason why it cannot be imported."""
    try:
        return import_module("shapmix._native"), None
    except ImportError as error:
        return None, f"shapmix._native cannot be imported ({error}): reinstall shapmix with a C++ compiler on the PATH"


def unavailable(device: torch.device) -> str | None:
    """The reason why it cannot run on tensors of a device, None if it can."""
    if device.type != "cpu":
        return f"it works on CPU tensors, not on {device}"
    return load()[1]


def sample_clips(out: Tensor, frames: Tensor, offsets: Tensor, plan: CropPlan, parents: Tensor, bone: bool, motion: bool) -> None:
    """Writes `out` [N, C, T, V, M]; all tensors are contiguous, the angles have the frames' dtype.

    Raises:
        ValueError: a plan row, offset or parent is out of range, or an angle is nonzero and C is not 3.
    """
    _module().sample_clips(
        out.data_ptr(),
        *_crops(frames, offsets, plan, parents),
        out.shape[2],
        bone,
        motion,
        _NAMES[frames.dtype],
        torch.get_num_threads(),
    )


def coalition_inputs(
    out: Tensor, clips: Tensor, mean_motion: Tensor, coalitions: Tensor, part_of_joint: Tensor, restored_frames: int
) -> None:
    """Writes `out` [S * N, C, T, V, M]; coalitions [S] or [S, N], 0 <= restored_frames <= T, planes [T, V, M] contiguous.

    Raises:
        ValueError: a coalition has a bit beyond the parts.
    """
    _module().coalition_inputs(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        mean_motion.data_ptr(),
        mean_motion.stride(0),
        coalitions.data_ptr(),
        coalitions.shape[0],
        set_strides(coalitions),
        part_of_joint.data_ptr(),
        restored_frames,
        clips.element_size(),
        torch.get_num_threads(),
    )


def normalised_coalition_inputs(
    out: Tensor,
    clips: Tensor,
    mean_motion: Tensor,
    coalitions: Tensor,
    part_of_joint: Tensor,
    weight: Tensor,
    bias: Tensor,
    restored_frames: int,
) -> None:
    """Writes `out` [S * N * M, C, T, V]; weight and bias [M, V, C] contiguous, the rest as in `coalition_inputs`.

    Raises:
        ValueError: as `coalition_inputs`.
    """
    _module().normalised_coalition_inputs(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        mean_motion.data_ptr(),
        mean_motion.stride(0),
        coalitions.data_ptr(),
        coalitions.shape[0],
        set_strides(coalitions),
        part_of_joint.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        restored_frames,
        clips.element_size(),
        _NAMES[clips.dtype],
        torch.get_num_threads(),
    )


def mix_clips(out: Tensor, clips: Tensor, plan: MixPlan, part_of_joint: Tensor) -> None:
    """Writes `out` [2N, C, T, V, M]; the plan's fields and the planes [T, V, M] are contiguous.

    Raises:
        ValueError: a plan row is out of range of the batch, the clip or the parts.
    """
    _module().mix_clips(
        out.data_ptr(),
        clips.data_ptr(),
        clips.shape,
        clips.stride()[:2],
        plan_addresses(plan),
        part_of_joint.data_ptr(),
        _NAMES[clips.dtype],
        torch.get_num_threads(),
    )


def draw_plan(
    fields: Tensor,
    lam: Tensor,
    blend: Tensor,
    labels: Tensor,
    saliency: Tensor,
    priority: Tensor,
    combinations: Tensor,
    part_of_joint: Tensor,
    num_frames: int,
    shortest: int,
    longest: int,
    seed: int,
    step: int | Tensor,
    guided: bool,
    temperature: float,
    blend_probability: float,
) -> None:
    """Writes `fields` [6, N] (partner, parts, start, length, source_start, source_length), `lam` and `blend` [N].

    Windows span `shortest` to `longest` units of 4 frames; all tensors are contiguous.

    Raises:
        ValueError: a label is not a class of the saliency, or a combination has a bit beyond the parts.
    """
    _module().draw_plan(
        fields.data_ptr(),
        lam.data_ptr(),
        blend.data_ptr(),
        labels.data_ptr(),
        labels.shape[0],
        saliency.data_ptr(),
        saliency.shape,
        _NAMES[saliency.dtype],
        priority.data_ptr(),
        combinations.data_ptr(),
        part_of_joint.data_ptr(),
        part_of_joint.shape[0],
        num_frames,
        shortest,
        longest,
        seed,
        int(step) & 0xFFFFFFFF,
        guided,
        temperature,
        blend_probability,
    )


def saliency_update(
    marginal: Tensor,
    table: Tensor,
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    with_rows: Tensor,
    without_rows: Tensor,
    weights: Tensor | None,
    joint_counts: Tensor,
    decay: float,
    scale: float,
) -> None:
    """Updates `table` [K, Q] and writes `marginal` [U]; rows and weights are [U, J], all tensors contiguous.

    Raises:
        ValueError: an index is out of range, or a combination has no joints; nothing is written then.
    """
    _module().saliency_update(
        marginal.data_ptr(),
        table.data_ptr(),
        table.shape,
        _NAMES[table.dtype],
        logits.data_ptr(),
        logits.shape[0],
        _NAMES[logits.dtype],
        labels.data_ptr(),
        columns.data_ptr(),
        labels.shape[0],
        with_rows.data_ptr(),
        without_rows.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        with_rows.shape[1],
        joint_counts.data_ptr(),
        decay,
        scale,
        torch.get_num_threads(),
    )


def balanced_mix_loss(
    losses: Tensor, row_sums: Tensor, logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor
) -> None:
    """Writes `losses` [2] and `row_sums` [L], the log-sum-exp of each row; both in the dtype of `log_prior`.

    Raises:
        ValueError: a label is not a class, or a partner is outside the batch.
    """
    _module().balanced_mix_loss(
        losses.data_ptr(), *_loss_rows(row_sums, logits, labels, partner, lam, log_prior), torch.get_num_threads()
    )


def balanced_mix_loss_backward(
    to_logits: Tensor,
    grad: Tensor,
    row_sums: Tensor,
    logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    lam: Tensor,
    log_prior: Tensor,
) -> None:
    """Writes `to_logits` [L, K] from `grad` [2], the gradient of the losses.

    Raises:
        ValueError: as `balanced_mix_loss`.
    """
    _module().balanced_mix_loss_backward(
        to_logits.data_ptr(),
        grad.data_ptr(),
        *_loss_rows(row_sums, logits, labels, partner, lam, log_prior),
        torch.get_num_threads(),
    )


def graph_conv(
    out: Tensor,
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
    offset: Tensor | None,
    shortcut: Tensor | None,
) -> None:
    """Writes `out` [N, C, T, V]; `out`, features and shortcut are rows of channels, the others contiguous."""
    _module().graph_conv(
        out.data_ptr(),
        features.data_ptr(),
        row_stride(features),
        relation_terms.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        shared.data_ptr(),
        0 if offset is None else offset.data_ptr(),
        0 if shortcut is None else shortcut.data_ptr(),
        0 if shortcut is None else row_stride(shortcut),
        _graph_sizes(features, weight),
        _NAMES[features.dtype],
        torch.get_num_threads(),
    )


def graph_conv_backward(
    to_features: Tensor,
    to_relation_terms: Tensor,
    to_weight: Tensor,
    to_bias: Tensor,
    to_shared: Tensor,
    grad: Tensor,
    features: Tensor,
    relation_terms: Tensor,
    weight: Tensor,
    bias: Tensor,
    shared: Tensor,
) -> None:
    """Writes the gradients; those of [N, C, T, V], `grad` and features are channels-last, the others contiguous."""
    gradients = (to_features, to_relation_terms, to_weight, to_bias, to_shared)
    _module().graph_conv_backward(
        tuple(gradient.data_ptr() for gradient in gradients),
        grad.data_ptr(),
        features.data_ptr(),
        row_stride(features),
        relation_terms.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        shared.data_ptr(),
        _graph_sizes(features, weight),
        _NAMES[features.dtype],
        torch.get_num_threads(),
    )


def _graph_sizes(features: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Rows, frames, joints, channels, subsets and relations."""
    subsets, relations, channels = weight.shape
    return (features.shape[0], *features.shape[2:], channels, subsets, relations)


def join_branches(
    out: Tensor,
    narrow: Tensor,
    wide: Tensor,
    middle: Tensor,
    skip: Tensor,
    shortcut: Tensor | None,
    scale: Tensor,
    offset: Tensor,
    frame_stride: int,
) -> None:
    """Writes `out` [N, 4 Q, T', V], channels-last; the branches and the shortcut are rows of channels."""
    n, width, frames, joints = middle.shape
    _module().join_branches(
        out.data_ptr(),
        [(branch.data_ptr(), row_stride(branch)) for branch in (narrow, wide, middle, skip)],
        (0, 0) if shortcut is None else (shortcut.data_ptr(), row_stride(shortcut)),
        scale.data_ptr(),
        offset.data_ptr(),
        (n, frames, joints, width),
        frame_stride,
        _NAMES[middle.dtype],
        torch.get_num_threads(),
    )


def batch_norm(
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    eps: float,
) -> None:
    """Writes `out` [N, C, T, V] and the statistics [C]; x and out are channels-last, the shortcut rows of channels."""
    _module().batch_norm(
        out.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        x.data_ptr(),
        0 if shortcut is None else shortcut.data_ptr(),
        0 if shortcut is None else row_stride(shortcut),
        weight.data_ptr(),
        bias.data_ptr(),
        lowest.data_ptr(),
        x.numel() // x.shape[1],
        x.shape[1],
        eps,
        _NAMES[x.dtype],
        torch.get_num_threads(),
    )


def batch_norm_backward(
    to_x: Tensor,
    to_shortcut: Tensor | None,
    to_weight: Tensor,
    to_bias: Tensor,
    grad: Tensor,
    out: Tensor,
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lowest: Tensor,
    eps: float,
) -> None:
    """Writes the gradients; all tensors of [N, C, T, V] are channels-last."""
    _module().batch_norm_backward(
        (to_x.data_ptr(), 0 if to_shortcut is None else to_shortcut.data_ptr(), to_weight.data_ptr(), to_bias.data_ptr()),
        grad.data_ptr(),
        out.data_ptr(),
        mean.data_ptr(),
        variance.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        lowest.data_ptr(),
        x.numel() // x.shape[1],
        x.shape[1],
        eps,
        _NAMES[x.dtype],
        torch.get_num_threads(),
    )


def plan_addresses(plan: MixPlan) -> tuple[int, ...]:
    """Pointers to the fields, in the order that the native modules expect."""
    return (
        plan.partner.data_ptr(),
        plan.parts.data_ptr(),
        plan.start.data_ptr(),
        plan.length.data_ptr(),
        plan.source_start.data_ptr(),
        plan.source_length.data_ptr(),
        plan.lam.data_ptr(),
        plan.blend.data_ptr(),
    )


def check_coalitions(coalitions: Tensor, part_of_joint: Tensor, shape: torch.Size) -> None:
    """The checks of `coalition_inputs`, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `coalition_inputs`.
    """
    if module := load()[0]:
        module.check_coalitions(coalitions.data_ptr(), len(coalitions), set_strides(coalitions), shape, part_of_joint.data_ptr())


def check_plan(plan: MixPlan, part_of_joint: Tensor, shape: torch.Size) -> None:
    """The checks of `mix_clips`, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `mix_clips`.
    """
    if module := load()[0]:
        module.check_plan(plan_addresses(plan), shape, part_of_joint.data_ptr())


def check_crops(frames: Tensor, offsets: Tensor, plan: CropPlan, parents: Tensor) -> None:
    """The checks of `sample_clips`, for the other back ends on CPU tensors; the angles have the accumulation dtype.

    Raises:
        ValueError: as `sample_clips`.
    """
    if module := load()[0]:
        module.check_crops(*_crops(frames, offsets, plan, parents), _NAMES[plan.angles.dtype])


def check_draw(labels: Tensor, saliency: Tensor, combinations: Tensor, part_of_joint: Tensor) -> None:
    """The checks of `draw_plan`, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `draw_plan`.
    """
    if module := load()[0]:
        module.check_draw(
            labels.data_ptr(), len(labels), saliency.shape, combinations.data_ptr(), part_of_joint.data_ptr(), len(part_of_joint)
        )


def check_updates(
    table: Tensor, logits: Tensor, labels: Tensor, columns: Tensor, with_rows: Tensor, without_rows: Tensor, joint_counts: Tensor
) -> None:
    """The checks of `saliency_update`, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `saliency_update`.
    """
    if module := load()[0]:
        module.check_updates(
            table.shape,
            len(logits),
            labels.data_ptr(),
            columns.data_ptr(),
            len(labels),
            with_rows.data_ptr(),
            without_rows.data_ptr(),
            with_rows.shape[1],
            joint_counts.data_ptr(),
        )


def check_targets(labels: Tensor, partner: Tensor, num_classes: int) -> None:
    """The checks of `balanced_mix_loss`, for the other back ends on CPU tensors.

    Raises:
        ValueError: as `balanced_mix_loss`.
    """
    if module := load()[0]:
        module.check_targets(labels.data_ptr(), partner.data_ptr(), len(labels), num_classes)


def _crops(frames: Tensor, offsets: Tensor, plan: CropPlan, parents: Tensor) -> tuple[object, ...]:
    return (
        frames.data_ptr(),
        frames.shape,
        offsets.data_ptr(),
        offsets.shape[0] - 1,
        plan.clip.data_ptr(),
        plan.start.data_ptr(),
        plan.length.data_ptr(),
        plan.angles.data_ptr(),
        plan.clip.shape[0],
        parents.data_ptr(),
    )


def _loss_rows(
    row_sums: Tensor, logits: Tensor, labels: Tensor, partner: Tensor, lam: Tensor, log_prior: Tensor
) -> tuple[object, ...]:
    return (
        row_sums.data_ptr(),
        logits.data_ptr(),
        logits.shape,
        _NAMES[logits.dtype],
        labels.data_ptr(),
        partner.data_ptr(),
        labels.shape[0],
        lam.data_ptr(),
        log_prior.data_ptr(),
    )


def _module() -> ModuleType:
    module, reason = load()
    if module is None:
        raise ImportError(reason)
    return module
