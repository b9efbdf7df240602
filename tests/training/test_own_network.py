"""Networks of the user's own, `--network.backbone module:function`: what is wrong with one is said before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shapmix import train

TINY = ["--num-frames", "8", "--batch-size", "8", "--epochs", "1", "--mix", "none", "--threads", "1", "--device", "cpu"]
MODULE = """
import torch
from torch import nn

NUMBER = 3


class Net(nn.Module):
    def __init__(self, classes, output=None, rows=slice(None)):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.output, self.rows = output, rows

    def forward(self, clips):
        logits = self.layers(clips)[self.rows]
        return logits if self.output is None else self.output(logits)


def network(layout, num_classes, num_people, in_channels):
    return Net(num_classes)

def everything(**options):
    return Net(options["num_classes"])

def few(layout, num_classes):
    return Net(num_classes)

def more(layout, num_classes, num_people, in_channels, depth):
    return Net(num_classes)

def raising(layout, num_classes, num_people, in_channels):
    raise KeyError("no graph of 25 joints")

def nothing(layout, num_classes, num_people, in_channels):
    Net(num_classes)

def tuples(layout, num_classes, num_people, in_channels):
    return Net(num_classes, lambda logits: (logits, logits))

def classes(layout, num_classes, num_people, in_channels):
    return Net(7)

def one_row(layout, num_classes, num_people, in_channels):
    return Net(num_classes, rows=slice(1))

def whole(layout, num_classes, num_people, in_channels):
    return Net(num_classes, lambda logits: logits.argmax(1, keepdim=True).expand_as(logits))

def images(layout, num_classes, num_people, in_channels):
    return nn.Conv2d(in_channels, num_classes, 1)
"""


@pytest.fixture
def theirs(small_runs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "theirs.py").write_text(MODULE)
    (tmp_path / "wrong.py").write_text("def network(:\n")
    (tmp_path / "needy.py").write_text("import a_package_that_is_not_installed\n")


@pytest.mark.parametrize("function", ["network", "everything"])
@pytest.mark.usefixtures("theirs")
def test_lazy_layers_take_their_size_from_the_clips(function: str) -> None:
    assert train.main([*TINY, "--network.backbone", f"theirs:{function}", "--run-dir", "run"]) == 0
    assert json.loads(Path("run/result.json").read_text())
    state = torch.load("run/checkpoints/last.pt", weights_only=True)["network"]
    assert state["layers.1.weight"].shape == (4, 3 * 8 * 25 * 1)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("nowhere:network", "No module named 'nowhere'; start in the folder of 'nowhere', or add it to PYTHONPATH"),
        ("needy:network", "importing 'needy' failed: ModuleNotFoundError: No module named 'a_package_that_is_not_installed'"),
        ("wrong:network", "importing 'wrong' failed: SyntaxError: "),
        ("theirs:netwrok", "module 'theirs' has no 'netwrok'; did you mean 'network'?"),
        ("theirs:", "give MODULE:FUNCTION"),
        (":network", "give MODULE:FUNCTION"),
        ("theirs:NUMBER", "'NUMBER' is of type int; give a function that returns a torch module"),
        ("theirs:few", "few(layout, num_classes) got an unexpected keyword argument 'num_people'; it is called with layout, num_"),
        (
            "theirs:more",
            "in_channels, depth) missing a required argument: 'depth'; it is called with layout, num_",
        ),
        ("theirs:raising", "theirs.py, line 32: KeyError: 'no graph of 25 joints'"),
        ("theirs:nothing", "made a NoneType, not a torch module"),
        ("theirs:tuples", "is a tuple; give logits [2, 4] alone"),
        ("theirs:classes", "has shape [2, 7]; give [2, 4], a row a clip and a column a class"),
        ("theirs:one_row", "has shape [1, 4]; give [2, 4]"),
        ("theirs:whole", "is torch.int64"),
        ("theirs:images", "cannot forward clips [N, C, T, V, M] = [2, 3, 8, 25, 1]: "),
    ],
)
@pytest.mark.usefixtures("theirs")
def test_what_is_wrong_is_one_line_before_the_first_step(backbone: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*TINY, "--network.backbone", backbone, "--run-dir", "run"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: network.backbone '{backbone}'")
    assert message in error
    assert not Path("run").exists()
