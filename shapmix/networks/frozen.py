"""Weights that are chosen by patterns of their names, and weights that are not trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from shapmix.process.choices import nearest

HEAD, BACKBONE = "head", "backbone"


def matching(option: str, patterns: Iterable[str], names: Sequence[str], head: str) -> set[str]:
    """The names that match any of the patterns.

    A pattern is a name, a module with everything in it, or either with `*`, `?` and `[...]`. `head` is the module `head`, and
    `backbone` is everything else.

    Raises:
        ValueError: a pattern matches no name; the message has the nearest one.
    """
    found = set[str]()
    for pattern in patterns:
        if pattern == BACKBONE:
            mine = {name for name in names if not name.startswith(f"{head}.")}
        else:
            first, dot, rest = pattern.partition(".")
            glob = f"{head}{dot}{rest}" if first == HEAD else pattern
            mine = {name for name in names if fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}.*")}
        if not mine:
            parts = [name.split(".") for name in names]
            modules = {".".join(part[:depth]): None for part in parts for depth in range(1, len(part) + 1)}
            hint = nearest(pattern, modules) or f"; names begin with {', '.join(dict.fromkeys(part[0] for part in parts))}"
            raise ValueError(f"{option}: '{pattern}' matches no weight of the network{hint}")
        found |= mine
    return found


def freeze(network: nn.Module, patterns: Sequence[str], head: str) -> None:
    """Excludes the parameters that match the patterns from training.

    Raises:
        ValueError: a pattern matches nothing, or no parameter is left to train.
    """
    parameters = dict(network.named_parameters())
    for name in matching("freeze", patterns, list(parameters), head):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"freeze: {', '.join(patterns)} leave no parameter to train")


def hold_frozen(network: nn.Module) -> None:
    """Eval mode for the modules of a training network none of whose parameters are trained, such as a frozen BatchNorm: its running
    statistics stay what they are."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
