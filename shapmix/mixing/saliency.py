"""The saliency state of training: mean and spread for every class and combination of parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shapmix.kernels import saliency_update
from shapmix.mixing.estimators import ESTIMATORS, Measurement, pair_values
from shapmix.skeleton.layout import Layout

SALIENCY_START = 1e-6
SALIENCY_SCALE = 10.0  # joints of two average parts of `ntu25`; the temperature is in units of the table


class ClassSaliency(nn.Module):
    """Moving averages over the measured samples of each class.

    Args:
        classes: K.
        layout: its combinations are the Q columns.
        joint_counts: [Q] divisor of the value of each combination.
        estimator: the estimator that measures.
        decay: decay for one update per sample; adjusted for estimators that update more often.
        scale: factor of all values, see `mean`.

    Raises:
        ValueError: the estimator is unknown, or the decay is outside 0..1.

    Buffers in `state_dict`:
        mean [K, Q]: average of the rectified values, times scale / joints of the combination.
        squares [K, Q]: average of their squares.
        within [K, Q]: average of their variance within a sample, over contexts; only for exact estimators, else zero.
        measured [K]: number of measured samples per class.
        pairs [K, 2^P]: averages of a pair estimator, which has no squares.
    """

    mean: Tensor
    squares: Tensor
    within: Tensor
    measured: Tensor
    pairs: Tensor
    joint_counts: Tensor

    def __init__(
        self, classes: int, layout: Layout, joint_counts: Tensor, estimator: str, decay: float, scale: float = SALIENCY_SCALE
    ) -> None:
        super().__init__()
        averages_pairs = ESTIMATORS.find(estimator).pairs
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}; give a number in 0..1")
        self.layout, self.estimator, self.decay, self.averages_pairs = layout, estimator, decay, averages_pairs
        self.scale = scale
        size = (classes, len(layout.combinations))
        self.register_buffer("mean", torch.full(size, SALIENCY_START))
        self.register_buffer("squares", torch.zeros(size))
        self.register_buffer("within", torch.zeros(size))
        self.register_buffer("measured", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("pairs", torch.zeros(classes, 1 << layout.num_parts), persistent=averages_pairs)
        self.register_buffer("joint_counts", joint_counts, persistent=False)

    @torch.no_grad()
    def update(
        self, found: Measurement, logits: Tensor, labels: Tensor, *, replace: bool = False, backend: str | None = None
    ) -> None:
        """Updates the averages from the logits [L + 1, K] of the coalitions in `found`, for a batch with labels [N].

        Args:
            replace: the measurement replaces the average instead of updating it.

        Non-finite marginals, such as those of a clip with NaN, are skipped in every buffer.
        """
        device = labels.device
        owners, columns = found.owners.to(device), found.columns.to(device)
        with_rows, without_rows = found.with_rows.to(device), found.without_rows.to(device)
        weights = None if found.weights is None else found.weights.to(self.mean)
        # The same time constant as with one update per sample, for any number of updates.
        decay = 0.0 if replace else self.decay ** (len(labels) / len(owners))
        pairs = self.averages_pairs
        table = self.pairs if pairs else self.mean
        counts = torch.ones_like(self.pairs[0], dtype=torch.int64) if pairs else self.joint_counts
        scale = 1.0 if pairs else self.scale
        of_class = labels[owners]
        marginal = saliency_update(
            table, logits, of_class, columns, with_rows, without_rows, counts, decay, weights=weights, scale=scale, backend=backend
        )
        if pairs:
            self.mean.copy_(pair_values(self.pairs, self.layout) * self.scale / self.joint_counts)
        else:
            to_units = self.scale / self.joint_counts[columns].to(self.mean)
            average_in(self.squares, of_class, columns, (marginal * to_units).square(), decay)
            if weights is not None:
                probability = logits.to(self.mean.dtype).softmax(1)
                each = (probability[with_rows, of_class[:, None]] - probability[without_rows, of_class[:, None]]).relu()
                spread = (weights * (each - marginal[:, None]).square()).sum(1)
                average_in(self.within, of_class, columns, spread * to_units.square(), decay)
        entered = torch.zeros_like(labels).index_add_(0, owners, marginal.isfinite().long())
        self.measured.index_add_(0, labels, entered.clamp(max=1))

    @property
    def variance(self) -> Tensor:
        """[K, Q]: variance of a class's measurements: between samples, and within samples if contexts are drawn."""
        return (self.squares - self.mean.square()).clamp(min=0)


def average_in(table: Tensor, rows: Tensor, columns: Tensor, values: Tensor, decay: float) -> None:
    """Vectorised table[row, column] <- decay * table[row, column] + (1 - decay) * value, in the order of the updates [U].

    Non-finite values are skipped. Sums are deterministic on every device.

    Equivalent to the loop in `shapmix.reference.saliency.average_in`.
    """
    cell = rows * table.shape[1] + columns
    same = cell[:, None] == cell
    first = ~same.tril(-1).any(1)  # of the updates of its cell: it writes for all of them
    counts = values.isfinite()
    same = same & counts
    later = same.triu(1).sum(1)  # updates of the cell that follow
    shares = torch.where(counts, (1 - decay) * decay**later * values, 0)
    flat = table.view(-1)
    found = flat[cell] * decay ** same.sum(1) + (same * shares).sum(1)
    spare = flat.numel()  # where the other updates of a cell write
    flat.copy_(torch.cat([flat, flat.new_zeros(1)]).index_copy(0, torch.where(first, cell, spare), found)[:spare])
