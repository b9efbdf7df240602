"""Shared parts of the graph networks: input normalisation, layer widths, and global pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from shapmix.skeleton.layout import Layout

WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)  # ST-GCN and its successors

MakeLayer = Callable[[int, int, int, bool], nn.Module]  # input and output channels, temporal stride, with shortcut


class SkeletonNetwork(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K]; people are separate rows until the global pooling.

    Args:
        layout: skeleton of the clips.
        num_classes: K.
        num_people, in_channels: M and C.
        make_layer: makes a layer on [N M, C, T, V].
        widths, halve: channels per layer, and indices of the layers that halve the frames; None: those that change the width.
        dropout: before the last linear layer.
        norm_of_person: the input norm has a channel per coordinate of a joint of a person; False: people share the channels.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        *,
        num_people: int,
        in_channels: int,
        make_layer: MakeLayer,
        widths: Sequence[int] = WIDTHS,
        halve: Sequence[int] | None = None,
        dropout: float = 0.0,
        norm_of_person: bool = True,
    ) -> None:
        super().__init__()
        if halve is None:
            halve = [layer + 1 for layer, (before, after) in enumerate(pairwise(widths)) if before != after]
        self.data_bn = nn.BatchNorm1d((num_people if norm_of_person else 1) * layout.num_joints * in_channels)
        inputs = [in_channels, *widths[:-1]]
        self.layers = nn.Sequential(
            *(
                make_layer(channels, width, 2 if number in halve else 1, number > 0)
                for number, (channels, width) in enumerate(zip(inputs, widths, strict=True))
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], num_classes)

    def normalised(self, clips: Tensor) -> Tensor:
        """[N, C, T, V, M] -> [N M, C, T, V], the input of the first layer."""
        n, channels, frames, joints, people = clips.shape
        x = clips.permute(0, 4, 3, 1, 2).reshape(-1, self.data_bn.num_features, frames)
        x = self.data_bn(x).view(n, people, joints, channels, frames).permute(0, 1, 3, 4, 2)
        return x.reshape(n * people, channels, frames, joints)

    def classified(self, x: Tensor, clips: Tensor) -> Tensor:
        """Output of the last layer [N M, C', T', V] -> logits [N, K]."""
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3)).view(clips.shape[0], clips.shape[4], -1).mean(1)))
        return logits

    def forward(self, clips: Tensor) -> Tensor:
        return self.classified(self.layers(self.normalised(clips)), clips)


def temporal_conv(channels: int, width: int, size: int = 9, stride: int = 1) -> nn.Sequential:
    """Temporal convolution over `size` frames, and BatchNorm."""
    conv = nn.Conv2d(channels, width, (size, 1), (stride, 1), ((size - 1) // 2, 0))
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Identity if the shapes agree, else a 1x1 convolution and BatchNorm."""
    return nn.Identity() if channels == width and stride == 1 else temporal_conv(channels, width, 1, stride)
