"""The table of docs/recipes.md has the values of the presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from shapmix.training.config import PRESETS, parse_config, presets
from shapmix.training.schedule import milestones

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    config = parse_config(["--preset", name, "--data-root", "data"])
    schedule = config.schedule
    clips = "all" if config.imbalance is None else f"imbalance {config.imbalance:g}, at most {config.n_max}"
    epochs = f"{config.epochs}" if config.repeat == 1 else f"{config.epochs} x {config.repeat}"
    decay = f"cosine per {schedule.per} to {schedule.final:g} lr"
    if schedule.decay == "step":
        decay = "/ 10 after " + ", ".join(map(str, milestones(config)))
    frames = f"{config.num_frames}" + ("" if config.pipeline == "auto" else f", {config.pipeline}")
    test = "1 view" if config.test_clips == 1 else f"{config.test_clips} views"
    cells = [f"`{name}`", clips, epochs, config.batch_size, f"{schedule.lr:g}", schedule.warmup_epochs, decay]
    return " | ".join(map(str, [*cells, f"{schedule.weight_decay:g}", frames, test]))


@pytest.mark.parametrize("name", [name for name in presets() if name != "synthetic"])
def test_every_preset_has_its_row(name: str) -> None:
    assert f"| {row(name)} |\n" in PAGE, f"docs/recipes.md needs the line\n| {row(name)} |"


def test_the_sources_of_the_page_are_those_of_the_files() -> None:
    for name in presets():
        comment = " ".join(
            line.removeprefix("# ") for line in (PRESETS / f"{name}.yaml").read_text().splitlines() if "#" in line[:1]
        )
        for repository in ("Uason-Chen/CTR-GCN", "JHang2020/Shap-Mix", "firework8/BRL", "kennymckormick/pyskl"):
            if repository in comment:
                assert repository in PAGE
    assert {name for name in presets() if f"| `{name}` |" in PAGE} == set(presets()) - {"synthetic"}
