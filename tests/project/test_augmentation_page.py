"""docs/augmentation.md: a row for every option, and its commands and its code run."""

from __future__ import annotations

import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from shapmix.draws.augment import AugmentConfig
from shapmix.training.config import parse_config, presets

PAGE = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text("utf-8")
SHORT = ["--epochs", "1", "--batch-size", "8", "--num-frames", "8", "--network.widths", "8", "--saliency.warmup-epochs", "0"]
SHORT += ["--threads", "1", "--device", "cpu"]


def test_every_option_has_a_row() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE) == [field.name for field in fields(AugmentConfig)]


def test_the_presets_that_augment_are_named() -> None:
    named = PAGE.partition("The presets [")[2].partition("](recipes.md)")[0]
    found = {name: parse_config(["--preset", name, "--data-root", "data"]).augment for name in presets() if name != "synthetic"}
    assert {name for name, augment in found.items() if augment != AugmentConfig()} == set(re.findall(r"`(\S+)`", named))
    assert set(found.values()) == {AugmentConfig(), AugmentConfig(swap=0.5, stretch=(0.9, 1.1))}


@pytest.mark.usefixtures("small_data", "no_pictures")
def test_the_commands_run() -> None:
    commands = re.findall(r"^python -m (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        module, *arguments = shlex.split(command)
        assert importlib.import_module(module).main([*arguments, *SHORT]) == 0, command


def test_the_code_runs() -> None:
    code = PAGE.partition("```python\n")[2].partition("```")[0]
    torch.manual_seed(0)
    before = torch.randn(4, 3, 16, 25, 2)
    names = {"clips": before.clone(), "step": 3}
    exec(code, names)
    assert names["clips"].shape == before.shape
    assert not torch.equal(names["clips"], before)
