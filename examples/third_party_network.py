"""Shap-Mix with a network that somebody else wrote: `python examples/third_party_network.py` trains it on the embedded data.

`TheirModel` stands for the third party's: its clips are [N, M, T, V, C], its constructor has its own names, and it returns features
beside the logits. `network` is all that is written for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapmix import Layout, train


class TheirModel(nn.Module):
    """A network of a third party, as it is: keypoints [N, M, T, V, C] -> (logits [N, K], features [N, D])."""

    def __init__(self, num_point: int, num_person: int, num_class: int, graph: Tensor, in_dim: int = 3, dim: int = 64) -> None:
        super().__init__()
        self.graph: Tensor
        self.register_buffer("graph", graph)
        self.embed = nn.Linear(in_dim, dim)
        self.joint = nn.Parameter(torch.zeros(num_person, 1, num_point, dim))
        self.temporal = nn.Sequential(nn.Conv1d(dim, dim, 5, padding=2), nn.BatchNorm1d(dim), nn.ReLU())
        self.classifier = nn.Linear(dim, num_class)

    def forward(self, keypoints: Tensor) -> tuple[Tensor, Tensor]:
        """One graph convolution of the bones, the mean of joints and people, and a temporal convolution."""
        x = self.graph @ (self.embed(keypoints) + self.joint).relu()
        features = self.temporal(x.mean((1, 3)).transpose(1, 2)).mean(2)
        return self.classifier(features), features


class Wrapped(nn.Module):
    """Turns our clips [N, C, T, V, M] into theirs, and takes the logits of what they return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(clips.permute(0, 4, 2, 3, 1))[0]


def network(layout: Layout, num_classes: int, num_people: int, in_channels: int) -> nn.Module:
    """Their model, made for our data."""
    graph = torch.from_numpy(layout.adjacency().sum(0))
    model = TheirModel(layout.num_joints, num_people, num_classes, graph, in_channels)
    return Wrapped(model)


def main(options: Sequence[str] = ()) -> int:
    """Trains it; further options are those of `python -m shapmix.train`."""
    return train.main(["--network.backbone", "third_party_network:network", *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
