"""Updating the class saliency, on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference

from .checks import DTYPES, SUM_DTYPES, check_dtype, check_not_tracked, check_tensor
from .op import op


@op(
    reference=reference.saliency_update,
    outputs=("marginal",),
    check_values="check_updates",
    chosen_by="logits",
    mutates=("table",),
)
def saliency_update(
    table: Tensor,
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    with_rows: Tensor,
    without_rows: Tensor,
    joint_counts: Tensor,
    decay: float,
    *,
    weights: Tensor | None = None,
    scale: float = 10.0,
    backend: str | None = None,
) -> Tensor:
    """Updates the saliency table of the classes from the logits of coalitions, in place.

    Update u measures combination P = columns[u] on a sample of class y = labels[u]. Its marginal is ReLU(v(R u P) - v(R)),
    where v is the probability of y, or a weighted sum of such marginals over several contexts R. Then
    table[y, P] <- decay * table[y, P] + (1 - decay) * marginal * scale / joints(P); repeated entries are updated in order.
    An update with a non-finite marginal is skipped.

    Args:
        table: [K, Q] float32 or float64, contiguous; Q is the number of combinations of the layout.
        logits: [L, K] floating point, one row per forwarded coalition; not differentiable. Accumulated in the table's dtype.
        labels, columns: [U] int64.
        with_rows, without_rows: [U] int64, the rows of `logits` for R u P and for R; or [U, J] for J contexts. Rows may
            be shared: a single row of the mean motion serves every empty context.
        joint_counts: [Q] int64, joints in each combination, all above 0.
        decay: 0 replaces the entry; the paper uses 0.9.
        weights: [U, J] context weights in the table's dtype; None means 1.
        scale: the paper uses 10.
        backend: one of `BACKENDS`; None reads SHAPMIX_BACKEND, which defaults to the fastest available.

    Returns:
        The marginals [U], in the table's dtype.

    Raises:
        TypeError: an argument has the wrong dtype.
        ValueError: an argument has the wrong shape or device, or the decay is outside 0..1; on CPU tensors also if an index is
            out of range or a combination has no joints. The table is unchanged then.
        BackendError: the requested back end cannot run.
    """
    if table.dim() != 2 or table.numel() == 0:
        raise ValueError(f"table has shape {list(table.shape)}; give [K, Q] with no axis empty")
    if not table.is_contiguous():
        raise ValueError("table is not contiguous; it is updated in place, so give a contiguous tensor")
    check_not_tracked("table", table)
    check_dtype("table", table, SUM_DTYPES)
    check_dtype("logits", logits, DTYPES)
    device, dtype = table.device, table.dtype
    (classes, combinations), updates = table.shape, len(labels)
    if logits.dim() != 2 or len(logits) == 0:
        raise ValueError(f"logits has shape {list(logits.shape)}; give [L, {classes}] with L at least 1")
    check_tensor("logits", logits, (len(logits), classes), logits.dtype, device, "table")
    check_tensor("labels", labels, (updates,), torch.int64, device, "table")
    check_tensor("columns", columns, (updates,), torch.int64, device, "table")
    if with_rows.dim() not in (1, 2) or with_rows.numel() == 0:
        raise ValueError(f"with_rows has shape {list(with_rows.shape)}; give [{updates}] or [{updates}, J], neither empty")
    check_tensor("with_rows", with_rows, (updates, *with_rows.shape[1:]), torch.int64, device, "table")
    check_tensor("without_rows", without_rows, with_rows.shape, torch.int64, device, "table")
    check_tensor("joint_counts", joint_counts, (combinations,), torch.int64, device, "table")
    if weights is not None:
        check_tensor("weights", weights, (updates, with_rows[0].numel()), dtype, device, "table")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; give a number in 0..1")
    return table.new_empty(updates)
