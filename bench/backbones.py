"""Parameters and FLOPs of every backbone beside the published figures: `python -m bench.backbones` prints the table of its page.

FLOPs are counted as the field does: a multiplication and its addition are one, a norm is two for each value, and what is
only added, pooled or rectified is none. They are those of one clip in eval mode.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.tables import markdown
from shapmix import networks
from shapmix.networks.backbones import BACKBONES
from shapmix.networks.ctrgcn_reference import CTRGCN
from shapmix.networks.protogcn import CONTRAST_WIDTH, PROTOTYPES, WIDTHS
from shapmix.skeleton.layout import load_layout

MILLION, BILLION = 10**6, 10**9
LAYOUT, PEOPLE, COORDINATES = "ntu25", 2, 3
HEADER = ("backbone", "parameters", "published", "FLOPs", "published", "frames", "classes", "source")


class Published(NamedTuple):
    """What is published of a backbone, for 3D clips of NTU RGB+D with two people.

    Attributes:
        parameters, flops: the figure as it is written, None where there is none.
        classes, frames: those that the figures belong to.
        source: where they are published, or why there is none.
        millions, billions: the figures' units; some sources count in powers of 1024.
        left_out: FLOPs of the published count that a forward pass in eval mode does not need.
    """

    parameters: str | None
    flops: str | None
    source: str
    classes: int = 60
    frames: int = 100
    millions: int = MILLION
    billions: int = BILLION
    left_out: int = 0


def _left_out_of_protogcn() -> int:
    """The published count is of the training loss, and two products of each layer are before the time mean instead of after."""
    joints, before_mean = 25, 0
    inputs, frames = (COORDINATES, *WIDTHS[:-1]), (100,) * 5 + (50,) * 3 + (25,) * 2
    for channels, width, length in zip(inputs, WIDTHS, frames, strict=True):
        before_mean += 2 * channels * width * (length - 1) * joints * PEOPLE
    last, pairs = WIDTHS[-1], joints**2
    prototypes = pairs * last * (2 * PROTOTYPES + last + 2)
    return before_mean + prototypes + (pairs + 60) * CONTRAST_WIDTH


MMACTION = "https://github.com/open-mmlab/mmaction2/blob/main/configs/skeleton"

PUBLISHED: dict[str, Published] = {
    "blockgcn": Published(
        "1.373", "2.013", "paper: 1.3 M; [its code](https://github.com/ZhouYuxuanYX/BlockGCN), counted likewise", frames=64
    ),
    "ctrgcn": Published(
        "1.46", "2.0", "[SkeletonLLM, table 5](https://github.com/wangzy01/SkeletonLLM_Rebuttal)", classes=120, frames=64
    ),
    "dgstgcn": Published(
        "1.701", "2.54", "no figure found; [PYSKL](https://github.com/kennymckormick/pyskl)'s code, counted with fvcore"
    ),
    "protogcn": Published(
        "4.1436",
        "7.23",
        "[its authors](https://github.com/firework8/ProtoGCN/issues/11)",
        millions=2**20,
        billions=2**30,
        left_out=_left_out_of_protogcn(),
    ),
    "hdgcn": Published("1.68", "1.869", "paper, and [its code](https://github.com/Jho-Yonsei/HD-GCN), counted likewise", 120, 64),
    "skateformer": Published(
        "3.616",
        "3.465",
        "[its code](https://github.com/KAIST-VICLab/SkateFormer), counted likewise; paper: 2.03 M, 3.62 G",
        frames=64,
    ),
    "stgcn": Published("3.1", "5.7", f"[MMAction2]({MMACTION}/stgcn/metafile.yml)"),
    "stgcnpp": Published("1.4", "2.96", f"[MMAction2]({MMACTION}/stgcnpp/README.md)"),
}


class Size(NamedTuple):
    """Parameters of a network and FLOPs of one clip."""

    parameters: int
    flops: int


def size_of(name: str) -> Size:
    """Counts a registered backbone at the size of its published figures; nothing is computed.

    Raises:
        ValueError: an unknown name.
    """
    layout, published = load_layout(LAYOUT), published_of(name)
    make = BACKBONES.find(name).make
    if make is networks.CTRGCN:
        make = CTRGCN  # fused ops are not counted; the reference has the same products
    network: nn.Module = make(layout=layout, num_classes=published.classes, num_people=PEOPLE, in_channels=COORDINATES)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    network = network.eval().requires_grad_(False).to("meta")
    norm = torch.ops.aten.native_batch_norm  # the overload, too: otherwise the counter looks into it
    counter = FlopCounterMode(display=False, custom_mapping=dict.fromkeys((norm, norm.default), _of_norm))
    with counter:
        network(torch.empty(1, COORDINATES, published.frames, layout.num_joints, PEOPLE, device="meta"))
    return Size(parameters, counter.get_total_flops() // 2)


def _of_norm(x: tuple[int, ...], *arguments: object, **keywords: object) -> int:
    return 2 * 2 * prod(x)  # the counter's other figures are two for a multiplication and its addition


def published_of(name: str) -> Published:
    """The published figures of a backbone, without any if there are none."""
    return PUBLISHED.get(name, Published(None, None, "none found"))


def as_published(value: int, unit: int, figure: str) -> str:
    """`value` in `unit` with as many digits as `figure`."""
    return f"{value / unit:.{len(figure.partition('.')[2])}f}"


def table() -> str:
    """The table as Markdown, a row for every registered backbone."""
    rows = []
    for name in BACKBONES:
        published, (parameters, flops) = published_of(name), size_of(name)
        row = [f"`{name}`", f"{parameters / MILLION:.3f} M", _figure(published.parameters, published.millions == MILLION, "M")]
        row += [f"{flops / BILLION:.3f} G", _figure(published.flops, published.billions == BILLION, "G")]
        rows.append([*row, str(published.frames), str(published.classes), published.source])
    return markdown([list(HEADER), *rows])


def _figure(text: str | None, decimal: bool, unit: str) -> str:
    return "" if text is None else f"{text} {unit if decimal else unit + 'i'}"


def main() -> None:
    """Prints the table."""
    print(table())


if __name__ == "__main__":
    main()
