"""BatchNorm synchronised over all processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from shapmix.process.parallel import ranks, summed


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with statistics over the batches of all processes, on every device (torch.nn.SyncBatchNorm supports only GPUs).

    `sync_norms` converts the norms of a network to it; names and state dict do not change.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape."""
        if not self.training:
            return super().forward(input)
        y, mean, variance, rows = synced_batch_norm(input, self.weight, self.bias, self.eps)
        keep_statistics(self, mean, variance * (rows / (rows - 1).clamp(min=1)))
        return y


def sync_norms(network: nn.Module) -> None:
    """Converts every BatchNorm of a network to `SyncedBatchNorm`, in place."""
    for module in network.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SyncedBatchNorm


@torch.no_grad()
def keep_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Updates a norm's running statistics [C] with those of a batch; `variance` is unbiased."""
    if norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), momentum)


def synced_batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(result with the shape and dtype of x, mean [C], biased variance [C], rows) over the batches of all processes.

    Sums are taken in float32, or float64 for float64 x, relative to the first row of each process, and combined in float64, so that
    a mean far from zero loses no precision. The variance is computed from deviations from the global mean.
    """
    dims = [0, *range(2, x.dim())]
    shape = [1, -1, *(1 for _ in dims[1:])]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        own = x.numel() // x.shape[1]
        rows = summed(torch.full((), float(own), device=x.device, dtype=torch.float64))
        pivot = wide.detach()[:1].movedim(1, 0).flatten(1)[:, :1].sum(1)  # zeros where the process has no rows
        differences = (wide - pivot.view(shape)).sum(dims)
        mean = _sum_over_processes(differences.double() + pivot.double() * own) / rows
        centre = mean.to(wide.dtype)
        centred = wide - centre.view(shape) - (mean - centre).to(wide.dtype).view(shape)  # what rounding has left of the mean
        variance = (_sum_over_processes(centred.square().sum(dims).double()) / rows).to(wide.dtype)
        y = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None and bias is not None:
            y = y * weight.view(shape) + bias.view(shape)
    return y.to(x.dtype), centre.detach(), variance.detach(), rows


def _sum_over_processes(x: Tensor) -> Tensor:
    return _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce sum, with an all-reduce as gradient: the result of every process depends on the input of every process."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return summed(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return summed(grad.contiguous().clone())


def gathered(moments: Tensor) -> Tensor:
    """Moments [1, 3, C] of this process -> [processes, 3, C], without gradient."""
    if ranks() == 1:
        return moments
    everywhere = moments.new_empty(ranks(), *moments.shape[1:])
    distributed.all_gather_into_tensor(everywhere, moments)
    return everywhere


def summed_copy(x: Tensor) -> Tensor:
    """The sum over all processes, in new memory, without gradient."""
    return summed(x.clone())
