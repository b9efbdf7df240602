"""Stochastic depth and dropout before the head: their statistics, what eval mode leaves alone, and runs that resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shapmix import train
from shapmix.networks import ctrgcn, ctrgcn_reference
from shapmix.networks.drop_path import DropPath
from shapmix.networks.head import drop_before_head
from shapmix.skeleton.layout import load_layout
from shapmix.training.eager_step import EagerStep

TINY = ["--num-frames", "8", "--network.widths", "8", "8", "--batch-size", "8", "--epochs", "2", "--threads", "1"]
TINY += ["--device", "cpu", "--mix", "stmix", "--eval-every", "2"]
LAYOUT = load_layout("ntu25")
OPTIONS = {"num_people": 1, "widths": (8, 16, 16), "halve": (1,), "graph_gain": 1.0}


def test_rows_are_dropped_at_the_rate_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    layer, y = DropPath(0.25), torch.ones(20_000, 2, 1, 1)
    dropped = layer(y)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[:, 0], dropped[:, 1])  # a row as a whole
    assert float((dropped == 0).double().mean()) == pytest.approx(0.25, abs=0.015)  # about 5 standard deviations
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    assert layer.eval()(y) is y


def test_the_rate_rises_with_the_depth() -> None:
    network = ctrgcn.CTRGCN(LAYOUT, 4, drop_path=0.3, **OPTIONS)
    assert [layer.drop_path.share if layer.drop_path else 0.0 for layer in network.layers] == pytest.approx([0, 0.15, 0.3])
    assert ctrgcn.CTRGCN(LAYOUT, 4, **OPTIONS).state_dict().keys() == network.state_dict().keys()


def test_the_fast_network_drops_what_the_reference_drops() -> None:
    clips = torch.randn(6, 3, 8, 25, 1)
    found: list[Tensor] = []
    for made in (ctrgcn_reference.CTRGCN, ctrgcn.CTRGCN):
        torch.manual_seed(1)
        network = made(LAYOUT, 4, drop_path=0.5, **OPTIONS)
        torch.manual_seed(2)
        found += [network(clips), network.eval()(clips)]
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], found[1], rtol=1e-4, atol=1e-5)


def test_a_network_that_drops_every_branch_is_its_shortcuts() -> None:
    network = ctrgcn.CTRGCN(LAYOUT, 4, drop_path=1 - 1e-9, num_people=1, widths=(8, 8), halve=())
    x = torch.rand(3, 8, 8, 25)  # not negative, as after a ReLU
    torch.testing.assert_close(network.layers[1](x), x)


def test_inputs_of_the_head_are_dropped_in_training_alone() -> None:
    network = ctrgcn.CTRGCN(LAYOUT, 4, **OPTIONS)
    drop_before_head(network, 4, 0.5)
    seen: list[Tensor] = []
    network.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    clips = torch.randn(64, 3, 8, 25, 1)
    network.eval()
    with torch.no_grad():
        features = network.features(clips)
        network(clips)
        assert torch.equal(seen[0], features)
    torch.manual_seed(0)
    network.train()(clips)
    zero = (seen[1] == 0).double()
    assert float(zero.mean()) == pytest.approx(0.5, abs=0.08)
    assert 0 < float(zero.mean(1).std()) < 0.5  # entries of a row are dropped one by one


@pytest.mark.usefixtures("small_data", "no_pictures")
def test_runs_that_drop_resume_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, "--network.drop-path", "0.4", "--network.dropout", "0.3", "--label-smoothing", "0.1"]
    arguments += ["--checkpoint.every-steps", "1", "--ema", "0.9"]
    assert train.main([*arguments, "--run-dir", "whole"]) == 0
    step, calls = EagerStep.forward_backward, iter(range(10_000))

    def cut_off(self: EagerStep, batch: object) -> tuple[Tensor, Tensor, Tensor]:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(EagerStep, "forward_backward", cut_off)
    assert train.main([*arguments, "--run-dir", "cut"]) == 130
    assert train.main(["--resume", "cut"]) == 0
    whole, cut = (torch.load(Path(run) / "checkpoints/last.pt", weights_only=True)["network"] for run in ("whole", "cut"))
    assert all(torch.equal(cut[key], value) for key, value in whole.items())


@pytest.mark.usefixtures("small_data", "no_pictures")
def test_a_backbone_without_drop_path_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--num-frames", "8", "--epochs", "1", "--saliency.warmup-epochs", "0", "--network.backbone", "aagcn"]
    assert train.main([*arguments, "--network.drop-path", "0.1"]) == 2
    assert "network.drop_path: backbone 'aagcn' has none; omit it, or choose one of ctrgcn" in capsys.readouterr().err
