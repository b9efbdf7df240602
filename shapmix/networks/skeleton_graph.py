"""What the networks have in common: the normalised input, the layers' widths, and the mean behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from shapmix.skeleton.layout import Layout

WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)  # of ST-GCN and its followers
HALVE = (4, 7)  # layers in which the number of frames halves

MakeLayer = Callable[[int, int, int, bool], nn.Module]  # channels in and out, stride in time, whether there is a shortcut


class SkeletonNetwork(nn.Module):
    """Clips [N, C, T, V, M] -> logits [N, K]: people are clips of their own until the mean.

    Args:
        layout: skeleton of the clips.
        num_classes: K.
        num_people, in_channels: M and C.
        make_layer: a layer of [N M, C, T, V].
        widths, halve: channels of the layers, and which of them halve the frames.
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
    """Convolution over `size` frames and BatchNorm."""
    conv = nn.Conv2d(channels, width, (size, 1), (stride, 1), ((size - 1) // 2, 0))
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Identity where shapes agree, otherwise a 1x1 convolution and BatchNorm."""
    return nn.Identity() if channels == width and stride == 1 else temporal_conv(channels, width, 1, stride)
