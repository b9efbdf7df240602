"""Sharpness-aware minimization: the step against its algorithm in plain autograd, and what it leaves alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shapmix import ShapMix, load_layout, train
from shapmix.process import parallel
from shapmix.training import build
from shapmix.training.config import parse_config
from shapmix.training.eager_step import EagerStep
from shapmix.training.sam import moved_along_gradient
from shapmix.training.state import Training

N, K, RHO = 12, 3, 0.5
TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "3", "--threads", "1", "--device", "cpu"]
TINY += ["--saliency.warmup-epochs", "1", "--schedule.sam", "0.1"]


class Small(nn.Module):
    """A norm, a layer whose random numbers matter, and a classifier, in float64."""

    def __init__(self, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(75) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.hidden, self.fc = nn.Linear(75, 16), nn.Linear(16, K)
        self.double()
        self.masks: list[Tensor] = []

    def forward(self, clips: Tensor) -> Tensor:
        kept = self.dropout(torch.ones(len(clips), 16, dtype=torch.float64))
        if self.training:
            self.masks.append(kept)
        return self.fc(torch.tanh(self.hidden(self.norm(clips.mean((2, 4)).flatten(1)))) * kept)


def made(network: Small, rows: list[Tensor] | None = None, *, sam: float | None = RHO, mix: str = "shapmix") -> EagerStep:
    mixer = ShapMix(load_layout("ntu25"), [6, 4, 2], torch.zeros(3, 8, 25, 1, dtype=torch.float64), mix=mix, warmup_steps=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    labels = torch.arange(N) % K
    return EagerStep(
        Training(network, mixer, optimizer, None), labels, rows or [torch.arange(N)], None, sync_batchnorm=True, sam=sam
    )


def clips_of(number: int) -> Tensor:
    return torch.randn(N, 3, 8, 25, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


def everything(step: EagerStep) -> dict[str, Tensor]:
    state = {**step.run.network.state_dict(), **step.run.mixer.state_dict()}
    momentum = {f"{place}.momentum": each["momentum_buffer"] for place, each in enumerate(step.run.optimizer.state.values())}
    return {name: value.clone() for name, value in {**state, **momentum}.items()}


def test_weights_are_moved_by_rho_and_come_back() -> None:
    network = Small()
    optimizer = torch.optim.SGD([{"params": network.hidden.parameters()}, {"params": network.fc.parameters()}], lr=0.1)
    network(clips_of(0)).square().sum().backward()
    before = [weight.detach().clone() for weight in network.parameters()]
    gradients = [weight.grad.numpy() for weight in (*network.hidden.parameters(), *network.fc.parameters())]
    norm = np.sqrt(sum((each**2).sum() for each in gradients))
    with moved_along_gradient(optimizer, RHO):
        moved = [weight.detach().clone() for weight in network.parameters()]
    assert all(torch.equal(weight, old) for weight, old in zip(network.parameters(), before, strict=True))
    assert torch.equal(moved[0], before[0])  # the norm is no weight of the optimizer
    for new, old, gradient in zip(moved[2:], before[2:], gradients, strict=True):
        np.testing.assert_allclose((new - old).numpy(), RHO * gradient / norm)


def test_without_a_gradient_nothing_moves() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    frozen = nn.Parameter(torch.ones(3))
    with moved_along_gradient(torch.optim.SGD([weight, frozen], lr=0.1), RHO):
        assert torch.equal(weight, torch.ones(3))
        assert torch.equal(frozen, torch.ones(3))


@pytest.mark.parametrize("mix", ["shapmix", "none"])
def test_the_step_is_the_algorithm_in_plain_autograd(mix: str) -> None:
    ours, theirs = made(Small(), mix=mix), made(Small(), sam=None, mix=mix)
    network, mixer, optimizer = theirs.run.network, theirs.run.mixer, theirs.run.optimizer
    for number in range(3):
        clips = clips_of(number)
        result = ours(torch.arange(N), number, clips)
        mixer.observe(network, clips, theirs.labels, number)
        batch = mixer.mix(clips, theirs.labels, number)
        weights = list(network.parameters())
        losses = mixer.loss(network(batch.clips), batch)
        gradients = torch.autograd.grad(sum(losses), weights)
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
        there = copy.deepcopy(network)
        for weight, gradient in zip(there.parameters(), gradients, strict=True):
            weight.data += RHO * gradient / norm
        second = torch.autograd.grad(sum(mixer.loss(there(batch.clips), batch)), list(there.parameters()))
        for weight, gradient in zip(weights, second, strict=True):
            weight.grad = gradient
        optimizer.step()
        assert (float(result.clean), float(result.mixed)) == pytest.approx(tuple(each.item() for each in losses))
        assert float(result.gradient) == pytest.approx(max(float(gradient.abs().max()) for gradient in second))
    expected = everything(theirs)  # with statistics of one pass a step, and the saliency
    for name, value in everything(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


def test_a_small_rho_is_the_plain_step_and_a_large_one_is_not() -> None:
    results = []
    for sam in (None, 1e-9, RHO):
        step = made(Small(), sam=sam)
        for number in range(3):
            step(torch.arange(N), number, clips_of(number))
        results.append(step.run.network.hidden.weight)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-8)
    assert (results[0] - results[2]).abs().max() > 1e-4


def test_accumulated_passes_are_the_same_step() -> None:
    whole, parts = made(Small(norm=False)), made(Small(norm=False), [torch.arange(5), torch.arange(5, N)])
    for number in range(3):
        for step in (whole, parts):
            step(torch.arange(N), number, clips_of(number))
    expected = everything(whole)
    for name, value in everything(parts).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)


def test_both_passes_draw_the_same_random_numbers() -> None:
    """And a step advances torch's generator as much as one without."""
    network = Small(dropout=0.5)
    step, plain = made(network), made(Small(dropout=0.5), sam=None)
    after = []
    for each in (step, plain):
        torch.manual_seed(3)
        each(torch.arange(N), 0, clips_of(0))
        after.append(torch.rand(2))
    first, second = network.masks
    assert torch.equal(first, second)
    assert 0 < (first == 0).sum() < first.numel()
    assert torch.equal(*after)


