"""Several processes as one: what they add up, and the layers that need to know of each other.

Started by `torchrun`; without it every function here is that of a single process. All processes hold the same weights,
draw the same plans and end each step with the same numbers, because all that is exchanged is summed by one collective.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed, nn

from shapmix.process.errors import ShapmixError


def rank() -> int:
    """Of this process, from 0; process 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def ranks() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


class LostProcessError(ShapmixError, RuntimeError):
    """Another process of the job is gone, so nothing can be added up any more."""


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that `torchrun` started (NCCL on GPUs, gloo on the CPU); nothing to do where it started none.

    Raises:
        LostProcessError: another process died meanwhile.
    """
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        gc.collect()  # a network in a cycle of references holds the group, and would end it while the interpreter exits
        distributed.barrier()  # nobody leaves while another one still talks
    except RuntimeError as error:
        if isinstance(error, distributed.DistBackendError) or "gloo" in str(error):
            raise LostProcessError(
                f"process {rank()} lost another process of the job ({str(error).partition('. ')[0]}); "
                "what that one said, if anything, is above. Go on from the last checkpoint with --resume RUN"
            ) from error
        raise
    finally:
        distributed.destroy_process_group()


def averaged_gradients(network: nn.Module, *, broadcast_buffers: bool) -> nn.Module:
    """The network, whose gradients are means over the processes; itself where there is one.

    Args:
        broadcast_buffers: before each forward from process 0; not needed where `copy_buffers` does so after each step.
    """
    if ranks() == 1:
        return network
    # channels-last gives the gradient of a 1x1 kernel other strides for the same bytes, which torch takes for a slow layout
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    parallel: Any = nn.parallel.DistributedDataParallel
    # torch 2.13 has another name for it and warns of the former one
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature(parallel).parameters else "broadcast_buffers"
    averaged: nn.Module = parallel(network, **({} if broadcast_buffers else {name: False}))
    return averaged


def shared(value: Any) -> Any:
    """The value of process 0, on every process."""
    if ranks() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def summed(x: Tensor) -> Tensor:
    """Sum over the processes, in place, without gradient."""
    if ranks() > 1:
        distributed.all_reduce(x)
    return x


def largest(numbers: list[int], device: torch.device) -> list[int]:
    """Of each number the largest over the processes, which talk through `device`."""
    if ranks() == 1:
        return numbers
    x = torch.tensor(numbers, device=device)
    distributed.all_reduce(x, distributed.ReduceOp.MAX)
    return x.tolist()


def copy_buffers(network: nn.Module) -> None:
    """Every process takes the buffers of process 0, such as BatchNorm statistics of its own share of a batch."""
    if ranks() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


class SharedForward(nn.Module):
    """Logits of all rows on every process, of which each forwards its share; without gradient.

    Args:
        network: clips [N, C, T, V, M] -> logits [N, K].
        autocast: element type of `torch.autocast`, None for none; the logits are float32 or float64.
    """

    def __init__(self, network: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self.autocast = network, autocast

    def forward(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N, K]."""
        mine = clips[rank() :: ranks()]
        some = mine if len(mine) else clips[:1]  # more processes than clips: forwarded for its shape, not counted
        with torch.autocast(clips.device.type, self.autocast) if self.autocast else nullcontext():
            logits = self.network(some)
        logits = logits.to(clips.dtype)
        if ranks() == 1:
            return logits
        every = logits.new_zeros(len(clips), logits.shape[1])
        every[rank() :: ranks()] = logits[: len(mine)]
        return summed(every)
