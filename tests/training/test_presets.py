"""The presets are the published recipes: their values, their learning rate at every step, and an epoch of each on made-up data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shapmix import prepare, train
from shapmix.training.config import PRESETS, parse_config, presets
from shapmix.training.options import TrainConfig, options
from shapmix.training.schedule import learning_rate
from tests.data.ntu_files import made, text_of
from tests.set_files import kinetics
from tests.source_files import nw_ucla

STEPS = 3  # of an epoch, in the schedules
PUBLISHED = [name for name in presets() if name != "synthetic"]
SHORT = ["--epochs", "1", "--num-frames", "8", "--network.widths", "8", "16", "--batch-size", "4", "--device", "cpu"]
SHORT += ["--threads", "1", "--saliency.warmup-epochs", "0", "--schedule.warmup-epochs", "0"]

# As the configurations say that the presets name: CTR-GCN's and Shap-Mix's default.yaml, Shap-Mix's long_tailed_logit_adjust.yaml
# and k400.yaml, and BRL's j.py.
BALANCED = {"epochs": 65, "batch_size": 64, "schedule.lr": 0.1, "schedule.weight_decay": 4e-4, "schedule.warmup_epochs": 5}
LONG_TAILED = {**BALANCED, "epochs": 100, "imbalance": 100, "n_max": 600}
BRL = {"epochs": 24, "repeat": 5, "batch_size": 16, "schedule.lr": 0.0125, "schedule.weight_decay": 5e-4, "test_clips": 10}
BRL |= {"schedule.warmup_epochs": 0, "num_frames": 64, "network.backbone": "stgcnpp", "augment.swap": 0.5, "imbalance": 100}
VALUES: dict[str, dict[str, Any]] = {
    "kinetics": {
        **{"epochs": 70, "batch_size": 80, "schedule.lr": 0.1, "schedule.weight_decay": 5e-4, "schedule.warmup_epochs": 5},
        **{"num_frames": 100, "test_clips": 10, "imbalance": None, "schedule.final": 0.001, "schedule.per": "step"},
    },
    "ntu60": BALANCED | {"imbalance": None, "num_frames": 64},
    "ntu120": BALANCED | {"imbalance": None, "num_frames": 64},
    "ntu60-lt": LONG_TAILED,
    "ntu120-lt": LONG_TAILED,
    "ntu60-lt-brl": BRL,
    "ntu120-lt-brl": BRL,
    "nw-ucla": BALANCED | {"repeat": 5, "batch_size": 16, "schedule.weight_decay": 1e-4, "num_frames": 52, "imbalance": None},
    "nw-ucla-lt": BALANCED | {"epochs": 100, "batch_size": 32, "imbalance": 10, "n_max": 100, "num_frames": 52},
}
MILESTONES = {"ntu60": [35, 55], "ntu120": [35, 55], "ntu60-lt": [60, 80], "ntu120-lt": [60, 80], "nw-ucla": [50]}
MILESTONES |= {"nw-ucla-lt": [60, 80]}


def preset(name: str, *arguments: str) -> TrainConfig:
    return parse_config(["--preset", name, "--data-root", "data", *arguments])


def rate(name: str, epoch: int, iteration: int) -> float:
    """The published formulas, with epochs and iterations from 0, and `STEPS` iterations an epoch."""
    if name.endswith("-brl"):  # mmcv's CosineAnnealing with min_lr=0, by_epoch=False
        return 0.0125 * 0.5 * (1 + math.cos(math.pi * (epoch * STEPS + iteration) / (24 * STEPS)))
    if epoch < 5:  # warm_up_epoch
        return 0.1 * (epoch + 1) / 5
    if name == "kinetics":  # Shap-Mix's adjust_learning_rate_cos
        all_steps, now, least = STEPS * (70 - 5), STEPS * (epoch - 5) + iteration, 0.1 * 0.001
        return least + 0.5 * (0.1 - least) * (1 + math.cos(now / all_steps * math.pi))
    return 0.1 * math.prod(0.1 for milestone in MILESTONES[name] if epoch >= milestone)  # adjust_learning_rate


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_learning_rate_of_every_step_is_the_published_one(name: str) -> None:
    config = preset(name)
    for epoch in range(config.epochs):
        for iteration in range(STEPS):
            found = learning_rate(config, epoch * STEPS + iteration, STEPS)
            assert found == pytest.approx(rate(name, epoch, iteration), rel=1e-9, abs=1e-15), (epoch, iteration)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_values_are_those_of_the_named_sources(name: str) -> None:
    values = options(preset(name))
    assert {key: values[key] for key in VALUES[name]} == VALUES[name]
    assert values["schedule.optimizer"] == "sgd"
    assert (values["schedule.momentum"], values["schedule.nesterov"], values["schedule.decayed"]) == (0.9, True, "all")
    assert values["schedule.clip_norm"] is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_names_its_source(name: str) -> None:
    comments = [line for line in (PRESETS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    (source,) = [line for line in comments if line.startswith("# Source: ")]
    assert source.removeprefix("# Source: ").startswith(("Uason-Chen/CTR-GCN", "JHang2020/Shap-Mix", "firework8/BRL", "none. "))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made-up data in the shape of each data set, by its name."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "nturgb+d_skeletons"
    raw.mkdir()
    for action in (1, 2, 3):
        for subject in (1, 2, 3, 4):  # 3 is one of the test's
            content = text_of(made(2, 13 + action, seed=10 * action + subject))
            (raw / f"S001C001P{subject:03d}R001A{action:03d}.skeleton").write_bytes(content)
    assert prepare.main([str(raw), str(folder / "ntu")]) == 0
    kinetics(folder / "k400")
    assert prepare.main([str(folder / "k400"), str(folder / "kinetics"), "--box-threshold", "0.5"]) == 0
    nw_ucla(folder / "nw-ucla")
    return {name: folder / name for name in ("ntu", "kinetics", "nw-ucla")}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_epoch_of_a_preset_on_data_of_its_shape(name: str, data: dict[str, Path], tmp_path: Path) -> None:
    kind = next(kind for kind in data if name.startswith(kind))
    arguments = ["--preset", name, "--data-root", str(data[kind]), "--run-dir", str(tmp_path / "run"), *SHORT]
    arguments += ["--imbalance", "2", "--n-max", "3"] if "-lt" in name else []
    arguments += ["--drop-empty-classes"]  # the made-up data has two or three
    assert train.main(arguments) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(row["loss_clean"] + row["loss_mixed"])
    result = json.loads((tmp_path / "run/result.json").read_text())["test"]
    assert all(figures["clips"] > 0 for figures in result.values())


def test_clips_with_scores_are_sampled_by_segments(
    data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--preset", "kinetics", "--data-root", str(data["kinetics"]), "--run-dir", str(tmp_path / "run"), *SHORT]
    assert train.main([*arguments, "--pipeline", "crop"]) == 2
    assert "pipeline: 'crop' would treat the confidence score as a coordinate; choose segments" in capsys.readouterr().err
