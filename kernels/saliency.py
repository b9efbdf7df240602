"""Updating the class saliency on the fastest back end."""

from __future__ import annotations

import torch
from torch import Tensor

from shapmix import reference

from . import native
from .checks import DTYPES, SUM_DTYPES, check_dtype, check_tensor
from .dispatch import choose, implementation


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
    """From the logits of coalitions to the class table, in place.

    Update u measures combination P = columns[u] on a sample of class y = labels[u]: its marginal is
    ReLU(v(R u P) - v(R)), v the probability of y, or the weighted sum of several such marginals; then
    table[y, P] <- decay * table[y, P] + (1 - decay) * marginal * scale / joints(P), in the order of the updates where a class
    and combination repeat. An update whose marginal is not finite leaves the table as it was.

    Args:
        table: [K, Q] float32 or float64, contiguous; Q the layout's combinations.
        logits: [L, K] floating point, one row a forwarded coalition; no gradient flows. Summed in the table's type.
        labels, columns: [U] int64.
        with_rows, without_rows: [U] int64, the rows of `logits` that show R u P and R; or [U, J] for J contexts. Rows may
            be shared: one row of the mean motion serves every empty context.
        joint_counts: [Q] int64, joints in each combination, all above 0.
        decay: 0 replaces, 0.9 is the paper's.
        weights: [U, J] of the table's type, of the contexts; None weighs each 1.
        scale: the paper's 10.
        backend: one of `BACKENDS`; None takes SHAPMIX_BACKEND, else the fastest that can run.

    Returns:
        [U] the marginals, in the table's type.

    Raises:
        TypeError: an argument's dtype.
        ValueError: an argument's shape or device, a decay outside 0..1; on CPU tensors also an index that points outside or a
            combination without joints. The table is then as it was.
        BackendError: the back end asked for cannot run.
    """
    if torch.compiler.is_compiling():
        arguments = (table, logits, labels, columns, with_rows, without_rows, joint_counts, decay, weights, scale, backend)
        return torch.ops.shapmix.saliency_update(*arguments)
    if table.dim() != 2 or table.numel() == 0:
        raise ValueError(f"table has shape {list(table.shape)}; give [K, Q] with no axis empty")
    if not table.is_contiguous():
        raise ValueError("table is not contiguous; it is updated in place, so give it as one block")
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

    chosen = choose("saliency_update", logits, backend)
    logits, labels, columns = logits.detach().contiguous(), labels.contiguous(), columns.contiguous()
    with_rows, without_rows = with_rows.contiguous().view(updates, -1), without_rows.contiguous().view(updates, -1)
    joint_counts, weights = joint_counts.contiguous(), None if weights is None else weights.contiguous()
    if table.is_cpu and chosen != "cpp":
        native.check_updates(table, logits, labels, columns, with_rows, without_rows, joint_counts)
    if chosen == "reference":
        return reference.saliency_update(
            table, logits, labels, columns, with_rows, without_rows, joint_counts, decay, weights=weights, scale=scale
        )

    marginal = table.new_empty(updates)
    implementation(chosen).saliency_update(
        marginal, table, logits, labels, columns, with_rows, without_rows, weights, joint_counts, decay, scale
    )
    return marginal


# The same op for torch.compile, which must know that the table is written.


@torch.library.custom_op(
    "shapmix::saliency_update",
    mutates_args=("table",),
    schema="(Tensor(a!) table, Tensor logits, Tensor labels, Tensor columns, Tensor with_rows, Tensor without_rows, "
    "Tensor joint_counts, float decay, Tensor? weights, float scale, str? backend) -> Tensor",
)
def _saliency_update(
    table: Tensor,
    logits: Tensor,
    labels: Tensor,
    columns: Tensor,
    with_rows: Tensor,
    without_rows: Tensor,
    joint_counts: Tensor,
    decay: float,
    weights: Tensor | None,
    scale: float,
    backend: str | None,
) -> Tensor:
    return saliency_update(
        table,
        logits,
        labels,
        columns,
        with_rows,
        without_rows,
        joint_counts,
        decay,
        weights=weights,
        scale=scale,
        backend=backend,
    )


@_saliency_update.register_fake
def _(table: Tensor, logits: Tensor, labels: Tensor, *_arguments: object) -> Tensor:
    return table.new_empty(len(labels))
