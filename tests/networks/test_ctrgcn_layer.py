"""CTR-GCN's layers with explicit buffers, on the reference's steps, compared with the network as modules, in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, multiprocessing, nn

from shapmix.networks import ctrgcn_reference
from shapmix.networks.ctrgcn_layer import folded_layers, fused_layers, parameters_of, parts_of
from shapmix.networks.synced_norm import sync_norms
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
    layers = [parts_of(layer) for layer in network.layers]
    if network.training:
        pooled = fused_layers(steps, layers, network.normalised_joints(clips).permute(0, 3, 1, 2).contiguous())
    else:
        pooled = folded_layers(steps, layers, network.data_bn, clips, clips.dtype)
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


def small() -> tuple[ctrgcn_reference.CTRGCN, Tensor, Tensor]:
    """A network with every kind of layer, clips, and weights of the features."""
    torch.manual_seed(0)
    network = ctrgcn_reference.CTRGCN(COCO, 5, num_people=1, widths=(8, 16, 16), halve=[1]).double()
    lively(network)
    generator = torch.Generator().manual_seed(2)
    clips = torch.randn(4, 3, 6, 17, 1, dtype=torch.float64, generator=generator)
    return network, clips, torch.randn(4, 16, dtype=torch.float64, generator=generator)


def one_of_two(process: int, store: str, out: str) -> None:
    """Trains on half of the clips with synchronised norms; adds up the gradients."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=process, world_size=2)
    network, clips, target = small()
    sync_norms(network)
    half = slice(0, 1) if process == 0 else slice(1, 4)  # of different sizes
    (fused(network, clips[half]) * target[half]).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        distributed.all_reduce(gradient)
    if process == 1:
        torch.save((gradients, dict(network.named_buffers())), out)
    distributed.destroy_process_group()


def test_synced_norms_are_those_of_all_clips(tmp_path: Path) -> None:
    multiprocessing.spawn(one_of_two, (str(tmp_path / "store"), str(tmp_path / "out.pt")), nprocs=2)
    gradients, buffers = torch.load(tmp_path / "out.pt")
    network, clips, target = small()
    (fused(network, clips) * target).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-9, msg=name)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-9, atol=1e-12, msg=name)
