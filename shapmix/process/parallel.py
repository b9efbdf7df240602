"""Data-parallel training: process group, collectives and sharded forward passes.

Processes are started by `torchrun`; without it every function is the single-process case. All processes have the same weights, draw
the same plans and end each step with the same values, because data is exchanged only by all-reduce and broadcast.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed, nn

from shapmix.process.errors import ShapmixError


def rank() -> int:
    """Rank of this process, from 0; rank 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """Number of processes (world size)."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


class LostProcessError(ShapmixError, RuntimeError):
    """Another process of the job has died, so collectives fail."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group of `torchrun` (NCCL on GPUs, gloo on the CPU); a no-op without `torchrun`.

    Raises:
        LostProcessError: another process died.
    """
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        yield
        return
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield
        gc.collect()  # a network in a reference cycle would keep the group alive until the interpreter exits
        distributed.barrier()  # no process leaves before all have finished communicating
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise LostProcessError(
                f"process {os.environ.get('RANK', 0)} lost another process of the job ({str(error).partition('. ')[0]}); "
                "its error, if any, is above. Resume from the last checkpoint with --resume RUN"
            ) from error
        raise
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def averaged_gradients(network: nn.Module, *, broadcast_buffers: bool) -> nn.Module:
    """Wraps the network so that gradients are averaged over the processes; returns it unchanged for a single process.

    Args:
        broadcast_buffers: broadcast buffers from rank 0 before each forward; not needed if `copy_buffers` runs after each step.
    """
    if ranks() == 1:
        return network
    # with channels-last, gradients of 1x1 kernels have different strides for the same bytes; torch warns of a slow layout
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    parallel: Any = nn.parallel.DistributedDataParallel
    # torch 2.13 renames the argument and deprecates the old name
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature(parallel).parameters else "broadcast_buffers"
    averaged: nn.Module = parallel(network, **({} if broadcast_buffers else {name: False}))
    return averaged


def shared(value: Any) -> Any:
    """Broadcasts the value of rank 0 to all processes."""
    if ranks() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def summed(x: Tensor) -> Tensor:
    """All-reduce (sum) in place, without gradient."""
    if ranks() > 1:
        distributed.all_reduce(x)
    return x


def largest(numbers: list[int], device: torch.device) -> list[int]:
    """All-reduce (maximum) of each number, with `device` for the communication."""
    if ranks() == 1:
        return numbers
    x = torch.tensor(numbers, device=device)
    distributed.all_reduce(x, distributed.ReduceOp.MAX)
    return x.tolist()


def copy_buffers(network: nn.Module) -> None:
    """Broadcasts the buffers of rank 0, such as BatchNorm statistics, which every process computes from its shard of the batch."""
    if ranks() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def copy_weights(network: nn.Module) -> None:
    """Broadcasts parameters and buffers of rank 0."""
    if ranks() > 1:
        for tensor in (*network.parameters(), *network.buffers()):
            distributed.broadcast(tensor.detach(), 0)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """All-reduce (sum) of the gradients in place: one collective per dtype."""
    alike: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in alike.values() if ranks() > 1 else ():
        flat = summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view(gradient.shape) for piece, gradient in zip(pieces, gradients, strict=True)])


class SharedForward(nn.Module):
    """Sharded forward pass: every process forwards its shard of the rows and receives all logits; without gradient.

    Args:
        network: clips [N, C, T, V, M] -> logits [N, K].
        autocast: dtype of `torch.autocast`, None to disable it; the logits have the dtype of the clips.
    """

    def __init__(self, network: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self.autocast = network, autocast

    def forward(self, clips: Any) -> Tensor:
        """[N, C, T, V, M], or rows of another kind that the network takes and that can be sliced -> [N, K]."""
        mine = clips[rank() :: ranks()]
        some = mine if len(mine) else clips[:1]  # with more processes than clips: forwarded for the shape only
        with torch.autocast(clips.device.type, self.autocast) if self.autocast else nullcontext():
            logits = self.network(some)
        logits = logits.to(clips.dtype)
        if ranks() == 1:
            return logits
        every = logits.new_zeros(len(clips), logits.shape[1])
        every[rank() :: ranks()] = logits[: len(mine)]
        return summed(every)
