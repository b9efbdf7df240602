"""Shared parts of the graph networks: input normalisation, layer widths, and global pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from shapmix.skeleton.layout import Layout

WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)  # ST-GCN and its successors
HALVE = (4, 7)  # layers that halve the frames

MakeLayer = Callable[[int, int, int, bool], nn.Module]  # input and output channels, temporal stride, with shortcut


class SkeletonNetwork(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K]; people are separate rows until the global pooling.

    Args:
        layout: skeleton of the clips.
        num_classes: K.
        num_people, in_channels: M and C.
        make_layer: makes a layer on [N M, C, T, V].
        widths, halve: channels per layer, and indices of the layers that halve the frames.
        dropout: before the last linear layer.
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
        halve: Sequence[int] = HALVE,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(num_people * layout.num_joints * in_channels)
        before = [in_channels, *widths[:-1]]
        self.layers = nn.Sequential(
            *(
                make_layer(channels, width, 2 if number in halve else 1, number > 0)
                for number, (channels, width) in enumerate(zip(before, widths, strict=True))
            )
        )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        n, channels, frames, joints, people = clips.shape
        x = clips.permute(0, 4, 3, 1, 2).reshape(n, -1, frames)
        x = self.data_bn(x).view(n, people, joints, channels, frames).permute(0, 1, 3, 4, 2)
        x = self.layers(x.reshape(n * people, channels, frames, joints))
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3)).view(n, people, -1).mean(1)))
        return logits


def temporal_conv(channels: int, width: int, size: int = 9, stride: int = 1) -> nn.Sequential:
    """Temporal convolution over `size` frames, and BatchNorm."""
    conv = nn.Conv2d(channels, width, (size, 1), (stride, 1), ((size - 1) // 2, 0))
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Identity if the shapes agree, else a 1x1 convolution and BatchNorm."""
    return nn.Identity() if channels == width and stride == 1 else temporal_conv(channels, width, 1, stride)
