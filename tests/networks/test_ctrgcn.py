"""The fast CTR-GCN compared with the reference implementation, and checks of state dicts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.networks import ctrgcn_reference
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.skeleton.layout import Layout, load_layout

NTU, COCO = load_layout("ntu25"), load_layout("coco17")


def lively(network: torch.nn.Module) -> None:
    """Random parameters and statistics; at initialisation, graphs are shared and shortcuts dominate."""
    torch.manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith(("alpha", "bn.weight", "1.weight", "4.weight", "running_var")):
            tensor.copy_(0.5 + torch.rand_like(tensor))
        elif name.endswith(("bias", "running_mean")):
            tensor.copy_(0.1 * torch.randn_like(tensor))


@settings(max_examples=12)
@given(
    layout=st.sampled_from([NTU, COCO]),
    n=st.integers(2, 3),
    frames=st.integers(1, 13),
    people=st.integers(1, 3),
    channels=st.integers(1, 4),
    widths=st.lists(st.sampled_from([8, 16, 24]), min_size=1, max_size=4),
    training=st.booleans(),
)
def test_merged_form_is_the_reference(
    layout: Layout, n: int, frames: int, people: int, channels: int, widths: list[int], training: bool
) -> None:
    shape = {"num_people": people, "in_channels": channels, "widths": widths}
    theirs = ctrgcn_reference.CTRGCN(layout, 5, **shape).double()
    lively(theirs)
    ours = CTRGCN(layout, 5, **shape).double()
    ours.load_state_dict(theirs.state_dict())
    clips = torch.randn(n, channels, frames, layout.num_joints, people, dtype=torch.float64)
    results = []
    for network in (theirs, ours):
        network.train(training)
        logits = network(clips)
        logits.square().mean().backward()
        results.append((logits, network))
    (a, theirs), (b, ours) = results
    torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        largest = max(1.0, float(parameter.grad.abs().max()))  # these networks can amplify by orders of magnitude
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-7, atol=1e-9 * largest, msg=name)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer, rtol=1e-9, atol=1e-12, msg=name)


def test_biases_before_norms_have_gradients_of_zero() -> None:
    """Weight decay acts on them, and DistributedDataParallel expects a gradient of every parameter."""
    network = CTRGCN(COCO, 5, widths=(8, 16))
    network(torch.randn(2, 3, 8, 17, 2)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    layer = network.layers[1]
    narrow, dilated, pool, skip = layer.tcn1.branches
    before = [narrow[0], narrow[3].conv, dilated[0], dilated[3].conv, pool[0], skip[0], layer.gcn1.down[0], layer.residual.conv]
    assert not any(conv.bias.grad.any() for conv in before)
    assert all(conv.conv3.bias.grad.any() for conv in layer.gcn1.convs)


def test_frozen_norms_use_the_biases_before_them() -> None:
    results = []
    initial = ctrgcn_reference.CTRGCN(COCO, 5, widths=(8, 16)).double()
    lively(initial)
    for kind in (ctrgcn_reference.CTRGCN, CTRGCN):
        network = kind(COCO, 5, widths=(8, 16)).double()
        network.load_state_dict(initial.state_dict())
        for name, module in network.named_modules():
            if name.endswith(("branches.1.3.bn", "branches.2.1", "down.1", "residual.bn")):
                module.eval()
        torch.manual_seed(0)
        logits = network(torch.randn(2, 3, 8, 17, 2, dtype=torch.float64))
        logits.square().sum().backward()
        results.append([logits.detach(), *network.buffers(), *(p.grad for p in network.parameters())])
    for theirs, ours in zip(*results, strict=True):
        largest = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9 * largest)


def test_norms_of_different_eps_keep_theirs() -> None:
    torch.manual_seed(0)
    network = CTRGCN(load_layout("ntu25"), 5, num_people=1, widths=(8,))
    lively(network)
    branch = network.l1.tcn1.branches[1][1]
    clips = torch.randn(3, 3, 16, 25, 1)
    with torch.no_grad():
        before = network.train()(clips)
        branch.eps = 10.0
        after = network.train()(clips)
    assert float((after - before).abs().max()) > 1e-3


def gradient(network: torch.nn.Module, clips: torch.Tensor, labels: torch.Tensor, half: bool = False) -> torch.Tensor:
    network.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = network(clips)
    torch.nn.functional.cross_entropy(logits.to(clips.dtype), labels).backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).double()


def gradient_errors(widths: tuple[int, ...], seed: int, half: bool) -> tuple[float, float]:
    """Relative distance of the reference's and our gradient from the reference's in float64."""
    torch.manual_seed(seed)
    exact = ctrgcn_reference.CTRGCN(NTU, 12, widths=widths, graph_gain=1.0)
    lively(exact)
    torch.manual_seed(seed)
    clips, labels = torch.randn(8, 3, 16, 25, 2), torch.arange(8) % 12
    found = []
    for kind in (ctrgcn_reference.CTRGCN, CTRGCN):
        network = kind(NTU, 12, widths=widths, graph_gain=1.0)
        network.load_state_dict(exact.state_dict())
        found.append(gradient(network, clips, labels, half))
    truth = gradient(exact.double(), clips.double(), labels)
    theirs, ours = (float((one - truth).norm() / truth.norm()) for one in found)
    return theirs, ours


WIDTHS = [(64,), (16, 16, 32), (64, 64, 128, 128)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_float32_gradients_are_within_1e_5_of_float64(widths: tuple[int, ...]) -> None:
    """In one of ten draws. A flipped ReLU makes an error of 1e-4 to 1e-3, in the reference too, and is common in deep networks.

    A wrong gradient is wrong in all of them.
    """
    assert any(gradient_errors(widths, seed, half=False)[1] <= 1e-5 for seed in range(10))


@pytest.mark.parametrize("widths", WIDTHS)
def test_bfloat16_gradients_are_as_close_to_float64_as_the_references(widths: tuple[int, ...]) -> None:
    """The error grows with depth. Median of three seeds, because a single flipped ReLU dominates the error."""
    errors = torch.tensor([gradient_errors(widths, seed, half=True) for seed in range(3)])
    theirs, ours = errors.median(0).values.tolist()
    assert ours <= 1.1 * theirs


def test_defaults_are_the_published_network() -> None:
    network = CTRGCN(NTU, 60)
    assert [layer.gcn1.bn.num_features for layer in network.layers] == [64] * 4 + [128] * 3 + [256] * 3
    assert [layer.tcn1.branches[3][0].stride[0] for layer in network.layers] == [1, 1, 1, 1, 2, 1, 1, 2, 1, 1]
    assert network.layers[0].residual is None
    graph_units = [module for module in network.modules() if isinstance(module, ctrgcn_reference.GraphUnit)]
    assert all(float(unit.bn.weight.detach().max()) == pytest.approx(1e-6) for unit in graph_units)


def test_clips_of_another_shape_are_refused() -> None:
    network = CTRGCN(NTU, 5, widths=(8,))
    with pytest.raises(ValueError, match=r"\(3, 17, 2\).*built for \(3, 25, 2\) \(layout 'ntu25'\)"):
        network(torch.zeros(2, 3, 8, 17, 2))
    with pytest.raises(ValueError, match="layer width 12 is not a multiple of 8"):
        CTRGCN(NTU, 5, widths=(8, 12))


@pytest.mark.parametrize("training", [False, True])
def test_torch_compile_takes_it_as_one_graph(training: bool) -> None:
    network = CTRGCN(COCO, 5, num_people=1, widths=(8, 16)).train(training)
    clips = torch.randn(3, 3, 8, 17, 1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips), network(clips))
