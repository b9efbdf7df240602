"""CTR-GCN's layers with explicit buffers: the steps of `shapmix.reference.layer`, forward and backward, as one autograd function.

`LayerSteps` names the functions of the steps: the plain ones of the reference, or the Triton kernels, which have the same
signatures. Between two steps only what a step returns exists in memory: there are no concatenations, no copies of layouts, and
no sums of gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shapmix.networks.synced_norm import SyncedBatchNorm, gathered, summed_copy


class Field(NamedTuple):
    """Parameters of a layer that the kernels read as one tensor.

    Attributes:
        parameters: in the order of the tensor's memory.
        shape: of the tensor.
        of_product: it has the activations' dtype; else it is wide.
    """

    parameters: list[Tensor]
    shape: tuple[int, ...]
    of_product: bool


class Norm(NamedTuple):
    """Consecutive batch norms that the kernels apply as one, each with the bias of the convolution before it, or None."""

    modules: list[Any]
    biases: list[Tensor | None]

    @property
    def channels(self) -> int:
        return sum(module.num_features for module in self.modules)


class LayerParts(NamedTuple):
    """A layer of CTR-GCN as the steps see it: the same parameters and norms under the steps' names."""

    fields: dict[str, Field]
    norms: dict[str, Norm]
    stride: int
    with_down: bool  # the shortcut of the graph unit has a convolution
    residual: str  # "none", "identity" or "product"


def parts_of(layer: Any) -> LayerParts:
    """The parts of a `shapmix.networks.ctrgcn_reference.Layer`."""
    graph, (narrow, dilated, pool, skip) = layer.gcn1, layer.tcn1.branches
    subsets = list(graph.convs)
    reduced = [narrow, dilated, pool]
    width, channels = graph.bn.num_features, subsets[0].conv1.in_channels
    kept, quarter = subsets[0].conv1.out_channels, narrow[0].out_channels
    terms = [getattr(conv, name) for name in ("conv1", "conv2") for conv in subsets]
    ends = [narrow[3].bn, dilated[3].bn, pool[4], skip[1]]

    fields = {
        "relation_weight": Field([conv.weight for conv in terms], (2, len(subsets), kept, channels), False),
        "relation_bias": Field([conv.bias for conv in terms], (2, len(subsets), kept), False),
        "w3": Field([conv.conv3.weight for conv in subsets], (len(subsets), width, channels), True),
        "b3": Field([conv.conv3.bias for conv in subsets], (len(subsets), width), False),
        "w4": Field([conv.conv4.weight for conv in subsets], (len(subsets), width, kept), True),
        "b4": Field([conv.conv4.bias for conv in subsets], (len(subsets), width), False),
        "alpha": Field([graph.alpha], (1,), False),
        "shared": Field([graph.PA], tuple(graph.PA.shape), False),
        "reduce": Field([branch[0].weight for branch in (*reduced, skip)], (width, width), True),
        "narrow": Field([narrow[3].conv.weight], (quarter, quarter, 5), True),
        "dilated": Field([dilated[3].conv.weight], (quarter, quarter, 5), True),
    }
    norms = {
        "y": Norm([graph.bn], [None]),
        "z": Norm([branch[1] for branch in reduced], [branch[0].bias for branch in reduced]),
        "o": Norm(ends, [narrow[3].conv.bias, dilated[3].conv.bias, None, skip[0].bias]),
    }
    with_down = not isinstance(graph.down, nn.Identity)
    if with_down:
        fields["down"] = Field([graph.down[0].weight], (width, channels), True)
        norms["down"] = Norm([graph.down[1]], [graph.down[0].bias])
    residual = "none" if layer.residual is None else "identity" if isinstance(layer.residual, nn.Identity) else "product"
    if residual == "product":
        fields["residual"] = Field([layer.residual.conv.weight], (width, channels), True)
        norms["residual"] = Norm([layer.residual.bn], [layer.residual.conv.bias])
    for name, norm in norms.items():
        fields[f"{name}_weight"] = Field([module.weight for module in norm.modules], (norm.channels,), False)
        fields[f"{name}_bias"] = Field([module.bias for module in norm.modules], (norm.channels,), False)
    return LayerParts(fields, norms, skip[0].stride[0], with_down, residual)


