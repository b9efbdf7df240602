"""CTR-GCN's layers with explicit buffers, on the reference's steps, compared with the network as modules, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shapmix.networks import ctrgcn_reference
from shapmix.networks.ctrgcn_layer import folded_layers, fused_layers, parameters_of, parts_of
from shapmix.reference import layer as steps
from shapmix.skeleton.layout import Layout, load_layout

NTU, COCO = load_layout("ntu25"), load_layout("coco17")


def lively(network: nn.Module) -> None:
    """Random parameters and statistics; at initialisation, graphs are shared and shortcuts dominate."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            is_spread = name.endswith(("alpha", "bn.weight", "1.weight", "4.weight", "running_var"))
            tensor.copy_(0.5 + drawn if is_spread else (drawn - 0.5) / max(1, tensor[0].numel()) ** 0.5)


def fused(network: ctrgcn_reference.CTRGCN, clips: Tensor) -> Tensor:
    """The network's features, with the layers as steps."""
    rows = network.normalised(clips).permute(0, 2, 3, 1).contiguous()
    layers = [parts_of(layer) for layer in network.layers]
    pooled = (fused_layers if network.training else folded_layers)(steps, layers, rows)
    return pooled.mean(1).view(len(clips), clips.shape[4], -1).mean(1)


@settings(max_examples=12)
@given(
    layout=st.sampled_from([NTU, COCO]),
    n=st.integers(2, 3),
    frames=st.integers(1, 13),
    people=st.integers(1, 2),
    channels=st.integers(1, 4),
    widths=st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=4),
    halve=st.sampled_from([None, [1], [0, 2]]),
    training=st.booleans(),
)
def test_the_steps_are_the_modules(
    layout: Layout, n: int, frames: int, people: int, channels: int, widths: list[int], halve: list[int] | None, training: bool
) -> None:
    torch.manual_seed(0)
    shape = {"num_people": people, "in_channels": channels, "widths": widths, "halve": halve}
    networks = [ctrgcn_reference.CTRGCN(layout, 5, **shape).double().train(training) for _ in range(2)]
    lively(networks[0])
    networks[1].load_state_dict(networks[0].state_dict())
    clips = torch.randn(n, channels, frames, layout.num_joints, people, dtype=torch.float64)
    expected, found = networks[0].features(clips), fused(networks[1], clips)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    if not training:
        return
    target = torch.randn_like(expected)
    (expected * target).sum().backward()
    (found * target).sum().backward()
    for (name, theirs), ours in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None
            continue
        assert ours.grad is not None, name
        largest = max(1.0, float(theirs.grad.abs().max()))
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9 * largest, msg=name)
    for (name, theirs), ours in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_every_parameter_of_a_layer_has_a_gradient() -> None:
    """Weight decay acts on biases before a norm too, so their gradient is zeros and not None."""
    network = ctrgcn_reference.CTRGCN(COCO, 5, num_people=1, widths=(8, 16)).double()
    layers = [parts_of(layer) for layer in network.layers]
    fused(network, torch.randn(2, 3, 6, 17, 1, dtype=torch.float64)).square().sum().backward()
    for parts, layer in zip(layers, network.layers, strict=True):
        assert {id(p) for p in parameters_of(parts)} == {id(p) for p in layer.parameters()}
        assert all(p.grad is not None for p in layer.parameters())
    assert not network.layers[1].tcn1.branches[0][0].bias.grad.any()


def test_a_second_derivative_is_refused() -> None:
    network = ctrgcn_reference.CTRGCN(COCO, 5, num_people=1, widths=(8,)).double()
    clips = torch.randn(2, 3, 4, 17, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(fused(network, clips).sum(), clips, create_graph=True)
