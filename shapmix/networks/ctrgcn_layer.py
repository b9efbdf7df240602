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
from torch.nn.utils import parametrize

from shapmix.networks.synced_norm import SyncedBatchNorm, gathered, summed_copy
from shapmix.reference.coalition import CoalitionClips
from shapmix.reference.layer import Join, LayerBelow, Statistics

LAYERS_JOINED = 5  # layers whose parts of gradients are added up in one launch


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


WIDEST = 512  # channels of a fused layer: one tap of a branch, a quarter of them squared, lies in a GPU's shared memory


def can_be_fused(layers: Sequence[nn.Module], data_bn: nn.Module, training: bool) -> bool:
    """Whether the layers are what the steps compute: the modules as published, without hooks, all in the same mode.

    The steps take one eps and one momentum for all norms. In eval mode they compute the input norm too.
    """
    norms = [] if training else [data_bn]
    for layer in layers:
        try:
            found = parts_of(layer).norms
        except (AttributeError, TypeError, ValueError):  # another module has other parts
            return False
        if found["y"].channels > WIDEST:
            return False
        norms += [module for norm in found.values() for module in norm.modules]
    if not all(_is_norm(norm) for norm in norms):
        return False
    if len({norm.eps for norm in norms}) > 1 or len({norm.momentum for norm in norms}) > 1:
        return False
    return all(_is_plain(module, training) for module in (*layers, *([] if training else [data_bn])))


def _is_norm(norm: Any) -> bool:
    """Whether a module is a batch norm with weights and running statistics."""
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d, SyncedBatchNorm):
        return False
    return norm.running_mean is not None and norm.momentum is not None and norm.affine


def _is_plain(layer: nn.Module, training: bool) -> bool:
    """Whether calling the layer's modules does no more than their kernels."""
    for module in layer.modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return False
        if module.training != training or parametrize.is_parametrized(module):
            return False
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d:
            return False
    return all(p.dtype in (torch.float32, torch.float64) and p.is_contiguous() for p in layer.parameters())


