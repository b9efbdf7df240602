"""The head of a network, and the classifiers of a second stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shapmix import load_layout, networks
from shapmix.networks import ctrgcn_reference
from shapmix.networks.backbones import BACKBONES
from shapmix.networks.frozen import freeze, hold_frozen, matching
from shapmix.networks.head import fold_scale, head_of, scale_classes, tau_normalise

MAKERS = [found.make for found in BACKBONES.values()]


@pytest.mark.parametrize("make", MAKERS)
def test_the_head_is_found_in_every_network(make: type[nn.Module]) -> None:
    network = make(load_layout("ucla20"), 7, num_people=1, in_channels=3)
    head = network.get_submodule(head_of(network, 7))
    assert isinstance(head, nn.Linear)
    assert head.out_features == 7
    with pytest.raises(ValueError, match="no layer of the network has 11 outputs"):
        head_of(network, 11)


def test_factors_of_classes_start_at_1_scale_the_logits_and_fold_into_the_head() -> None:
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    x = torch.randn(3, 5)
    before = network(x)
    scale_classes(network, 4)
    assert torch.equal(network(x), before)
    with torch.no_grad():
        network[2].scale.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
    expected = before * network[2].scale
    torch.testing.assert_close(network(x), expected)
    state = network.state_dict()
    assert fold_scale(state, "2")
    assert not fold_scale(state, "2")
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), expected)
    with pytest.raises(ValueError, match="the head '0' is a Conv1d"):
        scale_classes(nn.Sequential(nn.Conv1d(5, 4, 1)), 4)


def test_tau_divides_by_the_norms_of_the_classes_and_drops_the_bias() -> None:
    head = nn.Linear(5, 3)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    tau_normalise(head, 0.0)
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)
    tau_normalise(head, 0.7)
    norms = weight.square().sum(1).sqrt()
    torch.testing.assert_close(head.weight.detach(), weight / norms[:, None] ** 0.7)
    assert not head.bias.any()
    tau_normalise(head, 1.0)
    torch.testing.assert_close(head.weight.detach().norm(dim=1), torch.ones(3))
    empty = nn.Linear(2, 2)
    nn.init.zeros_(empty.weight)
    tau_normalise(empty, 1.0)
    assert torch.isfinite(empty.weight).all()


def test_patterns_are_names_modules_and_globs() -> None:
    names = ["l1.conv.weight", "l1.bn.weight", "l10.bn.weight", "fc.weight", "fc.bias"]
    assert matching("freeze", ["head"], names, "fc") == {"fc.weight", "fc.bias"}
    assert matching("freeze", ["head.bias"], names, "fc") == {"fc.bias"}
    assert matching("freeze", ["backbone"], names, "fc") == set(names[:3])
    assert matching("freeze", ["l1"], names, "fc") == set(names[:2])
    assert matching("freeze", ["*.bn", "fc.bias"], names, "fc") == {"l1.bn.weight", "l10.bn.weight", "fc.bias"}
    with pytest.raises(ValueError, match=r"freeze: 'l1\.bm' matches no weight of the network; did you mean 'l1\.bn'\?"):
        matching("freeze", ["head", "l1.bm"], names, "fc")


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("patterns", [["backbone"], ["*bn*", "*norm*"], ["l1", "layers.0", "frames*", "fc.bias"]])
def test_what_is_frozen_stays_bit_for_bit(make: type[nn.Module], patterns: list[str]) -> None:
    torch.manual_seed(0)
    network = make(load_layout("ucla20"), 4, num_people=1, in_channels=3)
    names = [name for name, _ in network.named_parameters()]
    patterns = [each for each in patterns if _matches(each, names)]
    freeze(network, patterns, head_of(network, 4))
    frozen = matching("freeze", patterns, names, head_of(network, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    clips = torch.randn(4, 3, 8, 20, 1)
    for _ in range(2):
        network.train()
        hold_frozen(network)
        optimizer.zero_grad()
        network(clips).logsumexp(1).sum().backward()
        optimizer.step()
    after = network.state_dict()
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    for name, value in after.items():
        module = name.rpartition(".")[0]
        held = name in frozen or (module in norms and f"{module}.weight" in frozen)
        if held:
            assert torch.equal(value, before[name]), name
        elif module in norms and "running" in name:
            assert not torch.equal(value, before[name]), name
    trained = [name for name in names if name not in frozen]
    assert any(not torch.equal(after[name], before[name]) for name in trained)
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if name in frozen)


def _matches(pattern: str, names: list[str]) -> bool:
    try:
        return bool(matching("freeze", [pattern], names, "fc"))
    except ValueError:
        return False


def test_frozen_norms_of_ctrgcn_give_what_its_reference_gives() -> None:
    torch.manual_seed(0)
    fast = networks.CTRGCN(load_layout("ucla20"), 4, num_people=1, widths=(8, 16), graph_gain=1.0).double()
    slow = ctrgcn_reference.CTRGCN(load_layout("ucla20"), 4, num_people=1, widths=(8, 16)).double()
    slow.load_state_dict(fast.state_dict())
    clips = torch.randn(4, 3, 8, 20, 1, dtype=torch.float64)
    for patterns in (
        ["l1.gcn1.bn"],
        ["l1.gcn1.bn", "l2.tcn1.branches.0.1", "l2.residual.bn", "l1.gcn1.down.1"],
        ["l2.gcn1"],
        ["l2"],
    ):
        for network in (fast, slow):
            freeze(network, patterns, "fc")
            network.train()
            hold_frozen(network)
            network.zero_grad()
            network(clips).logsumexp(1).sum().backward()
        for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)
        for (name, ours), theirs in zip(fast.state_dict().items(), slow.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)
    with pytest.raises(ValueError, match=r"freeze: \* leave no parameter to train"):
        freeze(fast, ["*"], "fc")
