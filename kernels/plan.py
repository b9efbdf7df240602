"""Drawing the mixing plan, on the fastest back end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapmix import reference
from shapmix.reference import MixPlan
from shapmix.reference.plan import window_range

from .checks import SUM_DTYPES, check_dtype, check_tensor
from .op import op


def draw_plan(
    labels: Tensor,
    saliency: Tensor,
    priority: Tensor,
    combinations: Tensor,
    part_of_joint: Tensor,
    num_frames: int,
    *,
    seed: int,
    step: int | Tensor,
    guided: bool = True,
    temperature: float = 0.2,
    blend_probability: float = 0.25,
    backend: str | None = None,
) -> MixPlan:
    """Draws partners, windows and pasted parts of a batch, without synchronising with the host.

    Guided by saliency (Shap-Mix), each sample draws a combination of parts from the softmax of the rarer class of its pair.
    If the partner's class is the rarer, the partner's combination is pasted; otherwise its complement, so that the sample
    keeps its own salient parts. Not guided (ST-Mix), one random combination is pasted in the whole batch.

    Args:
        labels: [N] int64 class ids, N at least 3.
        saliency: [K, Q] float32 or float64.
        priority: [K] int64, larger for more frequent classes (class counts; the published code uses K - class id).
        combinations: [Q] int64 bit sets, `Layout.combinations`.
        part_of_joint: [V] int64.
        num_frames: T, a multiple of 4 and at least 8.
        seed: random seed, 0 to 2^64 - 1.
        step: training step; a 0-dim int64 tensor on the device of the labels makes the op capturable in a CUDA graph.
        guided: True is Shap-Mix, False is ST-Mix.
        temperature: softmax temperature, above 0, in units of the saliency.
        blend_probability: probability that whole clips are blended (Mixup) instead of pasted; 1 is plain Mixup.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.

    Returns:
        The same plan as the reference for the same seed and step, on every back end. (The softmax is computed in float64; a
        draw could differ only within the last bits of a boundary.)

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device, there are fewer than 3 samples, the clip length has no windows,
            or the temperature is not positive; on CPU tensors also if a label is not a class or a combination has bits beyond
            the parts.
        BackendError: the requested back end cannot run.
    """
    shortest, longest = window_range(num_frames)
    fields, lam, blend = _draw_plan(
        labels,
        saliency,
        priority,
        combinations,
        part_of_joint,
        num_frames=num_frames,
        shortest=shortest,
        longest=longest,
        seed=seed,
        step=0 if isinstance(step, Tensor) else step,
        step_on_device=step if isinstance(step, Tensor) else None,
        guided=guided,
        temperature=temperature,
        blend_probability=blend_probability,
        backend=backend,
    )
    partner, parts, start, length, source_start, source_length = fields.unbind()
    return MixPlan(partner, parts, start, length, source_start, source_length, lam, blend)


def _reference(
    step: int, step_on_device: Tensor | None, shortest: int, longest: int, **arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    plan = reference.draw_plan(step=step if step_on_device is None else step_on_device, **arguments)
    *integers, lam, blend = vars(plan).values()
    return torch.stack(integers), lam, blend


@op(reference=_reference, outputs=("fields", "lam", "blend"), check_values="check_draw", chosen_by="saliency")
def _draw_plan(
    labels: Tensor,
    saliency: Tensor,
    priority: Tensor,
    combinations: Tensor,
    part_of_joint: Tensor,
    *,
    num_frames: int,
    shortest: int,
    longest: int,
    seed: int,
    step: int,
    step_on_device: Tensor | None,
    guided: bool,
    temperature: float,
    blend_probability: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The plan's integer fields [6, N] in the order of `MixPlan`, its `lam` and its `blend` [N].

    Windows span `shortest` to `longest` units of 4 frames. Outputs of a registered op may not alias, so the integers are one
    tensor.
    """
    device, n = labels.device, len(labels)
    if n < 3:
        raise ValueError(f"mixing needs a batch of at least 3 clips, not {n}: the partner shift is drawn from 1..N-2")
    if saliency.dim() != 2 or saliency.numel() == 0:
        raise ValueError(f"saliency has shape {list(saliency.shape)}; give [K, Q] with no axis empty")
    classes, columns = saliency.shape
    check_dtype("saliency", saliency, SUM_DTYPES)
    check_tensor("labels", labels, (n,), torch.int64, device, "labels")
    check_tensor("saliency", saliency, (classes, columns), saliency.dtype, device, "labels")
    check_tensor("priority", priority, (classes,), torch.int64, device, "labels")
    check_tensor("combinations", combinations, (columns,), torch.int64, device, "labels")
    check_tensor("part_of_joint", part_of_joint, part_of_joint.shape, torch.int64, device, "labels")
    if step_on_device is not None:
        check_tensor("step", step_on_device, (), torch.int64, device, "labels")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; give a number above 0")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; give an integer in 0..2^64-1")
    fields = labels.new_empty((6, n))
    return fields, fields.new_empty(n, dtype=torch.float64), fields.new_empty(n, dtype=torch.bool)
