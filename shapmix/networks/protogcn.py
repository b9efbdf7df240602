"""ProtoGCN: Liu, Liu, Ren, Wang, Wang, Sun, Revealing Key Details to See Differences: A Novel Prototypical Perspective for
Skeleton-based Action Recognition, CVPR 2025.

The graph units are those of DG-STGCN. In training, the graphs that the last layer makes of a clip are reconstructed from learned
prototypes of motion, and a contrastive loss of its own pulls the reconstructions of a class together (`auxiliary_loss`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from shapmix.networks.backbones import backbone
from shapmix.networks.dgstgcn import dynamic_layer
from shapmix.networks.multi_scale import PUBLISHED_PREFIXES, MultiScaleNetwork, from_pyskl
from shapmix.skeleton.layout import Layout

WIDTHS = (96,) * 4 + (192,) * 3 + (384,) * 3
PROTOTYPES = 400
CONTRAST_WIDTH = 256  # of the space in which reconstructions are compared
CONTRAST_WEIGHT, TEMPERATURE, MOMENTUM = 0.2, 0.125, 0.9
PREFIXES = PUBLISHED_PREFIXES | {
    "backbone.prn.": "prototypes.",
    "backbone.post.": "prototypes.post.",
    "backbone.bn.": "prototypes.bn.",
    "cls_head.csc_loss.cl_fc.": "project.",
}


class Prototypes(nn.Module):
    """Graphs of clips [N, C, V, V] -> [N, V V]: each pair of joints as a combination of prototypes, averaged over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_matrix = nn.Linear(channels, PROTOTYPES, bias=False)
        self.memory_matrix = nn.Linear(PROTOTYPES, channels, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.post = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, graphs: Tensor) -> Tensor:
        combination = torch.softmax(self.query_matrix(graphs.permute(0, 2, 3, 1)), -1)
        rebuilt = self.dropout(self.memory_matrix(combination)).permute(0, 3, 1, 2)
        return torch.relu(self.bn(self.post(rebuilt))).mean(1).flatten(1)


class ProtoGCN(MultiScaleNetwork):
    """Clips [N, C, T, V, M] -> logits [N, K]; in training, `auxiliary_loss` belongs to the last forward pass.

    A moving average of each class, of the projected reconstructions of clips that were classified correctly, is a buffer of the
    classifier, with whose classes it begins anew.
    """

    def __init__(self, layout: Layout, num_classes: int, *, widths: Sequence[int], **options: Any) -> None:
        super().__init__(layout, num_classes, widths=widths, **options)
        classifier: Any = self._modules.pop("fc")
        self.prototypes = Prototypes(widths[-1])
        self.project = nn.Linear(layout.num_joints**2, CONTRAST_WIDTH)
        classifier.register_buffer("averages", torch.randn(num_classes, CONTRAST_WIDTH))
        self.fc = classifier  # the last module, also where there are as many classes as prototypes
        self.last_pass: tuple[Tensor, Tensor] | None = None

    def forward(self, clips: Tensor) -> Tensor:
        if not self.training:
            return super().forward(clips)
        x = self.layers[:-1](self.normalised(clips))
        last: Any = self.layers[-1]
        graphs = last.gcn.graphs_of_clips(x)
        x = last.after_graph_unit(x, last.gcn.aggregated(x, graphs + last.gcn.A.unsqueeze(1)))
        logits = self.classified(x, clips)
        joints = clips.shape[3]
        of_clips = graphs.reshape(len(clips), clips.shape[4], -1, joints, joints).mean(1)
        self.last_pass = self.project(self.prototypes(of_clips)), logits.detach()
        return logits

    def auxiliary_loss(self, labels: Tensor, partners: Tensor, share: Tensor, rows: Tensor | None = None) -> Tensor:
        """0-dim: the contrastive loss of the last forward pass in training mode, to be added to the loss of the logits.

        Mixed clips have both labels, as in the loss of their logits, and leave the averages of the classes unchanged. The loss is
        the sum over the rows over N for each half, so that passes over parts of a batch add up.

        Args:
            labels, partners: [N] int64, of the clean clips and of those mixed into them.
            share: [N], of the partner's label.
            rows: [R] of the batch [clean; mixed] that were forwarded, from 0 to 2N - 1; None: all in order.

        Raises:
            RuntimeError: no forward pass in training mode since the last call.
        """
        if self.last_pass is None:
            raise RuntimeError("auxiliary_loss belongs to a forward pass: call the network first, in training mode")
        (features, logits), self.last_pass = self.last_pass, None
        averages: Any = self.fc.averages
        features = features.to(averages.dtype)
        rows = torch.arange(len(features), device=features.device) if rows is None else rows
        mixed, clips = rows >= len(labels), rows % len(labels)
        own, other = labels[clips], partners[clips]
        counts = (own == logits.argmax(1)) & ~mixed
        right = (own.unsqueeze(1) == torch.arange(logits.shape[1], device=own.device)) & counts.unsqueeze(1)
        moved = _moved(averages, features, right.to(features.dtype))
        with torch.no_grad():
            averages.copy_(moved)
        scores = normalize(features, dim=1) @ normalize(moved, dim=1).T / TEMPERATURE
        of_other = share[clips].to(scores.dtype) * mixed
        losses = [cross_entropy(scores, targets, reduction="none") for targets in (own, other)]
        return CONTRAST_WEIGHT * torch.lerp(losses[0], losses[1], of_other).sum() / len(labels)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last forward pass, whose tensors cannot be copied."""
        return self.__dict__ | {"last_pass": None}


def _moved(averages: Tensor, features: Tensor, right: Tensor) -> Tensor:
    """Averages [K, H] after features [R, H]; `right` [R, K] is 1 where a row counts. Classes without a row stay the same."""
    count = right.sum(0).unsqueeze(1)
    mean = right.T @ features / count.clamp(min=1)
    return torch.where(count > 0, MOMENTUM * averages + (1 - MOMENTUM) * mean, averages)


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published state dict -> ours. The published code does not save the averages of the classes; they start at zero."""
    ours = from_pyskl(state, PREFIXES)
    if "fc.weight" in ours and "fc.averages" not in ours:
        ours["fc.averages"] = ours["fc.weight"].new_zeros(len(ours["fc.weight"]), CONTRAST_WIDTH)
    return ours


@backbone("protogcn", options=("widths", "halve"), from_published=from_published)
def protogcn(
    layout: Layout,
    num_classes: int,
    *,
    num_people: int,
    in_channels: int = 3,
    widths: Sequence[int] = WIDTHS,
    halve: Sequence[int] | None = None,
) -> nn.Module:
    """ProtoGCN with 400 prototypes, ten layers; people share the input norm."""
    options = {"num_people": num_people, "in_channels": in_channels, "make_layer": dynamic_layer(layout.num_joints), "halve": halve}
    return ProtoGCN(layout, num_classes, widths=widths, **options)
