"""Runs the examples unchanged."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_the_plain_loop_learns(capsys: pytest.CaptureFixture[str]) -> None:
    import plain_loop

    assert plain_loop.main() > 0.5  # of 8 classes
    assert "test accuracy" in capsys.readouterr().out


# Lightning uses deprecated APIs of other packages, and warns that a small loader has few workers
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*num_workers.*", "ignore:.*log_every_n.*"
)
def test_the_lightning_module_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed (`pip install lightning`)")
    import lightning_module

    monkeypatch.chdir(tmp_path)
    training = lightning_module.main(epochs=2, n_max=24)
    assert training.global_step > 0
    assert (training.mixer.saliency.max(1).values > 1e-6).any()
    assert "mixer.class_saliency.mean" in training.state_dict()
    assert all(torch.isfinite(value).all() for value in training.network.state_dict().values())
    sys.modules.pop("lightning_module")


@pytest.mark.usefixtures("small_runs")
def test_a_third_partys_network_is_wrapped_in_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import third_party_network

    monkeypatch.chdir(tmp_path)
    options = ["--num-frames", "8", "--batch-size", "8", "--epochs", "1", "--threads", "1", "--device", "cpu"]
    options += ["--saliency.warmup-epochs", "0"]
    assert third_party_network.main([*options, "--run-dir", "run"]) == 0
    state = torch.load("run/checkpoints/last.pt", weights_only=True)["network"]
    assert all(key.startswith("model.") for key in state)
    lines = inspect.getsource(third_party_network.network).splitlines()
    assert len(lines) == 5
    page = (EXAMPLES.parent / "docs" / "own_layout.md").read_text()
    assert inspect.getsource(third_party_network.network) in page
    assert inspect.getsource(third_party_network.Wrapped) in page
