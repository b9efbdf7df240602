"""Weights that were trained elsewhere: measured without training, and as a run directory for every other command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shapmix import evaluate, explain, export, predict, report, train
from shapmix.data.clips import Splits, join_clips
from shapmix.data.sampling import ClipSampler
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.skeleton.layout import load_layout
from shapmix.training.scores import open_member
from shapmix.training.tau_norm import choose_tau
from tests.small_run import make_small_runs

DATA = ["--num-frames", "8", "--network.widths", "8", "16", "--num-people", "1", "--batch-size", "8", "--threads", "1"]
DATA += ["--device", "cpu"]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def weights() -> str:
    """The state dict of a network with statistics of its own, in a file."""
    torch.manual_seed(1)
    network = CTRGCN(load_layout("ntu25"), 4, num_people=1, widths=(8, 16), graph_gain=1.0).train()
    for _ in range(3):
        network(torch.randn(4, 3, 8, 25, 1))
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, "theirs.pt")
    return "theirs.pt"


def test_a_file_is_measured_without_training(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([weights, *DATA, "--save-scores", "scores.npz", "--out", "tables", "--test-clips", "2"]) == 0
    assert "theirs last, 2 crops" in capsys.readouterr().out
    assert json.loads(Path("tables/result.json").read_text())["views"] == "2 crops"
    assert np.load("scores.npz")["probabilities"].shape == (12, 4)
    assert sorted(path.name for path in Path().iterdir()) == ["scores.npz", "tables", "theirs.pt"]  # no run is left behind


def test_a_file_becomes_a_run_directory_for_every_command(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([weights, *DATA, "--run-dir", "run", "--save-scores", "one.npz"]) == 0
    assert evaluate.main(["run", "--device", "cpu", "--save-scores", "two.npz"]) == 0
    np.testing.assert_array_equal(np.load("one.npz")["probabilities"], np.load("two.npz")["probabilities"])
    np.save("clip.npy", np.random.default_rng(0).normal(size=(20, 25, 3)).astype(np.float32))
    assert predict.main(["run", "clip.npy", "--device", "cpu", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["classes"]) == 3
    assert export.main(["run", "network.pt2"]) == 0
    assert explain.main(["run", "--device", "cpu", "--per-class", "1"]) == 0
    assert report.main(["run", "--device", "cpu"]) == 0
    short = ["--epochs", "1", "--device", "cpu", "--saliency.warmup-epochs", "0"]
    assert train.main(["--stage2", "crt", "--init-from", "run", *short, "--run-dir", "next"]) == 0


def test_what_cannot_be_measured_says_why(
    weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_splits: Splits
) -> None:
    whole = torch.load(weights, weights_only=True)["state_dict"]
    torch.save({name: value for name, value in whole.items() if "fc" not in name}, "headless.pt")
    for arguments, message in {
        ("headless.pt", *DATA): "'fc.weight' would be untrained (the file has no head)",
        (weights, *DATA, "--network.widths", "8"): "theirs.pt: does not fit network.backbone 'ctrgcn'",
        (weights, *DATA, "--test-clips", "0"): "test_clips",
        (weights, *DATA, "--tau-norm", "-1"): "tau_norm: a tau of at least 0, or validation, not -1",
        (weights, *DATA, "--save-scores", "scores.txt"): "save_scores: the file is an .npz",
    }.items():
        assert evaluate.main(list(arguments)) == 2, arguments
        assert message in capsys.readouterr().err
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert evaluate.main([weights, *DATA, "--run-dir", "full"]) == 2
    assert "run directory full exists" in capsys.readouterr().err
    assert evaluate.main([weights, *DATA, "--run-dir", "run"]) == 0
    assert evaluate.main(["run", weights, "--device", "cpu"]) == 2
    assert "'theirs.pt' is a file; give it first and alone" in capsys.readouterr().err
    assert evaluate.main(["run/checkpoints/last.pt", *DATA]) == 2
    assert "give the run directory run, and --checkpoint last" in capsys.readouterr().err


def test_tau_normalisation_is_given_or_chosen_on_validation(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([weights, *DATA, "--run-dir", "run"]) == 0
    found = {}
    for tau in ("0", "0.5", "1"):
        assert evaluate.main(["run", "--device", "cpu", "--tau-norm", tau, "--save-scores", f"{tau}.npz"]) == 0
        assert f"run last, single crop, tau-norm {tau}" in capsys.readouterr().out
        found[tau] = np.load(f"{tau}.npz")["probabilities"]
    assert evaluate.main(["run", "--device", "cpu", "--save-scores", "plain.npz"]) == 0
    plain = np.load("plain.npz")["probabilities"]
    np.testing.assert_array_equal(found["0"], plain)
    # logits = features . weight + bias, of which the second is left out and the first divided by its norm
    head = torch.load("run/checkpoints/last.pt", weights_only=True)["network"]
    norms = head["fc.weight"].norm(dim=1).double()
    logits = torch.from_numpy(plain).log() - head["fc.bias"].double()
    member = open_member(Path("run"), "last", CPU)
    features = features_of(member.forward, member.sampler, member.splits.test)
    for tau in ("0.5", "1"):
        expected = (features @ head["fc.weight"].double().T / norms ** float(tau)).softmax(1)
        torch.testing.assert_close(torch.from_numpy(found[tau]), expected, rtol=1e-5, atol=1e-7)
    assert logits.shape == expected.shape
    assert evaluate.main(["run", "--device", "cpu", "--tau-norm", "validation"]) == 0
    assert "tau-norm " in capsys.readouterr().out


def features_of(forward: torch.nn.Module, sampler: ClipSampler, clips: Tensor) -> Tensor:
    with torch.no_grad():
        return forward.network.eval().features(sampler.evaluation(clips)).double()


def test_the_chosen_tau_makes_classes_equal() -> None:
    """A head whose frequent class has a weight ten times as long: it wins everywhere, until tau takes the length away."""
    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[10.0, 0.0], [0.0, 1.0]]))
        head.bias.zero_()
    features = torch.tensor([[1.0, 0.9], [0.3, 1.0], [0.2, 1.0], [1.0, 0.1]])
    labels = torch.tensor([0, 1, 1, 0])
    tau = choose_tau(head, features, labels)
    assert tau > 0.5
    assert (features @ (head.weight / head.weight.norm(dim=1, keepdim=True) ** tau).T).argmax(1).tolist() == labels.tolist()


def test_a_learned_factor_and_tau_exclude_each_other(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([weights, *DATA, "--run-dir", "run"]) == 0
    short = ["--epochs", "1", "--device", "cpu"]
    assert train.main(["--stage2", "lws", "--init-from", "run", *short, "--run-dir", "lws"]) == 0
    assert evaluate.main(["lws", "--device", "cpu", "--tau-norm", "1"]) == 2
    assert "tau_norm: the head 'fc' has a learned factor per class" in capsys.readouterr().err


@pytest.mark.golden
def test_the_published_ctrgcn_gives_the_recorded_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (folder := os.environ.get("SHAPMIX_GOLDEN")):
        pytest.skip("SHAPMIX_GOLDEN is not set: no recorded behaviour to compare with")
    with np.load(Path(folder) / "ctrgcn_ntu_state.npz") as archive:
        state = {f"module.{name}": torch.from_numpy(archive[name]) for name in archive.files}
    with np.load(Path(folder) / "ctrgcn_ntu.npz") as archive:
        clips, labels, logits = (torch.from_numpy(archive[name]) for name in ("x", "label", "logits_f64"))
    torch.save(state, "ntu60.pt")
    classes = logits.shape[1]
    frames = [clip.permute(1, 3, 2, 0).contiguous() for clip in clips]  # [T, M, V, C]
    store = join_clips(
        [*frames, *[frames[0]] * (2 * classes)],
        [*labels.tolist(), *range(classes), *range(classes)],
        [f"clip{number}" for number in range(3 + 2 * classes)],
        load_layout("ntu25"),
        [f"class {number}" for number in range(classes)],
    )
    rest = torch.arange(3, 3 + 2 * classes)
    make_small_runs(monkeypatch.setattr, Splits(store, rest[:classes], rest[classes:], torch.arange(3)))
    # a network's input is recorded, not a recording: the test clips are seen as they are
    monkeypatch.setattr(ClipSampler, "evaluation", lambda self, chosen, **_: clips[chosen])
    options = ["--network.widths", "None", "--num-people", "None", "--num-frames", "64", "--device", "cpu", "--batch-size", "32"]
    assert evaluate.main(["ntu60.pt", *options, "--save-scores", "scores.npz", "--run-dir", "run"]) == 0
    found = torch.from_numpy(np.load("scores.npz")["probabilities"])
    difference = (found.log() - logits.log_softmax(1)).abs().max() / logits.log_softmax(1).abs().max()
    assert difference <= 1e-5