def packed(steps: Any, layers: Sequence[LayerParts], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The fields of all layers as tensors, copied and cast at once: views of two buffers, of `dtype` and wide."""
    views: list[dict[str, Tensor]] = [{} for _ in layers]
    for of_product in (True, False):
        fields = [(view, *item) for view, layer in zip(views, layers, strict=True) for item in layer.fields.items()]
        fields = [entry for entry in fields if entry[2].of_product == of_product]
        sources = [p.detach() for _, _, field in fields for p in field.parameters]
        kind = dtype if of_product else sources[0].dtype
        flat = torch.empty(sum(p.numel() for p in sources), dtype=kind, device=sources[0].device)
        steps.pack(sources, flat)
        pieces = flat.split([sum(p.numel() for p in field.parameters) for _, _, field in fields])
        for (view, name, field), piece in zip(fields, pieces, strict=True):
            view[name] = piece.view(field.shape)
    return views


def norms_of(layers: Sequence[dict[str, Norm]], like: Tensor) -> tuple[Tensor, list[dict[str, Tensor]], list[Statistics]]:
    """One buffer for the norms [6, C] of all layers, views of it, and the modules whose statistics they are."""
    flat = like.new_empty(sum(6 * norm.channels for norms in layers for norm in norms.values()))
    views, modules, first = [], [], 0
    for norms in layers:
        of_layer = {}
        for name, norm in norms.items():
            of_layer[name] = flat[first : first + 6 * norm.channels].view(6, norm.channels)
            at = first
            for module, bias in zip(norm.modules, norm.biases, strict=True):
                affine = (module.weight.detach(), module.bias.detach(), None if bias is None else bias.detach())
                modules.append(Statistics(module.running_mean, module.running_var, *affine, at, norm.channels))
                at += module.num_features
            first += 6 * norm.channels
        views.append(of_layer)
    return flat, views, modules


class Saved(NamedTuple):
    """What a layer keeps for its backward pass; raw values, normalised where they are read."""

    x: Tensor
    pooled: Tensor
    factors: Tensor
    y: Tensor
    z: Tensor
    o: Tensor
    out: Tensor
    down: Tensor | None
    residual: Tensor | None


class Forward(NamedTuple):
    """The forward pass of one layer in training mode: its parts, packed weights, and the memory of its norms."""

    steps: Any
    parts: LayerParts
    w: dict[str, Tensor]
    norms: dict[str, Tensor]

    def run(self, x: Tensor, pooled: Tensor) -> tuple[Saved, Tensor]:
        """x [R, T, V, C'] and its mean over the frames [R, V, C'] -> (what is saved, with the output, and the output's mean)."""
        steps, parts, w, norms = self
        factors = steps.relations(pooled, w["relation_weight"], w["relation_bias"], x.dtype)
        y, y_moments = steps.graph_unit(x, factors, w["w3"], w["b3"], w["w4"], w["b4"], w["alpha"], w["shared"])
        down, down_moments = steps.row_product(x, w["down"]) if parts.with_down else (None, None)
        self.join(y=(y_moments, None), down=(down_moments, None))
        shortcut = x if down is None else down
        z, o, reduced = steps.reduce_branches(y, norms["y"], shortcut, norms.get("down"), w["reduce"], stride=parts.stride)
        self.join(z=(reduced, None))
        moments = steps.temporal_branches(o, z, norms["z"], w["narrow"], w["dilated"])
        residual, residual_moments = None, None
        if parts.residual == "product":
            residual, residual_moments = steps.row_product(x, w["residual"], stride=parts.stride)
        self.join(o=(moments, reduced), residual=(residual_moments, None))
        added = x if parts.residual == "identity" else residual
        out, out_pooled = steps.finish_layer(o, norms["o"], added, norms.get("residual"))
        return Saved(x, pooled, factors, y, z, o, out, down, residual), out_pooled

    def join(self, **moments: tuple[Tensor | None, Tensor | None]) -> None:
        """Makes norms of moments and their tails, those of this process or of all processes."""
        joins = []
        for name, (partial, tail) in moments.items():
            if partial is None:
                continue
            weight, bias = self.w[f"{name}_weight"], self.w[f"{name}_bias"]
            if self.synced:
                partial, tail = gathered(self.steps.merge_moments(partial, len(weight), tail=tail)), None
            joins.append(Join(partial, weight, bias, self.norms[name], tail))
        self.steps.join_moments(joins, self.parts.norms["y"].modules[0].eps)

    @property
    def synced(self) -> bool:
        """Whether the norms are those of all processes."""
        return isinstance(self.parts.norms["y"].modules[0], SyncedBatchNorm)


Passed = tuple[Tensor, Tensor, Tensor | None]  # gradient at a layer's end, sums of o, sums of the residual


class Backward(NamedTuple):
    """The backward pass of one layer; `parts_of` collects the parts of the gradients of the fields."""

    steps: Any
    parts: LayerParts
    w: dict[str, Tensor]
    norms: dict[str, Tensor]
    saved: Saved
    to: dict[str, Tensor]
    to_join: list[tuple[tuple[str, ...], Tensor]]

    @property
    def end(self) -> LayerBelow:
        """The end of the layer."""
        added = self.saved.x if self.parts.residual == "identity" else self.saved.residual
        return LayerBelow(self.saved.out, self.saved.o, self.norms["o"], added, self.norms.get("residual"))

    def run(self, passed: Tensor, o_partial: Tensor, residual_partial: Tensor | None, below: LayerBelow | None) -> Passed:
        """Gradient at the layer's end and its sums -> those of the layer below, or the gradient of the first layer's input."""
        steps, parts, w, norms, saved, _, to_join = self
        o_summed, residual_summed = self.join(o=o_partial, residual=residual_partial)
        of_branches = (passed, saved.o, norms["o"], o_summed)
        to_z, partial, of_weights = steps.temporal_branches_backward(*of_branches, saved.z, norms["z"], w["narrow"], w["dilated"])
        to_join.append((("narrow", "dilated"), of_weights))
        z_summed, _ = self.join(z=partial)
        shortcut = saved.x if saved.down is None else saved.down
        inputs = (saved.y, norms["y"], shortcut, norms.get("down"), w["reduce"])
        to_y, partial, of_down, of_weight = steps.reduce_branches_backward(
            to_z, saved.z, norms["z"], z_summed, *of_branches, *inputs, stride=parts.stride
        )
        to_join.append((("reduce",), of_weight))
        y_summed, down_summed = self.join(y=partial, down=of_down)
        from_down = from_residual = None
        if saved.down is not None:
            down = (to_y, saved.down, norms["down"], down_summed, saved.x, w["down"])
            from_down, of_weight = steps.row_product_backward(*down)
            to_join.append((("down",), of_weight))
        if saved.residual is not None:
            residual = (passed, saved.residual, norms["residual"], residual_summed, saved.x, w["residual"])
            from_residual, of_weight = steps.row_product_backward(*residual, stride=parts.stride)
            to_join.append((("residual",), of_weight))
        graph = tuple(w[name] for name in ("w3", "b3", "w4", "b4", "alpha", "shared"))
        unit = (to_y, saved.y, norms["y"], y_summed, saved.x, saved.factors, *graph)
        to_features, to_factors, *of_graphs = steps.graph_unit_backward(*unit)
        to_join += zip((("w3", "b3"), ("w4", "b4"), ("shared",), ("alpha",)), of_graphs, strict=True)
        to_pooled, of_relations = steps.relations_backward(to_factors, saved.factors, saved.pooled, w["relation_weight"])
        to_join.append((("relation_weight", "relation_bias"), of_relations))
        result: Passed = steps.layer_input_backward(
            to_features,
            w["w3"],
            to_pooled,
            from_shortcut=to_y if saved.down is None else None,
            from_end=passed if parts.residual == "identity" else None,
            from_down=from_down,
            from_residual=from_residual,
            below=below,
        )
        return result

    def join(self, **partials: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sums [2, C] over all rows, also those of other processes; those of this process are the gradients of the norm."""
        given = {name: partial for name, partial in partials.items() if partial is not None}
        joined: list[Tensor] = self.steps.join_parts(*given.values())
        for name, own in zip(given, joined, strict=True):
            self.to[f"{name}_bias"], self.to[f"{name}_weight"] = own
        if isinstance(self.parts.norms["o"].modules[0], SyncedBatchNorm):
            joined = [summed_copy(own) for own in joined]
        return joined[0], joined[1] if len(joined) > 1 else None


def join_gradients(steps: Any, layers: Sequence[Backward]) -> None:
    """Adds up the parts of the gradients of all fields of some layers, in one launch."""
    names = [(layer, names) for layer in layers for names, _ in layer.to_join]
    joined = steps.join_parts(*(partial for layer in layers for _, partial in layer.to_join))
    for (layer, of_part), value in zip(names, joined, strict=True):
        sizes = [sum(p.numel() for p in layer.parts.fields[name].parameters) for name in of_part]
        layer.to.update(zip(of_part, value.reshape(-1).split(sizes), strict=True))
    for layer in layers:
        layer.to_join.clear()  # frees the parts


class FusedLayers(torch.autograd.Function):
    """All layers in training mode: x [R, T, V, C] -> the mean over the frames of the last layer [R, V, C], wide.

    One function for all layers, since a layer's backward pass continues in that of the layer below. The gradients of the parameters
    are views of the tensors that the steps return; those of biases before a norm are zeros.
    """

    @staticmethod
    def forward(ctx: Any, passes: list[Forward], x: Tensor, *parameters: Tensor) -> Tensor:
        saved, pooled = [], x.mean(1, dtype=passes[0].w["alpha"].dtype)
        for forward in passes:
            of_layer, pooled = forward.run(x, pooled)
            saved.append(of_layer)
            x = of_layer.out
        ctx.passes = passes
        ctx.save_for_backward(*(tensor for of_layer in saved for tensor in of_layer))
        return pooled

    @staticmethod
    def backward(ctx: Any, to_pooled: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("fused layers have no second derivative; set SHAPMIX_BACKEND=reference to differentiate twice")
        tensors = iter(ctx.saved_tensors)
        saved = [Saved(*(next(tensors) for _ in Saved._fields)) for _ in ctx.passes]
        layers = [
            Backward(forward.steps, forward.parts, forward.w, forward.norms, of_layer, {}, [])
            for forward, of_layer in zip(ctx.passes, saved, strict=True)
        ]
        steps = layers[-1].steps
        passed = steps.finish_layer_backward(None, to_pooled.contiguous(), *layers[-1].end)
        for index, layer in reversed(list(enumerate(layers))):
            passed = layer.run(*passed, layers[index - 1].end if index else None)
            if index % LAYERS_JOINED == 0:
                join_gradients(steps, layers[index : index + LAYERS_JOINED])
        return None, passed[0], *_of_parameters(layers)


def _of_parameters(layers: Sequence[Backward]) -> Iterable[Tensor]:
    """The gradients of the parameters, in the order of `parameters_of`."""
    biases = [_biases(layer.parts) for layer in layers]
    zeros = biases[0][0].new_zeros(sum(len(bias) for of_layer in biases for bias in of_layer))
    of_biases = iter(zeros.split([len(bias) for of_layer in biases for bias in of_layer]))
    for layer in layers:
        for name, field in layer.parts.fields.items():
            pieces = layer.to[name].reshape(-1).split([p.numel() for p in field.parameters])
            yield from (piece.view_as(p) for piece, p in zip(pieces, field.parameters, strict=True))
        yield from (next(of_biases) for _ in _biases(layer.parts))


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
    weights = packed(steps, layers, x.dtype)
    flat, norms, modules = norms_of([layer.norms for layer in layers], weights[0]["alpha"])
    passes = [Forward(steps, *of_layer) for of_layer in zip(layers, weights, norms, strict=True)]
    parameters = [parameter for parts in layers for parameter in parameters_of(parts)]
    pooled: Tensor = FusedLayers.apply(passes, x, *parameters)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        steps.update_statistics(flat, modules, layers[0].norms["y"].modules[0].momentum)
        torch._foreach_add_(
            [norm.num_batches_tracked for parts in layers for part in parts.norms.values() for norm in part.modules], 1
        )
    return pooled


@torch.no_grad()
def folded_layers(
    steps: Any, layers: Sequence[LayerParts], data_bn: Any, clips: Tensor | CoalitionClips, dtype: torch.dtype
) -> Tensor:
    """Input norm and all layers in eval mode, without gradients.

    Args:
        data_bn: norm of the M V C values of a frame.
        clips: [N, C, T, V, M], or clips under coalitions.
        dtype: of the activations.

    Returns:
        The mean over the frames of the last layer [N M, V, C], wide.
    """
    weights = packed(steps, layers, dtype)
    every = [*(layer.norms for layer in layers), {"input": Norm([data_bn], [None])}]
    flat, all_norms, modules = norms_of(every, weights[0]["alpha"])
    steps.running_norms(flat, modules, data_bn.eps)
    x, pooled = steps.input_rows(clips, all_norms.pop()["input"], dtype)
    for parts, w, norms in zip(layers, weights, all_norms, strict=True):
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
