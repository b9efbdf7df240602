"""BatchNorms in training mode with shortcut and ReLU in the same pass: the op `batch_norm` in place of a network's modules.

A convolution before them is computed without its bias, which only shifts the running mean: see `convolved` and `normalised`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shapmix.kernels import batch_norm
from shapmix.networks.convolution import convolution
from shapmix.networks.synced_norm import SyncedBatchNorm, synced_batch_norm


def can_be_fused(layer: nn.Module, norms: Sequence[nn.Module]) -> bool:
    """Whether a layer in training mode may compute some of its norms with `normalised`, and call no other of its modules.

    That is so for BatchNorms in training mode with running statistics, without hooks on any part of the layer, and without other
    convolutions in place of its own.
    """
    return all(map(_is_plain_norm, norms)) and all(_is_plain(part) for part in layer.modules() if part is not layer)


def _is_plain_norm(norm: Any) -> bool:
    if type(norm) not in (nn.BatchNorm2d, SyncedBatchNorm) or not norm.training:
        return False
    return norm.affine and norm.running_mean is not None and norm.momentum is not None


def _is_plain(part: nn.Module) -> bool:
    if isinstance(part, nn.Conv2d) and type(part) is not nn.Conv2d:
        return False
    return not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)


def convolved(x: Tensor, convs: Sequence[Any]) -> Tensor:
    """Convolutions of one input x [N, C, T, V] that differ only in their weights, as one and without their biases."""
    return convolution(x, _joined([conv.weight for conv in convs]), None, convs[0])


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors concatenated along the first axis; no copy of one alone."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def normalised(
    x: Tensor,
    norms: Sequence[Any],
    *,
    rectify: bool = True,
    shortcut: Tensor | None = None,
    biases: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Several BatchNorms in training mode on consecutive channels of x [N, C, T, V], as one call; updates running statistics.

    Args:
        rectify: with a ReLU.
        shortcut: [N, C, T, V] in the dtype of x, added before the ReLU.
        biases: per norm, the bias [C] of the convolution before it if x is without it, or None. Their gradients are zeros.

    A norm in eval mode, one that is frozen, uses its statistics and keeps them; all are then called one by one, and so are norms of
    different eps.
    """
    biases = [None] * len(norms) if biases is None else biases
    if not all(norm.training for norm in norms) or len({norm.eps for norm in norms}) > 1:
        parts = x.split([norm.num_features for norm in norms], 1)
        parts = [part if bias is None else part + bias.to(x.dtype)[:, None, None] for part, bias in zip(parts, biases, strict=True)]
        y = torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], 1)
        y = y if shortcut is None else y + shortcut
        return torch.relu(y) if rectify else y
    weight, bias = (_joined([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    if any(given is not None for given in biases):  # for gradients of zero, as weight decay acts on parameters that have one
        zeros = [torch.zeros_like(norm.bias) if given is None else 0 * given for norm, given in zip(norms, biases, strict=True)]
        bias = bias + _joined(zeros)
    if isinstance(norms[0], SyncedBatchNorm):
        y, mean, variance, all_rows = synced_batch_norm(x, weight, bias, norms[0].eps)
        y = y if shortcut is None else y + shortcut
        y = torch.relu(y) if rectify else y
        correction = (all_rows / (all_rows - 1).clamp(min=1)).to(variance.dtype)  # on the device: no host read
    else:
        lowest = torch.full_like(bias.detach(), 0.0 if rectify else -torch.inf)
        y, mean, variance = batch_norm(x, weight, bias, lowest, shortcut=shortcut, eps=norms[0].eps)
        rows = x.numel() // x.shape[1]
        correction = variance.new_full((), rows / max(rows - 1, 1))
    with torch.no_grad():
        unbiased = variance * correction
        widths = [norm.num_features for norm in norms]
        for norm, given, new_mean, new_var in zip(norms, biases, mean.split(widths), unbiased.split(widths), strict=True):
            norm.running_mean.lerp_(new_mean if given is None else new_mean + given, norm.momentum)
            norm.running_var.lerp_(new_var, norm.momentum)
            norm.num_batches_tracked.add_(1)
    return y


def normalised_conv(x: Tensor, conv: Any, norm: Any) -> Tensor:
    """A convolution and the BatchNorm after it, in training mode, without a ReLU."""
    return normalised(convolved(x, [conv]), [norm], rectify=False, biases=[conv.bias])
