"""The trainer on a GPU: one CUDA graph a step, beside the same steps launched op by op and the CPU's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from shapmix import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
    pytest.mark.usefixtures("small_data"),
]

SMALL = ["--num-frames", "16", "--network.widths", "8", "16", "--network.halve", "1", "--batch-size", "8", "--epochs", "4"]
SMALL += ["--saliency.warmup-epochs", "1", "--saliency.estimator", "exact_subset", "--schedule.lr", "0.01"]


def losses(run: str) -> torch.Tensor:
    """[epochs, 2]."""
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([[line["loss_clean"], line["loss_mixed"]] for line in lines])


@pytest.mark.parametrize(
    "options",
    [
        ["--mix", "shapmix"],
        ["--mix", "shapmix", "--compat", "official", "--saliency.estimator", "None"],
        ["--mix", "mixup"],
        ["--mix", "none", "--loss", "ce"],
        ["--mix", "shapmix", "--schedule.optimizer", "sgd", "--ema", "0.9"],
        ["--mix", "shapmix", "--schedule.clip-norm", "0.5", "--label-smoothing", "0.1", "--schedule.per", "step", "--repeat", "2"],
        # at a rate of 0.01 its ten layers make tenths of a rounding within an epoch
        ["--mix", "shapmix", "--network.backbone", "stgcn", "--schedule.lr", "1e-4", "--epochs", "2"],
    ],
    ids=" ".join,
)
def test_the_graph_trains_as_the_plain_loop_and_as_the_cpu(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounding differs and grows with the steps, so the losses of the first epochs are compared, in whole float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ways = {
        "graph": ["--device", "cuda", "--cuda-graph", "always"],
        "plain": ["--device", "cuda", "--cuda-graph", "never"],
        "cpu": ["--device", "cpu", "--threads", "2"],
    }
    for name, how in ways.items():
        assert train.main([*SMALL, *options, *how, "--run-dir", name]) == 0, capsys.readouterr().err
    graph, plain, cpu = (losses(name) for name in ways)
    torch.testing.assert_close(graph[:2], plain[:2], rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(graph[:2], cpu[:2], rtol=2e-2, atol=2e-3)


def test_dropped_paths_and_features_are_drawn_anew_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is replayed draws by the seed of its step, so two runs agree; with dropout it trains otherwise than without."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    graph = [*SMALL, "--device", "cuda", "--cuda-graph", "always"]
    for name in ("first", "second"):
        assert train.main([*graph, "--network.drop-path", "0.5", "--network.dropout", "0.5", "--run-dir", name]) == 0
    assert train.main([*graph, "--run-dir", "without"]) == 0
    torch.testing.assert_close(losses("first")[:2], losses("second")[:2], rtol=2e-2, atol=2e-3)
    assert not torch.allclose(losses("first")[:2], losses("without")[:2], rtol=2e-2, atol=2e-3)


def test_bf16_trains_in_a_graph() -> None:
    assert train.main([*SMALL, "--device", "cuda", "--cuda-graph", "always", "--precision", "bf16", "--run-dir", "run"]) == 0
    assert losses("run").isfinite().all()


@pytest.mark.parametrize("mix", ["remix", "cutmix", "cmo", "skelemix", "partial_mixup", "spatial_mix", "temporal_mix", "bone_mix"])
def test_rivals_train_on_a_gpu(mix: str) -> None:
    """Op by op, as they draw on the host."""
    assert train.main([*SMALL, "--device", "cuda", "--mix", mix, "--epochs", "2", "--run-dir", "run"]) == 0
    assert losses("run").isfinite().all()


@pytest.mark.parametrize("first", ["cuda", "cpu"])
def test_a_run_goes_on_on_either_device(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer's state says how it was computed, which the other device cannot do."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    other = "cpu" if first == "cuda" else "cuda"
    assert train.main([*SMALL, "--device", first, "--epochs", "2", "--run-dir", "run"]) == 0
    assert train.main(["--resume", "run", "--device", other, "--epochs", "4"]) == 0
    assert len(losses("run")) == 4
    assert train.main([*SMALL, "--device", "cpu", "--run-dir", "whole"]) == 0
    torch.testing.assert_close(losses("run")[:2], losses("whole")[:2], rtol=2e-2, atol=2e-3)


def test_a_loss_that_is_not_finite_stops_before_its_update(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--schedule.lr", "1e30", "--schedule.warmup-epochs", "0"]
    assert train.main([*SMALL, *options, "--device", "cuda", "--run-dir", "run"]) == 2
    assert re.search(r"the loss of step \d+ .* clips of the batch: train_c", capsys.readouterr().err)


def test_what_cannot_be_captured_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--device", "cuda", "--mix", "remix", "--cuda-graph", "always"]) == 2
    assert (
        "cuda_graph: the step cannot be captured as a CUDA graph: mode 'remix' goes by a step that the host knows"
        in capsys.readouterr().err
    )
