"""CTR-GCN's layer cut at its batch norms: one plain function for each fused kernel, forward and backward.

A batch norm is a barrier: every row must be written before the first row can be normalised. So a kernel writes what it computes
raw, with moments of its channels, and the kernel that reads it applies norm, shortcut and ReLU on load. In training:

    pooled, x -> relations -> graph_unit -> y | reduce_branches -> z, o | temporal_branches -> o | finish_layer -> out, pooled

where each | is a barrier at which `join_moments` makes a norm of the moments. In eval mode the norms are known: `input_rows`
makes x of the first layer from clips and coalitions, and `folded_graph_unit` and `folded_temporal_unit` are the whole layer.

Shapes and dtypes, for all functions:
    R rows (clips times people), T frames (T' after the stride), V joints, C channels, Q = C / 4, S subsets, K relations.
    Activations and their gradients are [R, T, V, C] contiguous: the memory of a channels-last [R, C, T, V]. They and the weights
    of products have one dtype; norms, moments, sums, biases, `pooled`, `alpha`, `shared` and gradients of parameters are
    float32, or float64 for float64 activations ("wide"). Products accumulate in the wide dtype.
    moments [P, 3, C]: rows, mean and sum of squared deviations of P parts of the rows. A kernel may choose P, the reference has 1.
    sums [P, 2, C]: a gradient g and g times the normalised value, summed over P parts of the rows. Gradients of parameters are
        parts [P, ...] alike.
    norm [6, C]: mean, 1 / sqrt(variance + eps), weight, bias, 1 / rows, biased variance.
Biases of convolutions before a norm cancel and do not occur here; the running mean includes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from .coalition import CoalitionClips, coalition_inputs

EPS = 1e-5
KERNEL, POOL = 5, 3  # frames of the temporal convolutions, the second of which is dilated by 2, and of the maximum


def wide(x: Tensor) -> Tensor:
    """In the dtype of sums: float32, or float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


# Norms.


def moments(x: Tensor) -> Tensor:
    """[..., C] -> moments [1, 3, C]."""
    rows = wide(x).flatten(0, -2)
    mean = rows.mean(0)
    return torch.stack([torch.full_like(mean, len(rows)), mean, (rows - mean).square().sum(0)])[None]


class Join(NamedTuple):
    """Moments of which a norm is made.

    Attributes:
        partial: moments [P, 3, C] of parts of the rows; of more channels, the others are ignored.
        weight, bias: of the norm, [C].
        out: the norm [6, C] is written here.
        tail: moments [P', 3, >= C] of the channels that `partial` has not, or None.
    """

    partial: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    tail: Tensor | None = None


def join_moments(joins: Sequence[Join], eps: float = EPS) -> None:
    """Makes norms of moments. Joined in float64; parts of 0 rows are ignored."""
    for partial, weight, bias, out, tail in joins:
        rows, mean, deviations = _merged(partial, len(weight), tail)
        variance = deviations / rows
        values = [mean, (variance + eps).rsqrt(), weight.double(), bias.double(), 1 / rows, variance]
        out.copy_(torch.stack(values))


def merge_moments(partial: Tensor, channels: int, *, tail: Tensor | None = None) -> Tensor:
    """Moments of parts of the rows, as in `join_moments` -> moments [1, 3, channels] of all rows of this process."""
    return torch.stack(_merged(partial, channels, tail))[None].to(partial.dtype)


