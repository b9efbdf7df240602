"""Temporal convolutions at several scales, as in ST-GCN++, DG-STGCN and ProtoGCN, and the key names of their published weights.

CTR-GCN's temporal unit (`shapmix.networks.ctrgcn_reference`) has four branches of equal width and no product after them, so its
fused op does not apply here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shapmix.networks.ctrgcn_reference import TemporalConv
from shapmix.networks.fused_norm import can_be_fused, normalised, normalised_conv
from shapmix.networks.skeleton_graph import SkeletonNetwork, rows_product
from shapmix.skeleton.layout import Layout

DILATIONS = (1, 2, 3, 4)  # of the branches with a convolution over three frames; the other branches are max-pool 3 and 1x1
PUBLISHED_PREFIXES = {"backbone.data_bn.": "data_bn.", "backbone.gcn.": "layers.", "cls_head.fc_cls.": "fc."}


def from_pyskl(state: dict[str, Tensor], prefixes: Mapping[str, str] = PUBLISHED_PREFIXES) -> dict[str, Tensor]:
    """State dict of PYSKL and of networks built on it -> ours. Names inside a layer are the same; other keys are kept.

    PYSKL's weights of the mean joint have room for 25 joints, of which the layout's are taken.
    """
    ours = {}
    for key, value in state.items():
        theirs = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        if key.endswith(".tcn.add_coeff"):
            value = value[: state[key.removesuffix("tcn.add_coeff") + "gcn.A"].shape[-1]]
        ours[prefixes.get(theirs, "") + key.removeprefix(theirs)] = value
    return ours


class MultiScaleNetwork(SkeletonNetwork):
    """Ten layers as published with these networks: people share the channels of the input norm, and the classifier starts small.

    Arguments are those of `SkeletonNetwork`.
    """

    def __init__(self, layout: Layout, num_classes: int, **options: Any) -> None:
        super().__init__(layout, num_classes, norm_of_person=False, **options)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)


class Layer(nn.Module):
    """Graph unit, temporal unit and residual: [N, C, T, V] -> [N, C', T / stride, V]."""

    def __init__(self, gcn: nn.Module, tcn: nn.Module, channels: int, width: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.gcn, self.tcn = gcn, tcn
        self.residual: nn.Module | None = None
        if residual and channels == width and stride == 1:
            self.residual = nn.Identity()
        elif residual:
            self.residual = TemporalConv(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.after_graph_unit(x, self.gcn(x))

    def after_graph_unit(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output for input x, where y is the output of its graph unit.

        Norms are fused where y is in channels-last memory, which they need: for other graph units the copies cost more.
        """
        tcn: Any = self.tcn
        norms = [part for part in self.modules() if isinstance(part, _BatchNorm)]
        if self.training and y.is_contiguous(memory_format=torch.channels_last) and can_be_fused(self, norms):
            y, residual = tcn.before_norm(y, fused=True), self.residual
            if isinstance(residual, TemporalConv):
                x = normalised_conv(x, residual.conv, residual.bn)
            return normalised(y, [tcn.bn], shortcut=None if residual is None else x.to(y.dtype))
        y = tcn(y)
        return torch.relu(y if self.residual is None else y + self.residual(x))


class ThreeFrames(nn.Module):
    """Convolution over three frames with "same" padding (before the stride)."""

    def __init__(self, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, (3, 1), (stride, 1), (dilation, 0), (dilation, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class MultiScaleTemporal(nn.Module):
    """[N, C, T, V] -> [N, C, T / stride, V]: six branches, concatenated; then BatchNorm, ReLU, a 1x1 product and BatchNorm.

    The branches have a sixth of the channels each; the first also has what remains.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // (len(DILATIONS) + 2)
        first = channels - (len(DILATIONS) + 1) * width

        def reduce(to: int) -> list[nn.Module]:
            return [nn.Conv2d(channels, to, 1), nn.BatchNorm2d(to), nn.ReLU()]

        def dilated(dilation: int) -> nn.Module:
            to = first if dilation == DILATIONS[0] else width
            return nn.Sequential(*reduce(to), ThreeFrames(to, stride, dilation))

        self.branches = nn.ModuleList(dilated(dilation) for dilation in DILATIONS)
        self.branches.append(nn.Sequential(*reduce(width), nn.MaxPool2d((3, 1), (stride, 1), (1, 0))))
        self.branches.append(nn.Conv2d(channels, width, 1, (stride, 1)))
        self.transform = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1))
        self.bn = nn.BatchNorm2d(channels)

    def joined(self, x: Tensor, fused: bool) -> Tensor:
        """The branches, concatenated. If `fused`, in training, the products at their starts are one, and the norms after them."""
        if not fused:
            return torch.cat([branch(x) for branch in self.branches], 1)
        branches: list[Any] = list(self.branches)
        *reduced, skip = branches
        weight, bias = (torch.cat([getattr(branch[0], name) for branch in reduced]) for name in ("weight", "bias"))
        y = rows_product(x, weight, bias).permute(0, 3, 1, 2)
        parts = normalised(y, [branch[1] for branch in reduced]).split([branch[1].num_features for branch in reduced], 1)
        return torch.cat([*(branch[3](part) for branch, part in zip(reduced, parts, strict=True)), skip(x)], 1)

    def before_norm(self, x: Tensor, fused: bool = False) -> Tensor:
        """The result before its last norm."""
        transform: Any = self.transform
        y = self.joined(x, fused)
        if fused:
            y = normalised(y, [transform[0]])
            return rows_product(y, transform[2].weight, transform[2].bias).permute(0, 3, 1, 2)
        y = transform(y)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.before_norm(x))
        return y
