"""What the embedded data is the ground truth for: the parts that define a class are found by training on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shapmix.data.clips import Splits
from shapmix.training.build import load_splits
from shapmix.training.config import parse_config
from shapmix.training.trainer import Result, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Splits, Result]:
    config = parse_config(["--run-dir", str(Path(tmp_path_factory.mktemp("runs")) / "embedded")])
    splits = load_splits(config)
    return splits, train(config, splits)


def test_learned_saliency_finds_the_parts_that_define_a_class(trained: tuple[Splits, Result]) -> None:
    """The best pair or triple of parts holds all defining parts, for at least 90% of the classes."""
    splits, result = trained
    combinations, truth = splits.store.layout.combinations, splits.defining_parts
    holds = (combinations & truth[:, None]) == truth[:, None]  # [K, Q]
    chance = float(holds.double().mean())
    best = result.saliency.argmax(1)
    found = float(holds[torch.arange(len(truth)), best].double().mean())
    print(f"\ndefining parts found for {100 * found:.0f}% of the classes, by chance {100 * chance:.0f}%")
    assert chance < 0.3
    assert found >= 0.9


def test_the_embedded_default_is_learned(trained: tuple[Splits, Result]) -> None:
    """Far above the 4% of guessing, on all classes and on those with fewer than 20 clips."""
    _, result = trained
    print(f"\n{result.accuracy['last']}")
    assert result.accuracy["last"].class_mean >= 0.6
    assert result.accuracy["last"].few >= 0.4
