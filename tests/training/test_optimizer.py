"""What the optimizer is told: clipped gradients, which weights decay, momentum; and epochs of several passes over the clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shapmix import train
from shapmix.data.clips import Splits
from shapmix.data.order import epoch_order
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.process.signals import StopRequest
from shapmix.skeleton.layout import load_layout
from shapmix.training.build import make_optimizer
from shapmix.training.config import parse_config
from shapmix.training.eager_step import EagerStep
from shapmix.training.step import TrainingStep, clip_gradients, largest_gradient
from shapmix.training.trainer import Trainer

TINY = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--threads", "1", "--device", "cpu"]
TINY += ["--mix", "none", "--eval-every", "2"]
PLAIN = ["--schedule.optimizer", "sgd", "--schedule.momentum", "0", "--schedule.no-nesterov", "--schedule.weight-decay", "0"]

pytestmark = pytest.mark.usefixtures("small_data", "no_pictures")


def linear(*, layout: object, num_classes: int, num_people: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 8 * 25 * num_people, num_classes))


def moved(splits: Splits, *arguments: str, resident: bool = False) -> tuple[list[Tensor], float]:
    """How far the first step moves each weight, divided by the learning rate, and the norm of all of it."""
    config = parse_config([*TINY, *PLAIN, "--schedule.lr", "0.5", *arguments])
    trainer = Trainer(config, splits, StopRequest())
    before = [weight.detach().clone() for weight in trainer.run.network.parameters()]
    chosen = splits.train[:8]
    if resident:
        parts = (trainer.run.network, trainer.run.mixer, trainer.run.optimizer, trainer.sampler, 8)
        TrainingStep(*parts, clip_norm=config.schedule.clip_norm)(chosen, 0)
    else:
        trainer.step(chosen, 0, trainer.sampler.training(chosen, 0))
    steps = [(old - new.detach()) / 0.5 for old, new in zip(before, trainer.run.network.parameters(), strict=True)]
    return steps, float(torch.cat([step.flatten() for step in steps]).norm())


@pytest.mark.parametrize("resident", [False, True])
def test_a_longer_gradient_is_scaled_to_the_norm(small_splits: Splits, resident: bool) -> None:
    free, norm = moved(small_splits, resident=resident)
    above, _ = moved(small_splits, "--schedule.clip-norm", f"{2 * norm}", resident=resident)
    torch.testing.assert_close(above, free, rtol=0, atol=0)
    below, clipped = moved(small_splits, "--schedule.clip-norm", f"{norm / 4}", resident=resident)
    assert clipped == pytest.approx(norm / 4, rel=1e-4)
    torch.testing.assert_close(below, [step / 4 for step in free], rtol=1e-3, atol=1e-6)


def test_a_clipped_step_is_the_same_in_several_passes(small_splits: Splits) -> None:
    """The gradient of the whole batch is clipped, not that of a pass."""
    options = ["--network.backbone", f"{__name__}:linear", "--schedule.clip-norm", "0.01"]
    whole, norm = moved(small_splits, *options)
    passes, _ = moved(small_splits, *options, "--accumulate", "4")
    assert norm == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(passes, whole, rtol=1e-3, atol=1e-6)


def test_clipping_keeps_the_first_gradient_that_is_not_finite() -> None:
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    weights[0].grad, weights[1].grad = torch.tensor([30.0, 40.0]), torch.tensor([1.0, float("nan")])
    optimizer = torch.optim.SGD(weights)
    clip_gradients(optimizer, 5.0)
    assert weights[0].grad.tolist() == [30.0, 40.0]
    assert largest_gradient(optimizer).isnan()
    weights[1].grad = None
    clip_gradients(optimizer, 5.0)
    torch.testing.assert_close(weights[0].grad, torch.tensor([3.0, 4.0]))


def test_weights_of_one_axis_decay_or_not() -> None:
    network = CTRGCN(load_layout("ntu25"), 4, widths=(8,))
    everything = make_optimizer(network, parse_config([])).param_groups
    assert [group["weight_decay"] for group in everything] == [4e-4]
    matrices, others = make_optimizer(network, parse_config(["--schedule.decayed", "matrices"])).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (4e-4, 0)
    named = {id(weight): name for name, weight in network.named_parameters()}
    assert len(matrices["params"]) + len(others["params"]) == len(named)
    assert {weight.dim() for weight in others["params"]} == {1}
    assert {named[id(weight)] for weight in matrices["params"]} >= {"fc.weight", "l1.gcn1.PA", "l1.gcn1.convs.0.conv3.weight"}
    assert {named[id(weight)] for weight in others["params"]} >= {"fc.bias", "data_bn.weight", "l1.gcn1.alpha"}


def test_nesterov_is_on_unless_it_is_turned_off() -> None:
    network = nn.Linear(2, 2)
    sgd = ["--schedule.optimizer", "sgd"]
    assert make_optimizer(network, parse_config(sgd)).defaults["nesterov"]
    assert not make_optimizer(network, parse_config([*sgd, "--schedule.no-nesterov"])).defaults["nesterov"]


@pytest.mark.parametrize("sampler", ["instance", "class_balanced", "tail_repeat"])
def test_an_epoch_passes_over_the_clips_several_times(sampler: str) -> None:
    clips, labels = torch.arange(100, 140), torch.tensor([0] * 30 + [1] * 10)
    once = epoch_order(clips, 3, 1, labels=labels, sampler=sampler)
    torch.testing.assert_close(epoch_order(clips, 3, 1, labels=labels, sampler=sampler, repeat=1), once, rtol=0, atol=0)
    five = epoch_order(clips, 3, 1, labels=labels, sampler=sampler, repeat=5)
    assert len(five) == 5 * len(once)
    if sampler == "instance":  # shuffled together: the passes do not follow one another
        assert torch.bincount(five - 100).tolist() == [5] * 40
        assert len(set(five[:40].tolist())) < 40


def test_repeated_epochs_are_longer_and_resume_bit_for_bit(
    small_splits: Splits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut in the middle of an epoch, and with it of a cosine that goes by steps."""
    caplog.set_level("INFO", logger="shapmix")
    arguments = [*TINY, "--repeat", "3", "--schedule.per", "step", "--schedule.final", "0.01", "--checkpoint.every-steps", "2"]
    assert train.main([*arguments, "--run-dir", "whole"]) == 0
    steps = 3 * len(small_splits.train) // 8
    assert f"cosine per step to 0.0001; 2 epochs of {steps} steps, each 3 times the clips" in caplog.text
    step, calls, rates = EagerStep.forward_backward, iter(range(10_000)), list[float]()

    def cut_off(self: EagerStep, batch: object) -> tuple[Tensor, Tensor, Tensor]:
        if next(calls) == steps + 5:
            raise KeyboardInterrupt
        rates.append(self.run.optimizer.param_groups[0]["lr"])
        return step(self, batch)

    monkeypatch.setattr(EagerStep, "forward_backward", cut_off)
    assert train.main([*arguments, "--run-dir", "cut"]) == 130
    assert train.main(["--resume", "cut"]) == 0
    assert len(set(rates)) == 2 * steps  # the steps after the last checkpoint were trained twice, at the same rates
    whole, cut = (torch.load(Path(run) / "checkpoints/last.pt", weights_only=True) for run in ("whole", "cut"))
    assert all(torch.equal(cut["network"][key], value) for key, value in whole["network"].items())
