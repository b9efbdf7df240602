"""Context managers for forward passes in eval mode that restore the state of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def isolated_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the context; module modes, buffers and torch's random states are restored on exit, also after an error."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    devices = sorted({tensor.device.index for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda})
    with torch.random.fork_rng(devices), in_eval_mode(model):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the context; restores the mode of every module. Copies nothing, so that it can be captured in a CUDA graph.

    Clears the autocast weight cache: weights cast here without gradient would otherwise be reused, without gradient, by a later
    forward pass in the same autocast region.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        torch.clear_autocast_cache()