def packed(layers: Sequence[LayerParts], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The fields of all layers as tensors, copied and cast at once: two buffers, of `dtype` and wide, and views of them."""
    by_kind: dict[bool, list[Tensor]] = {True: [], False: []}
    for layer in layers:
        for field in layer.fields.values():
            by_kind[field.of_product] += field.parameters
    flat = {}
    for of_product, parameters in by_kind.items():
        kind = dtype if of_product else parameters[0].dtype
        flat[of_product] = torch.empty(sum(p.numel() for p in parameters), dtype=kind, device=parameters[0].device)
        pieces = flat[of_product].split([p.numel() for p in parameters])
        torch._foreach_copy_(list(pieces), [p.detach().view(-1) for p in parameters])
    taken = {True: 0, False: 0}
    tensors = []
    for layer in layers:
        views = {}
        for name, field in layer.fields.items():
            size, first = sum(p.numel() for p in field.parameters), taken[field.of_product]
            views[name] = flat[field.of_product][first : first + size].view(field.shape)
            taken[field.of_product] += size
        tensors.append(views)
    return tensors


def norms_of(layers: Sequence[LayerParts], like: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """One buffer for the norms [6, C] of all layers, and views of it."""
    flat = like.new_empty(sum(6 * norm.channels for layer in layers for norm in layer.norms.values()))
    views, first = [], 0
    for layer in layers:
        of_layer = {}
        for name, norm in layer.norms.items():
            of_layer[name] = flat[first : first + 6 * norm.channels].view(6, norm.channels)
            first += 6 * norm.channels
        views.append(of_layer)
    return flat, views


@torch.no_grad()
def update_statistics(layers: Sequence[LayerParts], norms: Sequence[dict[str, Tensor]]) -> None:
    """Moves the running statistics of all norms towards those of the batch, in a few launches for the whole network.

    The running mean includes the bias of the convolution before the norm, which the raw values do not.
    """
    running, batch, variances, batch_variances, tracked = [], [], [], [], []
    for layer, of_layer in zip(layers, norms, strict=True):
        for name, norm in layer.norms.items():
            mean, *_, per_row, variance = of_layer[name]
            variance = variance / torch.maximum(1 - per_row, per_row)  # unbiased; of one row, as it is
            widths = [module.num_features for module in norm.modules]
            of_modules = zip(norm.modules, norm.biases, mean.split(widths), variance.split(widths), strict=True)
            for module, bias, new_mean, new_variance in of_modules:
                running.append(module.running_mean)
                batch.append(new_mean if bias is None else new_mean + bias)
                variances.append(module.running_var)
                batch_variances.append(new_variance)
                tracked.append(module.num_batches_tracked)
    momentum = layers[0].norms["y"].modules[0].momentum
    torch._foreach_lerp_(running + variances, batch + batch_variances, momentum)
    torch._foreach_add_(tracked, 1)


class FusedLayer(torch.autograd.Function):
    """(x [R, T, V, C'], its mean over the frames [R, V, C'] wide) -> (out [R, T', V, C], its mean), in training mode.

    The gradients of the parameters are views of the tensors that the steps return; those of biases before a norm are zeros.
    """

    @staticmethod
    def forward(
        ctx: Any,
        steps: Any,
        parts: LayerParts,
        weights: dict[str, Tensor],
        norms: dict[str, Tensor],
        x: Tensor,
        pooled: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        w, eps = weights, parts.norms["y"].modules[0].eps
        synced = isinstance(parts.norms["y"].modules[0], SyncedBatchNorm)

        def join(name: str, partial: Tensor, tail: Tensor | None = None) -> Tensor:
            weight, bias, out = w[f"{name}_weight"], w[f"{name}_bias"], norms[name]
            if synced:
                partial, tail = gathered(steps.merge_moments(partial, len(weight), tail=tail)), None
            return steps.join_moments(partial, weight, bias, eps, tail=tail, out=out)

        factors = steps.relations(pooled, w["relation_weight"], w["relation_bias"], x.dtype)
        y, moments = steps.graph_unit(x, factors, w["w3"], w["b3"], w["w4"], w["b4"], w["alpha"], w["shared"])
        join("y", moments)
        down = residual = None
        if parts.with_down:
            down, moments = steps.row_product(x, w["down"])
            join("down", moments)
        shortcut = x if down is None else down
        z, o, reduced = steps.reduce_branches(y, norms["y"], shortcut, norms.get("down"), w["reduce"], stride=parts.stride)
        join("z", reduced)
        join("o", steps.temporal_branches(o, z, norms["z"], w["narrow"], w["dilated"]), tail=reduced)
        if parts.residual == "product":
            residual, moments = steps.row_product(x, w["residual"], stride=parts.stride)
            join("residual", moments)
        added = x if parts.residual == "identity" else residual
        out, out_pooled = steps.finish_layer(o, norms["o"], added, norms.get("residual"))
        ctx.steps, ctx.parts, ctx.weights, ctx.norms, ctx.synced = steps, parts, weights, norms, synced
        ctx.save_for_backward(x, pooled, factors, y, z, o, out, down, residual)
        ctx.set_materialize_grads(False)
        return out, out_pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, to_pooled: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("fused layers have no second derivative; set SHAPMIX_BACKEND=reference to differentiate twice")
        steps, parts, w, norms = ctx.steps, ctx.parts, ctx.weights, ctx.norms
        x, pooled, factors, y, z, o, out, down, residual = ctx.saved_tensors
        to = {}

        def join(name: str, partial: Tensor) -> Tensor:
            own = steps.join_sums(partial)
            to[f"{name}_bias"], to[f"{name}_weight"] = own
            return summed_copy(own) if ctx.synced else own

        grad = None if grad is None else grad.contiguous()
        added = x if parts.residual == "identity" else residual
        passed, partial, of_residual = steps.finish_layer_backward(
            grad, to_pooled, out, o, norms["o"], added, norms.get("residual")
        )
        o_summed = join("o", partial)
        to_z, partial, to["narrow"], to["dilated"] = steps.temporal_branches_backward(
            passed, o, norms["o"], o_summed, z, norms["z"], w["narrow"], w["dilated"]
        )
        z_summed = join("z", partial)
        shortcut = x if down is None else down
        to_y, partial, of_down, to["reduce"] = steps.reduce_branches_backward(
            to_z,
            z,
            norms["z"],
            z_summed,
            passed,
            o,
            norms["o"],
            o_summed,
            y,
            norms["y"],
            shortcut,
            norms.get("down"),
            w["reduce"],
            stride=parts.stride,
        )
        y_summed = join("y", partial)
        from_down = from_residual = None
        if parts.with_down:
            down_summed = join("down", of_down)
            from_down, to["down"] = steps.row_product_backward(to_y, down, norms["down"], down_summed, x, w["down"])
        if parts.residual == "product":
            residual_summed = join("residual", of_residual)
            from_residual, to["residual"] = steps.row_product_backward(
                passed, residual, norms["residual"], residual_summed, x, w["residual"], stride=parts.stride
            )
        to_x, to_factors, to["w3"], to["b3"], to["w4"], to["b4"], to["alpha"], to["shared"] = steps.graph_unit_backward(
            to_y,
            y,
            norms["y"],
            y_summed,
            x,
            factors,
            w["w3"],
            w["b3"],
            w["w4"],
            w["b4"],
            w["alpha"],
            w["shared"],
            with_shortcut=down is None,
            from_end=passed if parts.residual == "identity" else None,
            from_down=from_down,
            from_residual=from_residual,
        )
        pooled_grad, to["relation_weight"], to["relation_bias"] = steps.relations_backward(
            to_factors, factors, pooled, w["relation_weight"]
        )
        return None, None, None, None, to_x, pooled_grad, *_of_parameters(parts, to)


def _of_parameters(parts: LayerParts, to: dict[str, Tensor]) -> Iterable[Tensor]:
    """The gradients of the parameters, in the order of `parameters_of`."""
    for name, field in parts.fields.items():
        pieces = to[name].reshape(-1).split([p.numel() for p in field.parameters])
        yield from (piece.view_as(p) for piece, p in zip(pieces, field.parameters, strict=True))
    biases = _biases(parts)
    zeros = biases[0].new_zeros(sum(map(len, biases)))
    yield from zeros.split([len(bias) for bias in biases])


def _biases(parts: LayerParts) -> list[Tensor]:
    """The biases of the convolutions before the norms."""
    return [bias for norm in parts.norms.values() for bias in norm.biases if bias is not None]


def parameters_of(parts: LayerParts) -> list[Tensor]:
    """All parameters of a layer."""
    return [p for field in parts.fields.values() for p in field.parameters] + _biases(parts)


def fused_layers(steps: Any, layers: Sequence[LayerParts], x: Tensor) -> Tensor:
    """All layers in training mode: x [R, T, V, C] contiguous -> the mean over the frames of the last layer [R, V, C], wide.

    Updates the running statistics.
    """
    weights = packed(layers, x.dtype)
    pooled = x.mean(1, dtype=weights[0]["alpha"].dtype)
    _, norms = norms_of(layers, weights[0]["alpha"])
    for parts, of_layer, norms_of_layer in zip(layers, weights, norms, strict=True):
        x, pooled = FusedLayer.apply(steps, parts, of_layer, norms_of_layer, x, pooled, *parameters_of(parts))  # type: ignore[no-untyped-call]
    update_statistics(layers, norms)
    return pooled


@torch.no_grad()
def folded_layers(steps: Any, layers: Sequence[LayerParts], x: Tensor) -> Tensor:
    """All layers in eval mode, without gradients: x [R, T, V, C] contiguous -> the mean over the frames of the last layer."""
    weights = packed(layers, x.dtype)
    pooled = x.mean(1, dtype=weights[0]["alpha"].dtype)
    for parts, w in zip(layers, weights, strict=True):
        norms = {name: _running(steps, norm, w[f"{name}_weight"], w[f"{name}_bias"]) for name, norm in parts.norms.items()}
        factors = steps.relations(pooled, w["relation_weight"], w["relation_bias"], x.dtype)
        graph = (factors, w["w3"], w["b3"], w["w4"], w["b4"], w["alpha"], w["shared"])
        y = steps.folded_graph_unit(x, *graph, norms["y"], down=w.get("down"), down_norm=norms.get("down"))
        x, pooled = steps.folded_temporal_unit(
            y,
            w["reduce"],
            norms["z"],
            w["narrow"],
            w["dilated"],
            norms["o"],
            stride=parts.stride,
            residual=None if parts.residual == "none" else x,
            residual_weight=w.get("residual"),
            residual_norm=norms.get("residual"),
        )
    return pooled


def _running(steps: Any, norm: Norm, weight: Tensor, bias: Tensor) -> Tensor:
    """The norm [6, C] of the running statistics."""
    mean, variance = (torch.cat([getattr(module, name) for module in norm.modules]) for name in ("running_mean", "running_var"))
    biases = [m.running_mean.new_zeros(m.num_features) if b is None else b for m, b in zip(norm.modules, norm.biases, strict=True)]
    result: Tensor = steps.eval_norm(mean, variance, weight, bias, torch.cat(biases), norm.modules[0].eps)
    return result
