"""Eval mode for the duration of a forward, and everything as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode for the duration; modes, buffers and torch's random states are as before afterwards, whatever happens."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
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
    """Eval mode for the duration; every module's own mode afterwards. Nothing is copied, so that it can be captured.

    Weights that autocast rounded meanwhile are forgotten: made without gradient, they would take the gradients of a forward that
    follows in the same autocast region.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        torch.clear_autocast_cache()
