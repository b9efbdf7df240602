"""docs/backbones.md: its command trains on small data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from shapmix import train

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text("utf-8")
SHORT = [
    "--epochs",
    "2",
    "--num-frames",
    "8",
    "--network.widths",
    "8",
    "--batch-size",
    "8",
    "--saliency.warmup-epochs",
    "1",
    "--threads",
    "1",
    "--device",
    "cpu",
]


@pytest.mark.usefixtures("small_data", "no_pictures")
def test_the_command_trains() -> None:
    (command,) = re.findall(r"^python -m shapmix.train (.*)$", PAGE, re.MULTILINE)
    assert train.main([*shlex.split(command), *SHORT, "--baselines", "--run-dir", "run"]) == 0
    assert Path("run/result.json").exists()
