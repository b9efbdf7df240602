"""Folding: the copy equals the network in eval mode after further training; norms that cannot be folded are named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from shapmix.networks.fold import Folded, FoldError
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import load_layout


class GraphNet(nn.Module):
    """The structure of ST-GCN: channel product, aggregation over joints, temporal convolution, shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs = nn.Parameter(torch.rand(3, 25, 25) / 25)
        self.spatial, self.spatial_norm = nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24)
        self.after = nn.BatchNorm2d(8)
        self.temporal, self.norm = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), bias=False), nn.BatchNorm2d(8)
        self.down, self.down_norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips.mean(4)
        y = self.spatial_norm(self.spatial(x)).unflatten(1, (3, 8))
        y = torch.relu(self.after(torch.einsum("nsctv,suv->nctu", y, self.graphs)))
        y = torch.relu(self.norm(self.temporal(y)) + self.down_norm(self.down(x)))
        return self.fc(self.drop(y.mean((2, 3))))


def sequence(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(OrderedDict((f"m{index}", module) for index, module in enumerate(modules)))


class Twice(nn.Module):
    """One convolution and norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x))))


class TwoConsumers(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Functional(Twice):
    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = functional.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, self.training, 0.1, norm.eps
        )
        return y * self.conv.weight.sum()


class Tied(nn.Module):
    """Two convolutions with a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)))


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return net


def parametrized() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    parametrize.register_parametrization(net[0], "weight", nn.Tanh())
    return net


IMAGE, LINE, VOLUME = (4, 6, 9, 5), (4, 6, 9), (4, 6, 5, 4, 3)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "st-gcn": (GraphNet, (4, 3, 8, 25, 2), {"after": "does not follow a convolution"}),
    "conv1d": (sequence(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.ReLU()), LINE, {}),
    "conv3d": (sequence(nn.Conv3d(6, 8, 2, bias=False), nn.BatchNorm3d(8)), VOLUME, {}),
    "linear": (sequence(nn.Linear(6, 8), nn.BatchNorm1d(8)), (5, 6), {}),
    "grouped": (sequence(nn.Conv2d(6, 12, 3, groups=3, padding=1), nn.BatchNorm2d(12)), IMAGE, {}),
    "transposed": (sequence(nn.ConvTranspose2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)), IMAGE, {}),
    "grouped transposed": (sequence(nn.ConvTranspose2d(6, 9, 3, groups=3, bias=False), nn.BatchNorm2d(9)), IMAGE, {}),
    "no affine": (sequence(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False)), IMAGE, {}),
    "no statistics": (
        sequence(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)),
        IMAGE,
        {"m1": "has no running statistics"},
    ),
    "norm first": (sequence(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)), IMAGE, {"m0": "would change zero padding"}),
    "called twice": (Twice, IMAGE, {"norm": "'conv' is called more than once"}),
    "two consumers": (TwoConsumers, IMAGE, {"norm": "'conv' has another consumer"}),
    "functional": (Functional, IMAGE, {"batch_norm": "a function call"}),
    "tied": (Tied, IMAGE, {"norm": "shared with another module"}),
    "hooked": (hooked, IMAGE, {"1": "'0' has hooks"}),
    "parametrized": (parametrized, IMAGE, {"1": "parametrized"}),
}


def train(net: nn.Module, x: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        net(x * 2 + 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETS)
def test_the_twin_is_the_network_in_eval_mode(name: str, dtype: torch.dtype) -> None:
    make, shape, unfolded = NETS[name]
    torch.manual_seed(0)
    net, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    train(net, x, 3)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    folded = Folded(net)
    assert net.training
    assert list(folded.unfolded) == list(unfolded)
    for norm, reason in unfolded.items():
        assert reason in folded.unfolded[norm]
    left = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    assert left == sum(norm != "batch_norm" for norm in unfolded)
    own = {value.data_ptr() for value in net.state_dict().values()}
    assert not own & {value.data_ptr() for value in folded.state_dict().values()}

    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for _ in range(2):
        found = folded.refresh()(x)
        expected = net.eval()(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, **tolerance)
        before = folded(x)
        train(net, x, 2)
        assert torch.equal(folded(x), before)  # no memory is shared
    train(net, x, 1)
    assert any(not torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for value in folded.parameters():
        assert not value.requires_grad


def test_it_plays_the_part_game() -> None:
    torch.manual_seed(0)
    net, clips = GraphNet().double(), torch.randn(3, 3, 8, 25, 2, dtype=torch.float64)
    train(net, clips, 2)
    mean = clips.mean(0)
    layout = load_layout("ntu25")
    found = PartGame(Folded(net).train(), layout, mean).table(clips)
    torch.testing.assert_close(found, PartGame(net, layout, mean).table(clips), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_traced_says_why() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(FoldError, match=r"torch\.fx cannot trace Branches: .*control flow"):
        Folded(Branches())
    net = nn.Sequential(nn.Linear(6, 6))
    net.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(FoldError, match="Sequential itself has forward hooks"):
        Folded(net)


def test_a_linear_layer_on_sequences_is_refused() -> None:
    """For this rank, the channel axis of BatchNorm1d is 1, which is not the output axis of the linear layer."""
    folded = Folded(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    with pytest.raises(ValueError, match=r"takes 2 axes, not \[2, 6, 6\]; use the unfolded network"):
        folded(torch.randn(2, 6, 6))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second device is required")
def test_the_twin_is_where_the_network_is() -> None:
    net = GraphNet().cuda()
    assert {value.device.type for value in Folded(net).state_dict().values()} == {"cuda"}