def _merged(partial: Tensor, channels: int, tail: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, mean and squared deviations [channels] in float64."""
    sources = [partial[..., :channels]] + ([] if tail is None else [tail[..., partial.shape[2] : channels]])
    merged = []
    for parts in sources:
        rows, mean, deviations = parts.double().unbind(1)
        total = rows.sum(0)
        centre = (rows * mean).sum(0) / total
        merged.append((total, centre, (deviations + rows * (mean - centre).square()).sum(0)))
    rows, mean, deviations = (torch.cat(values) for values in zip(*merged, strict=True))
    return rows, mean, deviations


def join_parts(*partials: Tensor) -> list[Tensor]:
    """Parts [P, ...] of sums -> the sums [...], one for each argument: of `sums`, the gradients of bias and weight of a norm.

    Parts of five axes [P, n, F, O, I] are gradients of convolutions over F frames, whose sums are [n, O, I, F]. Added in float64.
    """
    joined = [partial.double().sum(0).to(partial.dtype) for partial in partials]
    return [value.movedim(1, -1).contiguous() if value.dim() == 4 else value for value in joined]


def joined_shape(partial: Tensor) -> tuple[int, ...]:
    """The shape of the sum in `join_parts`."""
    if partial.dim() != 5:
        return tuple(partial.shape[1:])
    _, count, frames, *inner = partial.shape
    return count, *inner, frames


class Statistics(NamedTuple):
    """The part that one batch norm module has in a buffer of norms [6, width], one after another.

    Attributes:
        mean, variance: running, [C].
        weight, bias: [C].
        conv_bias: [C], of the convolution before it, or None: the running mean includes it, what is normalised does not.
        first: position of the module's first channel in the buffer.
        width: channels of the norm that the module belongs to.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    conv_bias: Tensor | None
    first: int
    width: int

    def rows(self, norms: Tensor) -> list[Tensor]:
        """Views [C] of the six rows of the norm."""
        return [norms[self.first + row * self.width :][: len(self.mean)] for row in range(6)]


def update_statistics(norms: Tensor, modules: Sequence[Statistics], momentum: float) -> None:
    """Moves running means and unbiased variances towards those of the norms, in place."""
    for module in modules:
        mean, _, _, _, per_row, variance = module.rows(norms)
        module.mean.lerp_(mean if module.conv_bias is None else mean + module.conv_bias, momentum)
        module.variance.lerp_(variance / torch.maximum(1 - per_row, per_row), momentum)  # that of a single row is 0


def running_norms(norms: Tensor, modules: Sequence[Statistics], eps: float = EPS) -> None:
    """Writes the norms of the running statistics, of 0 rows."""
    for module in modules:
        mean = module.mean if module.conv_bias is None else module.mean - module.conv_bias
        values = (mean, (module.variance + eps).rsqrt(), module.weight, module.bias, torch.zeros_like(mean), module.variance)
        for row, value in zip(module.rows(norms), values, strict=True):
            row.copy_(value)


def pack(sources: Sequence[Tensor], out: Tensor) -> None:
    """Writes the values of all sources, one after another, into `out`, in its dtype."""
    for part, source in zip(out.split([source.numel() for source in sources]), sources, strict=True):
        part.copy_(source.reshape(-1))


def normalise(x: Tensor, norm: Tensor) -> Tensor:
    """[..., C] -> the same shape, wide."""
    mean, rstd, weight, bias = norm[:4]
    return (wide(x) - mean) * (rstd * weight) + bias


def sums(grad: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """Gradient of the normalised value, raw value [..., C] -> sums [1, 2, C]."""
    grad = wide(grad).flatten(0, -2)
    value = (wide(x).flatten(0, -2) - norm[0]) * norm[1]
    return torch.stack([grad.sum(0), (grad * value).sum(0)])[None]


def normalise_backward(grad: Tensor, x: Tensor, norm: Tensor, summed: Tensor) -> Tensor:
    """Gradient of the normalised value, raw value [..., C], joined sums [2, C] -> gradient of the raw value, wide."""
    mean, rstd, weight, _, per_row, _ = norm
    value = (wide(x) - mean) * rstd
    return rstd * weight * (wide(grad) - (summed[0] + value * summed[1]) * per_row)


# Relations between joints.


def relations(pooled: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """tanh(left[u] - right[v]) for each pair of joints: the factors that conv4 makes graphs of.

    Args:
        pooled: [R, V, C] wide, the mean of the activations over the frames.
        weight, bias: [2, S, K, C] and [2, S, K] wide: conv1 and conv2 of the subsets.
        dtype: of the result, that of the activations.

    Returns:
        factors [R, S, V, V, K].
    """
    left, right = torch.einsum("rvc,dskc->drsvk", pooled, weight) + bias[:, None, :, None]
    return torch.tanh(left[:, :, :, None] - right[:, :, None]).to(dtype).contiguous()


def relations_backward(grad: Tensor, factors: Tensor, pooled: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the factors [R, S, V, V, K] wide -> that of pooled, and parts of those of weight and bias [P, 2 S K (C + 1)]."""
    inner = grad * (1 - wide(factors).square())
    terms = torch.stack([inner.sum(3), -inner.sum(2)])  # [2, R, S, V, K]
    to_pooled = torch.einsum("drsvk,dskc->rvc", terms, weight)
    return to_pooled, torch.cat([torch.einsum("drsvk,rvc->dskc", terms, pooled).flatten(), terms.sum((1, 3)).flatten()])[None]


# Graph unit.


def graphs(factors: Tensor, w4: Tensor, b4: Tensor, alpha: Tensor, shared: Tensor) -> Tensor:
    """shared[s, u, v] + alpha * (w4[s, c] . factors[r, s, u, v] + b4[s, c]): [R, S, V, V, C] wide."""
    refined = torch.einsum("rsuvk,sck->rsuvc", wide(factors), wide(w4)) + b4[:, None, None]
    return shared[..., None] + alpha * refined


def graph_unit(
    x: Tensor, factors: Tensor, w3: Tensor, b3: Tensor, w4: Tensor, b4: Tensor, alpha: Tensor, shared: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum over the subsets of conv3(x) aggregated by the refined graphs: y[t, u, c] = sum_sv graph[s, u, v, c] feature[s, t, v, c].

    Args:
        x: [R, T, V, C'].
        factors: [R, S, V, V, K].
        w3, b3: [S, C, C'] in the dtype of x and [S, C] wide.
        w4, b4: [S, C, K] in the dtype of x and [S, C] wide.
        alpha, shared: [1] and [S, V, V] wide.

    Returns:
        (y [R, T, V, C], its moments).
    """
    features = torch.einsum("rtvi,sci->rstvc", wide(x), wide(w3)) + b3[:, None, None]
    y = torch.einsum("rsuvc,rstvc->rtuc", graphs(factors, w4, b4, alpha, shared), features).to(x.dtype).contiguous()
    return y, moments(y)


def graph_unit_backward(
    grad: Tensor,
    y: Tensor,
    norm: Tensor,
    summed: Tensor,
    x: Tensor,
    factors: Tensor,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    b4: Tensor,
    alpha: Tensor,
    shared: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of the graph unit, but for that of x, which `layer_input_backward` makes of the features'.

    Args:
        grad: [R, T, V, C], gradient of the normalised y.
        norm, summed: norm of y and its joined sums.

    Returns:
        Gradients of (features [R, T, V, S C] in the dtype of x, factors wide), and parts of those of w3 and b3 [P, S C C' + S C],
        of w4 and b4 [P, S C K + S C], of shared [P, S, V, V], and of alpha [P, 1]; a kernel may choose another P for each.
    """
    to_y = normalise_backward(grad, y, norm, summed)
    features = torch.einsum("rtvi,sci->rstvc", wide(x), wide(w3)) + b3[:, None, None]
    to_features = torch.einsum("rsuvc,rtuc->rtvsc", graphs(factors, w4, b4, alpha, shared), to_y)
    to_graphs = torch.einsum("rtuc,rstvc->rsuvc", to_y, features)
    of_w3 = torch.einsum("rtvsc,rtvi->sci", to_features, wide(x))
    of_w4 = torch.einsum("rsuvc,rsuvk->sck", to_graphs, wide(factors))
    of_b4 = to_graphs.sum((0, 2, 3))
    return (
        to_features.flatten(3).to(x.dtype),
        alpha * torch.einsum("rsuvc,sck->rsuvk", to_graphs, wide(w4)),
        torch.cat([of_w3.flatten(), to_features.sum((0, 1, 2)).flatten()])[None],
        alpha * torch.cat([of_w4.flatten(), of_b4.flatten()])[None],
        to_graphs.sum((0, 4))[None],
        ((of_w4 * wide(w4)).sum() + (of_b4 * b4).sum()).view(1, 1),
    )


class LayerBelow(NamedTuple):
    """The end of the layer that made x: its output (x), the raw values before its last norm, that norm, and the residual."""

    out: Tensor
    o: Tensor
    norm: Tensor
    residual: Tensor | None
    residual_norm: Tensor | None


def layer_input_backward(
    to_features: Tensor,
    w3: Tensor,
    to_pooled: Tensor,
    *,
    from_shortcut: Tensor | None = None,
    from_end: Tensor | None = None,
    from_down: Tensor | None = None,
    from_residual: Tensor | None = None,
    below: LayerBelow | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient of a layer's input: through conv3, and all that flows into it elsewhere; then as in `finish_layer_backward`.

    Args:
        to_features: [R, T, V, S C]; w3: [S, C, C'].
        to_pooled: [R, V, C'], gradient of the mean of x over the frames.
        from_shortcut, from_end, from_down: [R, T, V, C'] or None, added: the gradient of the normalised y if x is the shortcut, of
            the layer's end if x is the residual, and through the convolution of the shortcut.
        from_residual: [R, T', V, C'] or None, added to every (T / T')th frame: through the convolution of the residual.
        below: the end of the layer below, or None if there is none.

    Returns:
        (gradient of x, or of norm(o) + residual of the layer below: [R, T, V, C'], sums of its o, sums of its residual if it has a
        norm).
    """
    total = wide(to_features) @ wide(w3).flatten(0, 1) + to_pooled[:, None] / to_features.shape[1]
    for added in (from_shortcut, from_end, from_down):
        total = total if added is None else total + wide(added)
    if from_residual is not None:
        total[:, :: _stride(total, from_residual)] += wide(from_residual)
    if below is None:
        return total.to(to_features.dtype), None, None
    return _pass(total, *below)


# 1x1 convolutions of shortcut and residual.


def row_product(x: Tensor, weight: Tensor, *, stride: int = 1) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution of every `stride`th frame: x [R, T, V, C'], weight [C, C'] -> (raw [R, T', V, C], its moments)."""
    raw = (wide(x[:, ::stride]) @ wide(weight).T).to(x.dtype)
    return raw, moments(raw)


def row_product_backward(
    grad: Tensor, raw: Tensor, norm: Tensor, summed: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradient of the normalised result [R, T', V, C] -> gradient of x at every `stride`th frame [R, T', V, C'], and
    parts of that of the weight [P, C, C']."""
    to_raw = normalise_backward(grad, raw, norm, summed)
    to_weight = torch.einsum("rtvc,rtvi->ci", to_raw, wide(x[:, ::stride]))
    return (to_raw @ wide(weight)).to(x.dtype), to_weight[None]


# Temporal unit.


def unit_input(y: Tensor, norm: Tensor, shortcut: Tensor, shortcut_norm: Tensor | None) -> Tensor:
    """relu(norm(y) + shortcut) [R, T, V, C] in the dtype of y; the shortcut is raw if it has a norm."""
    added = wide(shortcut) if shortcut_norm is None else normalise(shortcut, shortcut_norm)
    return torch.relu(normalise(y, norm) + added).to(y.dtype)


def reduce_branches(
    y: Tensor, norm: Tensor, shortcut: Tensor, shortcut_norm: Tensor | None, weight: Tensor, *, stride: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The 1x1 convolutions of all four branches on `unit_input`, the last at every `stride`th frame.

    Args:
        y, norm, shortcut, shortcut_norm: as in `unit_input`.
        weight: [C, C]: outputs of the three reduced branches, then of the skip branch.

    Returns:
        (z [R, T, V, 3Q] raw, o [R, T', V, C] with the raw skip branch in the last Q channels and the others unset,
        moments of the C outputs; the skip branch has R T' V rows).
    """
    reduced, skip = (wide(unit_input(y, norm, shortcut, shortcut_norm)) @ wide(weight).T).to(y.dtype).split([*_widths(y)], -1)
    skip = skip[:, ::stride]
    o = torch.cat([skip.new_zeros(*skip.shape[:3], reduced.shape[3]), skip], -1)
    return reduced.contiguous(), o, torch.cat([moments(reduced), moments(skip)], -1)


def reduce_branches_backward(
    to_reduced: Tensor,
    z: Tensor,
    z_norm: Tensor,
    z_summed: Tensor,
    grad: Tensor,
    o: Tensor,
    o_norm: Tensor,
    o_summed: Tensor,
    y: Tensor,
    norm: Tensor,
    shortcut: Tensor,
    shortcut_norm: Tensor | None,
    weight: Tensor,
    *,
    stride: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Gradient of `reduce_branches`.

    Args:
        to_reduced: [R, T, V, 3Q], gradient of the normalised z.
        z, z_norm, z_summed: raw, norm and joined sums of the reduced branches.
        grad: [R, T', V, C], gradient of the normalised o; o, o_norm [6, C], o_summed [2, C] alike. The last Q channels are used.
        y, norm, shortcut, shortcut_norm, weight: as in the forward pass.

    Returns:
        (gradient of norm(y) + shortcut [R, T, V, C]: 0 where the ReLU was, sums of y, sums of the shortcut if it has a norm,
        parts of the gradient of the weight [P, C, C]).
    """
    skip = slice(3 * y.shape[3] // 4, None)
    of_skip = normalise_backward(grad[..., skip], o[..., skip], o_norm[:, skip], o_summed[:, skip])
    spread = torch.zeros(*y.shape[:3], of_skip.shape[3], dtype=of_skip.dtype, device=y.device)
    spread[:, ::stride] = of_skip
    to_raw = torch.cat([normalise_backward(to_reduced, z, z_norm, z_summed), spread], -1)
    x = unit_input(y, norm, shortcut, shortcut_norm)
    to_x = torch.where(x > 0, to_raw @ wide(weight), 0).to(y.dtype)
    to_weight = torch.einsum("rtvc,rtvi->ci", to_raw, wide(x))
    of_shortcut = None if shortcut_norm is None else sums(to_x, shortcut, shortcut_norm)
    return to_x, sums(to_x, y, norm), of_shortcut, to_weight[None]


def temporal_branches(o: Tensor, z: Tensor, norm: Tensor, narrow: Tensor, dilated: Tensor) -> Tensor:
    """Convolution over 5 frames, the same dilated by 2, maximum over 3 frames, of the three normalised and rectified branches.

    Args:
        o: [R, T', V, C], whose first 3Q channels are written, raw.
        z: [R, T, V, 3Q] raw, and its norm. T' is T divided by the stride, rounded up.
        narrow, dilated: [Q, Q, 5], outputs first.

    Returns:
        Moments [P, 3, 3Q] of the channels written.
    """
    results = _branches(torch.relu(normalise(z, norm)).to(z.dtype), narrow, dilated, _stride(z, o))
    o[..., : z.shape[3]] = results
    return moments(o[..., : z.shape[3]])


def temporal_branches_backward(
    grad: Tensor, o: Tensor, o_norm: Tensor, o_summed: Tensor, z: Tensor, norm: Tensor, narrow: Tensor, dilated: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of `temporal_branches` from `grad` [R, T', V, C], the gradient of the normalised o; the first 3Q channels are used.

    Returns:
        (gradient of the normalised z [R, T, V, 3Q]: 0 where the ReLU was, its sums, parts of the gradients of narrow
        and dilated [P, 2, 5, Q, Q]). Of several equal maxima, the first gets the gradient.
    """
    width = z.shape[3]
    to_o = normalise_backward(grad[..., :width], o[..., :width], o_norm[:, :width], o_summed[:, :width])
    with torch.enable_grad():
        inputs = [value.detach().requires_grad_() for value in (torch.relu(normalise(z, norm)).to(z.dtype), narrow, dilated)]
        results = _branches(inputs[0], inputs[1], inputs[2], _stride(z, o))
    to_z, to_narrow, to_dilated = torch.autograd.grad(results, inputs, to_o.to(results.dtype))
    to_z = torch.where(inputs[0] > 0, to_z, 0)
    return to_z, sums(to_z, z, norm), wide(torch.stack([to_narrow, to_dilated])).movedim(-1, 1)[None]


def finish_layer(o: Tensor, norm: Tensor, residual: Tensor | None, residual_norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """relu(norm(o) + residual), with the residual raw if it has a norm -> (out [R, T', V, C], its mean over the frames, wide)."""
    value = normalise(o, norm)
    if residual is not None:
        value = value + (wide(residual) if residual_norm is None else normalise(residual, residual_norm))
    out = torch.relu(value).to(o.dtype)
    return out, wide(out).mean(1)


def finish_layer_backward(
    grad: Tensor | None,
    to_pooled: Tensor | None,
    out: Tensor,
    o: Tensor,
    norm: Tensor,
    residual: Tensor | None,
    residual_norm: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of `finish_layer` from those of out [R, T', V, C] and of its mean [R, V, C], either of them or both.

    Returns:
        (gradient of norm(o) + residual, sums of o, sums of the residual if it has a norm).
    """
    total = torch.zeros_like(wide(out)) if grad is None else wide(grad)
    if to_pooled is not None:
        total = total + to_pooled[:, None] / out.shape[1]
    return _pass(total, out, o, norm, residual, residual_norm)


def _pass(
    total: Tensor, out: Tensor, o: Tensor, norm: Tensor, residual: Tensor | None, residual_norm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient of the output through the ReLU, and its sums."""
    passed = torch.where(out > 0, total, 0).to(out.dtype)
    of_residual = None if residual is None or residual_norm is None else sums(passed, residual, residual_norm)
    return passed, sums(passed, o, norm), of_residual


# Eval mode: the norms are known.


def input_rows(clips: Tensor | CoalitionClips, norm: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first layer's input: clips, masked by their coalitions, normalised, one row per person.

    Args:
        clips: [N, C, T, V, M], or clips under coalitions.
        norm: [6, M V C] of the input, in the order of people, joints, coordinates.
        dtype: of the activations.

    Returns:
        (x [N M, T, V, C] in `dtype`, its mean over the frames, in the dtype of the norm).
    """
    if isinstance(clips, CoalitionClips):
        own, sets = clips.clips[clips.samples], clips.coalitions[None]
        clips = coalition_inputs(own, clips.mean_motion, sets, clips.part_of_joint, restored_frames=clips.restored_frames)
    n, channels, frames, joints, people = clips.shape
    x = normalise(clips.permute(0, 2, 4, 3, 1).flatten(2), norm).view(n, frames, people, joints, channels)
    rows = x.transpose(1, 2).flatten(0, 1).to(dtype).contiguous()
    return rows, rows.mean(1, dtype=norm.dtype)


def folded_graph_unit(
    x: Tensor,
    factors: Tensor,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    b4: Tensor,
    alpha: Tensor,
    shared: Tensor,
    norm: Tensor,
    *,
    down: Tensor | None = None,
    down_norm: Tensor | None = None,
) -> Tensor:
    """`graph_unit`, its norm, the shortcut and ReLU: [R, T, V, C]. The shortcut is x, or norm(x @ down.T) with `down` [C, C']."""
    y, _ = graph_unit(x, factors, w3, b3, w4, b4, alpha, shared)
    return unit_input(y, norm, x if down is None else row_product(x, down)[0], down_norm)


def folded_temporal_unit(
    x: Tensor,
    weight: Tensor,
    z_norm: Tensor,
    narrow: Tensor,
    dilated: Tensor,
    o_norm: Tensor,
    *,
    stride: int = 1,
    residual: Tensor | None = None,
    residual_weight: Tensor | None = None,
    residual_norm: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The whole temporal unit with residual and ReLU.

    Args:
        x: [R, T, V, C], the output of the graph unit.
        weight, z_norm, narrow, dilated, o_norm: as in training.
        residual: [R, T, V, C'], the input of the layer; with a weight [C, C'] and a norm, through a 1x1 convolution of every
            `stride`th frame. None: no residual.

    Returns:
        (out [R, T', V, C], its mean over the frames, wide).
    """
    reduced, skip = (wide(x) @ wide(weight).T).to(x.dtype).split([*_widths(x)], -1)
    branches = _branches(torch.relu(normalise(reduced, z_norm)).to(x.dtype), narrow, dilated, stride)
    o = torch.cat([branches, skip[:, ::stride]], -1)
    if residual is not None and residual_weight is not None:
        residual = row_product(residual, residual_weight, stride=stride)[0]
    return finish_layer(o, o_norm, residual, residual_norm)


def _widths(x: Tensor) -> tuple[int, int]:
    """Channels of the three reduced branches and of the skip branch."""
    return 3 * x.shape[3] // 4, x.shape[3] // 4


def _stride(x: Tensor, strided: Tensor) -> int:
    return -(-x.shape[1] // strided.shape[1])


def _branches(x: Tensor, narrow: Tensor, dilated: Tensor, stride: int) -> Tensor:
    """[R, T, V, 3Q] -> [R, T', V, 3Q] in the dtype of x: both convolutions and the maximum over time."""
    a, b, c = x.permute(0, 3, 1, 2).chunk(3, 1)
    first = conv2d(wide(a), wide(narrow)[..., None], stride=(stride, 1), padding=(KERNEL // 2, 0))
    second = conv2d(wide(b), wide(dilated)[..., None], stride=(stride, 1), padding=(KERNEL - 1, 0), dilation=(2, 1))
    largest = max_pool2d(wide(c), (POOL, 1), (stride, 1), (POOL // 2, 0))
    return torch.cat([first, second, largest], 1).permute(0, 2, 3, 1).to(x.dtype).contiguous()
