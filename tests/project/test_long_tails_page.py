"""docs/long_tails.md: a row for every loss and sampler, and every command runs on small data."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from shapmix import ShapMix, load_layout
from shapmix.data.order import SAMPLERS
from shapmix.mixing.losses import LOSSES
from shapmix.mixing.mixers import MIXERS

PAGE = (Path(__file__).parents[2] / "docs" / "long_tails.md").read_text("utf-8")
SECOND = ["--epochs", "2", "--batch-size", "8"]
SHORT = [*SECOND, "--num-frames", "8", "--network.widths", "8", "--saliency.warmup-epochs", "1"]


def rows_of(option: str) -> set[str]:
    """Names in the first column of the table of an option."""
    table = PAGE.partition(f"| `{option}` |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def test_every_loss_and_sampler_has_a_row() -> None:
    assert rows_of("--loss") == set(LOSSES)
    assert rows_of("--sampler") == set(SAMPLERS)
    assert rows_of("--mix") <= set(MIXERS)


@pytest.mark.usefixtures("small_data", "no_pictures")
def test_the_commands_run() -> None:
    commands = re.findall(r"^python -m (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        module, *arguments = shlex.split(command)
        short = ["--threads", "1", "--device", "cpu"]
        if module == "shapmix.train":
            short += SECOND if "--stage2" in arguments else SHORT
        assert importlib.import_module(module).main([*arguments, *short]) == 0, command
    tested = {run.name: json.loads((run / "result.json").read_text())["test"] for run in Path("runs").iterdir()}
    assert sorted(tested) == ["brl", "plain", "sam", "second"]
    assert tested["plain"]["none last"]["tau"] is not None
    assert json.loads(Path("runs/second/result.json").read_text())["loss"] == "label_aware_smoothing"


def test_the_functions_for_a_loop_of_ones_own_work() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    clips, labels, counts = torch.randn(6, 3, 8, 25, 1), torch.arange(6) % 2, torch.tensor([90, 10])
    mixer = ShapMix(load_layout("ntu25"), counts, clips.mean(0), mix="stmix", loss="action_aware", deferred_steps=1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(clips[0].numel(), 2))
    before = network[1].weight.detach().clone()
    found["sam_step"](network, mixer, mixer.mix(clips, labels, 1), torch.optim.SGD(network.parameters(), lr=0.1))
    assert 0 < (network[1].weight - before).abs().max() < 10
    biased = torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64)
    assert found["adjust"](biased, torch.tensor([0, 1]), biased, counts).argmax(1).tolist() == [0, 1]
