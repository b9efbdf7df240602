"""The head of a network, its last linear layer: where it is, and the classifiers that are made of a trained one.

Source: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020, section 4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout


def head_of(network: nn.Module, num_classes: int) -> str:
    """Name of the last module whose own weight has a row per class.

    Raises:
        ValueError: there is none.
    """
    found = ""
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if name and isinstance(weight, Tensor) and weight.dim() >= 2 and len(weight) == num_classes:
            found = name
    if not found:
        raise ValueError(f"no layer of the network has {num_classes} outputs, so its head is unknown; give patterns of names")
    return found


def drop_before_head(network: nn.Module, num_classes: int, share: float) -> None:
    """Drops each input of the head with probability `share` in training, in place; nothing changes in eval mode.

    Raises:
        ValueError: the head is unknown.
    """

    def drop(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (dropout(inputs[0], share, head.training), *inputs[1:])

    network.get_submodule(head_of(network, num_classes)).register_forward_pre_hook(drop)


class ScaledLinear(nn.Linear):
    """A linear layer with a learned factor per class on its logits (learnable weight scaling)."""

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., K]."""
        return super().forward(x) * self.scale


def scale_classes(network: nn.Module, num_classes: int) -> None:
    """Makes the head of a network a `ScaledLinear`, in place, with factors of 1: the logits stay the same.

    Raises:
        ValueError: the head is not a plain linear layer.
    """
    name = head_of(network, num_classes)
    head: Any = network.get_submodule(name)
    if type(head) is not nn.Linear:
        raise ValueError(f"the head '{name}' is a {type(head).__name__}; a factor per class needs a torch.nn.Linear")
    head.__class__ = ScaledLinear
    head.scale = nn.Parameter(torch.ones_like(head.weight[:, 0]))


def fold_scale(state: dict[str, Tensor], head: str) -> bool:
    """Multiplies the factors of a `ScaledLinear` in a state dict into its weight and bias, in place; whether there were any."""
    scale = state.pop(f"{head}.scale", None)
    if scale is None:
        return False
    state[f"{head}.weight"] = state[f"{head}.weight"] * scale[:, None]
    if f"{head}.bias" in state:
        state[f"{head}.bias"] = state[f"{head}.bias"] * scale
    return True


def tau_weight(head: nn.Linear, tau: float) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of a tau-normalised head: the weight [K, D] of every class divided by its norm to the power of `tau`.

    The bias is left out, as published; a `tau` of 0 changes nothing, the bias included.
    """
    if tau == 0:
        return head.weight, head.bias
    norms = head.weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(head.weight.dtype).tiny)
    return head.weight / norms.pow(tau), None


@torch.no_grad()
def tau_normalise(head: nn.Linear, tau: float) -> None:
    """tau-normalises a head, in place; a bias that is left out is 0."""
    weight, bias = tau_weight(head, tau)
    head.weight.copy_(weight)
    if bias is None and head.bias is not None:
        head.bias.zero_()
