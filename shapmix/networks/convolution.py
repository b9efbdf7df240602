"""Convolutions over frames in channels-last memory, in the shapes that oneDNN computes fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

HAS_ONEDNN = torch.backends.mkldnn.is_available()  # here, since torch.compile does not trace the call
IMAGES = 16  # with fewer images and one thread, torch leaves oneDNN for a slower 1x1 convolution


def is_by_onednn(x: Tensor) -> bool:
    """Whether torch computes convolutions of x with oneDNN."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and HAS_ONEDNN


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, like: Any) -> Tensor:
    """x [N, C, T, V] in channels-last memory, weight [C', C, K, 1], bias [C'] -> [N, C', T', V] in channels-last memory.

    Stride, padding and dilation are those of the module `like`.
    """
    (dilation, _), (stride, _), (padding, _) = like.dilation, like.stride, like.padding
    if weight.shape[2] == 1 and stride == 1:
        return pointwise(x, weight, bias)
    if dilation > 1 and stride == 1 and x.shape[2] % dilation == 0 and padding % dilation == 0 and is_by_onednn(x):
        return _undilated(x, weight, bias, dilation, padding)
    return conv2d(x, weight, bias, like.stride, like.padding, like.dilation)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, T, V] in channels-last memory, weight [C', C, 1, 1], bias [C'] -> [N, C', T, V] in channels-last memory.

    oneDNN is fastest on images of one long row each, whatever N is. The gradient of the bias is summed here, which takes a
    fraction of oneDNN's time.
    """
    if not is_by_onednn(x):
        return conv2d(x, weight, bias)
    n, channels, frames, joints = x.shape
    images = IMAGES if n * frames * joints % IMAGES == 0 else n * frames
    rows = x.permute(0, 2, 3, 1).reshape(images, 1, -1, channels).permute(0, 3, 1, 2)
    if bias is None or not bias.requires_grad or torch.compiler.is_compiling():  # it would warn of the function below
        rows = conv2d(rows, weight, bias)
    else:
        rows = _GradientOfBias.apply(conv2d(rows, weight, bias.detach()), bias)  # type: ignore[no-untyped-call]
    return rows.permute(0, 2, 3, 1).reshape(n, frames, joints, -1).permute(0, 3, 1, 2)


def _undilated(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, padding: int) -> Tensor:
    """A dilated convolution as one without dilation, in which the frames that it skips are further joints.

    With AVX2, oneDNN's gradient of dilated weights takes up to three times longer.
    """
    n, channels, frames, joints = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n, frames // dilation, dilation * joints, channels).permute(0, 3, 1, 2)
    y = conv2d(rows, weight, bias, 1, (padding // dilation, 0)).permute(0, 2, 3, 1)
    return y.reshape(n, -1, joints, y.shape[3]).permute(0, 3, 1, 2)


class _GradientOfBias(torch.autograd.Function):
    """The gradient of a bias [C'] that is already added to y [N, C', 1, R]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.sum((0, 2, 3), dtype=ctx.dtype)
