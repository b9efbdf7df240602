"""A copy of a network for evaluation, with BatchNorms folded into the preceding convolutions or linear layers.

The copy is traced with torch.fx, which supports any module built from modules and tensor operations. It has separate weights;
`refresh` updates them from the training network, at about the cost of copying them.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from shapmix.process.errors import ShapmixError

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class FoldError(ShapmixError, ValueError):
    """torch.fx cannot trace the network; the message says why and what to do."""


class _Pair(NamedTuple):
    """A convolution or linear layer and the norm after it, in the training network, and the folded layer of the copy."""

    linear: Any
    norm: Any
    folded: Any


class Folded(nn.Module):
    """`network` in eval mode, with BatchNorms folded where possible; for forward passes without gradients.

        folded = Folded(network)
        mixer.observe(folded.refresh(), clips, labels, step)  # or PartGame(folded.refresh(), layout, mean_motion)

    Args:
        network: traced with torch.fx in eval mode. It is not modified and shares no memory with the copy.

    `unfolded` maps the name of each remaining BatchNorm to the reason why it cannot be folded; it is computed unchanged.
    Function calls (`functional.batch_norm`) also remain, under their torch.fx name.

    Raises:
        FoldError: the network has data-dependent control flow, or forward hooks on the network itself.
    """

    unfolded: dict[str, str]

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if network._forward_hooks or network._forward_pre_hooks:
            raise FoldError(f"{type(network).__name__} itself has forward hooks, which torch.fx does not trace; remove them")
        try:
            copied = copy.deepcopy(network).eval()
            twin = fx.GraphModule(copied, fx.Tracer().trace(copied))
        except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, NotImplementedError) as error:
            raise FoldError(
                f"torch.fx cannot trace {type(network).__name__}: {error}; use the unfolded network, or move code that "
                "depends on values or shapes into a function wrapped with torch.fx.wrap"
            ) from error
        self.unfolded = {}
        self._pairs: list[_Pair] = []
        modules = dict(network.named_modules())
        for node in list(twin.graph.nodes):
            if node.op == "call_function" and "batch_norm" in getattr(node.target, "__name__", ""):
                self.unfolded[node.name] = "a function call, whose weights belong to no module"
            if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
                continue
            reason = _why_not(node, modules, twin.graph)
            if reason is not None:
                self.unfolded[node.target] = reason
                continue
            before = node.args[0]
            folded: Any = twin.get_submodule(before.target)
            self._pairs.append(_Pair(modules[before.target], modules[node.target], folded))
            if folded.bias is None:
                weight = folded.weight
                folded.bias = nn.Parameter(torch.zeros(_outputs(folded), dtype=weight.dtype, device=weight.device))
            if isinstance(modules[node.target], nn.BatchNorm1d):  # for other ranks its channel axis differs
                with twin.graph.inserting_before(before):
                    rank = 2 if isinstance(folded, nn.Linear) else 3
                    before.args = (twin.graph.call_function(_of_rank, (before.args[0], rank, before.target)), *before.args[1:])
            node.replace_all_uses_with(before)
            twin.graph.erase_node(node)
        twin.graph.lint()
        twin.recompile()
        twin.delete_all_unused_submodules()
        self.twin = twin.eval().requires_grad_(False)
        folded_modules = {id(pair.folded) for pair in self._pairs}
        # tensors that are copied unchanged from the training network
        self._copied: list[tuple[nn.Module, nn.Module, str]] = []
        for name, module in self.twin.named_modules():
            if name not in modules or id(module) in folded_modules:
                continue
            own = [*module._parameters, *module._buffers]
            self._copied += [(modules[name], module, tensor) for tensor in own if getattr(modules[name], tensor, None) is not None]
        self.refresh()

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """The output of the network in eval mode."""
        return self.twin(*arguments, **keywords)

    def train(self, mode: bool = True) -> Folded:
        """Stays in eval mode: the copy is not trainable."""
        return super().train(False)

    @torch.no_grad()
    def refresh(self) -> Folded:
        """Updates weights and running statistics from the training network, without synchronising with the host."""
        for source, target, name in self._copied:
            getattr(target, name).copy_(getattr(source, name))
        for linear, norm, folded in self._pairs:
            scale = (norm.running_var + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight
            offset = -norm.running_mean * scale
            if norm.bias is not None:
                offset = offset + norm.bias
            if linear.bias is not None:
                offset = offset + linear.bias * scale
            folded.weight.copy_(linear.weight * _over_outputs(linear, scale))
            folded.bias.copy_(offset)
        return self


def _why_not(node: fx.Node, modules: dict[str, nn.Module], graph: fx.Graph) -> str | None:
    """The reason why a norm cannot be folded into the preceding layer, None if it can."""
    norm: Any = modules[str(node.target)]
    before = node.args[0] if node.args else None
    if norm.running_mean is None:
        return "it has no running statistics and uses batch statistics"
    if not isinstance(before, fx.Node) or before.op != "call_module" or not isinstance(modules[str(before.target)], LINEAR):
        return "it does not follow a convolution or linear layer (folding into the next layer would change zero padding)"
    linear: Any = modules[str(before.target)]
    name = before.target
    if len(before.users) > 1:
        return f"'{name}' has another consumer, which needs its output without the norm"
    for called in (before, node):
        module = modules[str(called.target)]
        if sum(1 for other in graph.nodes if other.op == "call_module" and modules[other.target] is module) > 1:
            return f"'{called.target}' is called more than once"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"'{called.target}' has hooks, which use its output"
    if parametrize.is_parametrized(linear):
        return f"the weights of '{name}' are parametrized"
    if any(other.op == "get_attr" and str(other.target).startswith(f"{name}.") for other in graph.nodes):
        return f"the weights of '{name}' are used elsewhere"
    of_linear = {id(parameter) for parameter in linear.parameters()}
    if any(module is not linear and of_linear & {id(p) for p in module._parameters.values()} for module in modules.values()):
        return f"the weights of '{name}' are shared with another module"
    if isinstance(linear, nn.Linear) and not isinstance(norm, nn.BatchNorm1d):
        return f"'{name}' is a linear layer, whose output axis is not the channel axis of the norm"
    if norm.num_features != _outputs(linear):
        return f"it has {norm.num_features} channels, '{name}' has {_outputs(linear)}"
    return None


def _of_rank(x: Tensor, rank: int, name: str) -> Tensor:
    if x.dim() != rank:
        message = f"'{name}' is folded with the BatchNorm1d after it and takes {rank} axes, not {list(x.shape)}"
        raise ValueError(f"{message}; use the unfolded network")
    return x


def _outputs(linear: Any) -> int:
    return linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels


def _over_outputs(linear: Any, scale: Tensor) -> Tensor:
    """Broadcasts one factor per output to the weight's shape; transposed weights are [in, out / groups, ...], per group."""
    weight = linear.weight
    if not isinstance(linear, _TRANSPOSED):
        return scale.view(-1, *(1 for _ in weight.shape[1:]))
    each = scale.view(linear.groups, 1, -1).expand(-1, weight.shape[0] // linear.groups, -1).flatten(0, 1)  # [in, out / groups]
    return each.view(*each.shape, *(1 for _ in weight.shape[2:]))
