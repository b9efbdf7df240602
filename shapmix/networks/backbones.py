"""Networks by name, for `--network.backbone`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from shapmix.networks import own
from shapmix.process.choices import Registry

Make = TypeVar("Make", bound=Callable[..., nn.Module])
Translation = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class Backbone(NamedTuple):
    """A function that makes a network, and what the trainer must know of it; `backbone` says what."""

    make: Callable[..., nn.Module]
    on_device: bool
    options: tuple[str, ...]
    from_published: Translation | None = None


BACKBONES = Registry[Backbone]("network.backbone")


def backbone(
    name: str, *, on_device: bool = False, options: tuple[str, ...] = (), from_published: Translation | None = None
) -> Callable[[Make], Make]:
    """Registers a function that makes a network for clips of a layout.

        @backbone("linear")
        def linear(layout: Layout, num_classes: int, *, num_people: int, in_channels: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

    Args:
        on_device: the network reads no value on the host, so that `--cuda-graph auto` holds it in a CUDA graph.
        options: of `--network` that the function takes as well: widths, halve, graph_gain. One that is None is left out.
        from_published: translates a published state dict of this network into ours; None: the names are the same, or there is none.
            `shapmix.networks.published` says what it gets and returns.

    Raises:
        ValueError: the name is taken.
    """

    def register(make: Make) -> Make:
        BACKBONES.add(name, Backbone(make, on_device, options, from_published))
        return make

    return register


def find_backbone(name: str) -> Backbone:
    """A registered backbone, or `module:function` of the user's own.

    Raises:
        ValueError: an unknown name, with the nearest one.
        RunError: no such module or function.
    """
    if ":" not in name:
        return BACKBONES.find(name)
    return Backbone(own.imported(name), on_device=False, options=())