@pytest.fixture(params=["first loss", "second loss", "second gradient"])
def poisoned(request: pytest.FixtureRequest) -> tuple[Small, list[bool]]:
    """A network that can be made to fail in one of the passes of a step."""
    network, armed, passes = Small(), [False], count()
    which, what = request.param.split()

    def poison(module: nn.Module, given: object, logits: Tensor) -> Tensor:
        if not (network.training and torch.is_grad_enabled() and armed[0]):
            return logits
        if next(passes) != (which == "second"):
            return logits
        if what == "loss":
            return logits * torch.nan
        logits.register_hook(lambda gradient: gradient * torch.inf)
        return logits

    network.fc.register_forward_hook(poison)
    return network, armed


def test_a_pass_that_is_not_finite_leaves_the_step_out(poisoned: tuple[Small, list[bool]]) -> None:
    network, armed = poisoned
    step = made(network)
    step(torch.arange(N), 0, clips_of(0))
    before, armed[0] = everything(step), True
    result = step(torch.arange(N), 1, clips_of(1))
    assert not (result.clean + result.mixed + result.gradient).isfinite()
    for name, value in everything(step).items():
        assert torch.equal(value, before[name]), name
    armed[0] = False
    assert step(torch.arange(N), 2, clips_of(2)).gradient.isfinite()


def test_statistics_are_of_the_first_pass_on_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes without synchronised norms take those of process 0 once a step, and they are not lost afterwards."""
    copies: list[Tensor] = []

    def copied(network: Small) -> None:
        network.norm.running_mean.fill_(7.0)  # those of process 0
        copies.append(network.norm.running_mean.clone())

    step = made(Small())
    step.sync_batchnorm = False
    monkeypatch.setattr(parallel, "ranks", lambda: 2)
    monkeypatch.setattr(parallel, "summed", lambda x: x)
    monkeypatch.setattr(parallel, "copy_buffers", copied)
    step(torch.arange(N), 0, clips_of(0))
    assert len(copies) == 1
    assert (step.run.network.norm.running_mean == 7).all()


TAIL = ["--loss", "action_aware", "--sampler", "tail_third", "--precision", "bf16", "--force"]


@pytest.mark.usefixtures("small_data", "no_pictures")
@pytest.mark.parametrize("more", [[], TAIL], ids=["fp32", "bf16, weighted classes, repeated clips"])
def test_a_run_resumes_bit_for_bit(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TINY, *more, "--checkpoint.every-steps", "2"]
    assert train.main([*options, "--run-dir", "whole"]) == 0
    step, calls = EagerStep.forward_backward, count()

    def cut_off(*given: object) -> tuple[Tensor, Tensor, Tensor]:
        if next(calls) == 19:  # the second pass of a step
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(EagerStep, "forward_backward", cut_off)
    assert train.main([*options, "--run-dir", "cut"]) == 130
    assert train.main(["--resume", "cut"]) == 0
    whole, cut = (torch.load(f"{run}/checkpoints/last.pt", weights_only=True) for run in ("whole", "cut"))
    for part in ("network", "mixer"):
        for name, value in whole[part].items():
            assert torch.equal(value, cut[part][name]), name
    assert train.main([*TINY, *more, "--schedule.sam", "None", "--run-dir", "plain"]) == 0
    plain = torch.load("plain/checkpoints/last.pt", weights_only=True)
    assert not torch.equal(plain["network"]["fc.weight"], whole["network"]["fc.weight"])


@pytest.mark.usefixtures("small_data", "no_pictures")
@pytest.mark.parametrize("rho", ["-0.05", "0", "inf"])
def test_a_rho_that_moves_nothing_or_anywhere_is_refused(rho: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, "--schedule.sam", rho]) == 2
    assert f"schedule.sam: a radius above 0, not {rho}" in capsys.readouterr().err


def test_a_graph_is_not_captured() -> None:
    config = parse_config(TINY)
    mixer = made(Small()).run.mixer
    assert build.not_captured(config, mixer, torch.device("cuda")) == "SAM passes every batch twice"
    plain = replace(config, schedule=replace(config.schedule, sam=None))
    assert build.not_captured(plain, mixer, torch.device("cuda")) is None
