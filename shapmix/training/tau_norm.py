"""tau-normalisation: the head of a trained network with weights of similar size for frequent and rare classes.

Source: Kang et al., ICLR 2020, section 4.2. Nothing is trained: tau is given, or chosen on the validation clips.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from shapmix.data.clips import Splits
from shapmix.data.sampling import ClipSampler
from shapmix.networks.head import ScaledLinear, head_of, tau_normalise, tau_weight
from shapmix.networks.modes import isolated_eval_mode
from shapmix.process.errors import RunError
from shapmix.training.adjustment import best_tau
from shapmix.training.options import Adjustment

TAUS = tuple(number / 10 for number in range(11))  # the paper's range

log = logging.getLogger("shapmix")


def normalise_head(network: nn.Module, asked: Adjustment, splits: Splits, sampler: ClipSampler, batch_size: int) -> float:
    """tau-normalises the head of a network in place; returns the tau, chosen on the validation clips if that was asked for.

    Raises:
        RunError: the head is not a plain linear layer, or there are no validation clips to choose on.
    """
    try:
        name = head_of(network, splits.store.num_classes)
    except ValueError as error:
        raise RunError(f"tau_norm: {error}") from error
    head: Any = network.get_submodule(name)
    if not isinstance(head, nn.Linear) or isinstance(head, ScaledLinear):
        kind = "has a learned factor per class" if isinstance(head, ScaledLinear) else f"is a {type(head).__name__}"
        raise RunError(f"tau_norm: the head '{name}' {kind}; tau-normalisation is for a plain torch.nn.Linear")
    tau = asked
    if isinstance(tau, str):
        if not len(splits.val):
            raise RunError("tau_norm: there are no validation clips to choose tau on; give a number")
        tau = choose_tau(head, _features(network, head, splits.val, sampler, batch_size), splits.store.labels[splits.val])
        log.info("tau-normalisation: tau %g is the best on %d validation clips", tau, len(splits.val))
    tau_normalise(head, tau)
    return tau


@torch.no_grad()
def choose_tau(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """The best tau (`adjustment.best_tau`) of 0, 0.1, ..., 1 on features [N, D] of clips with labels [N]."""

    def logits(tau: float) -> Tensor:
        weight, bias = tau_weight(head, tau)
        return features @ weight.to(features).T + (0 if bias is None else bias.to(features))

    return best_tau(TAUS, logits, labels)


@torch.no_grad()
def _features(network: nn.Module, head: nn.Module, clips: Tensor, sampler: ClipSampler, batch_size: int) -> Tensor:
    """[N, D] on the CPU: what the head is given for the evaluation views of clips [N]."""
    device, found = next(head.parameters()).device, list[Tensor]()
    hook = head.register_forward_pre_hook(lambda _, given: found.append(given[0].float().cpu()))
    try:
        with isolated_eval_mode(network):
            for part in clips.split(batch_size):
                network(sampler.evaluation(part).to(device))
    finally:
        hook.remove()
    return torch.cat(found)
