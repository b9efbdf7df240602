"""Analyses the Shap-Mix rows of a grid: how guidance changes the mixed clips, and how accurate it is.

    python -m bench.mixing_reasons FOLDER --out FILE

FOLDER is a folder of `python -m shapmix.experiment` with its runs. For every finished run with `--mix shapmix`, all coalitions of
the training clips are forwarded through the last checkpoint, which gives the true class table. Reported for all classes and for
those with fewer than 20 training clips:

- error: relative root mean square error of the class table learned in training;
- from_uniform, true_from_uniform: strength of guidance, the total variation between the distribution of drawn combinations and
  the uniform one of ST-Mix, for the learned and for the true table;
- wrong: total variation between the learned and the true distribution;
- kept_guided, kept_true, kept_random, kept_best: fraction of the probability of a clip's class that remains when only the drawn
  combination of parts moves, drawn from the learned table, from the true table, at random, and for the best combination;
- share: mean label share of the rarer class of a pair in pasted clips (0.5 for Mixup of whole clips).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from bench.machine import commit, machine
from bench.saliency_estimators import Truth, read_truth
from shapmix.data.longtail import buckets
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.kernels import draw_plan
from shapmix.training.trained import open_with_data

EPOCHS = 20  # epochs of batches for which plans are drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs: dict[str, dict[str, Any]] = {}
    for path in sorted((arguments.folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        run = arguments.folder / "runs" / path.stem
        if cell["options"]["mix"] == "shapmix" and not run.exists():
            print(f"{path.stem}: skipped, its run is not in {arguments.folder / 'runs'}")
        elif cell["options"]["mix"] == "shapmix":
            found = reasons(run)
            runs.setdefault(f"{cell['setting']}, {cell['row']}", {})[f"seed {cell['seed']}"] = found
            print(path.stem, {name: round(value, 3) for name, value in found["few classes"].items()}, flush=True)
    content = {
        "command": "python -m bench.mixing_reasons FOLDER",
        "commit": commit(),
        "machine": machine(),
        "mean": {
            row: {group: averaged([seed[group] for seed in seeds.values()]) for group in next(iter(seeds.values()))}
            for row, seeds in runs.items()
        },
        "runs": runs,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def averaged(measured: list[dict[str, float]]) -> dict[str, float]:
    return {name: mean(one[name] for one in measured) for name in measured[0]}


def reasons(run: Path) -> dict[str, dict[str, float]]:
    """Measures of one run, by group of classes."""
    truth, _, config = read_truth(run)
    _, splits, _, _, mixer = open_with_data(run, "last")
    few = buckets(splits.class_counts()).few
    groups = {"all classes": torch.ones_like(few), "few classes": few}
    measured = of_table(truth, mixer.saliency.double(), mixer.temperature)
    measured["share"] = shares_of_the_rarer(splits.train, splits.store.labels, mixer, config.batch_size)
    return {name: {key: float(value[group].nanmean()) for key, value in measured.items()} for name, group in groups.items()}


def of_table(truth: Truth, table: Tensor, temperature: float) -> dict[str, Tensor]:
    """Measures [K] of a learned table [K, Q] against the truth."""
    learned, true = (table / temperature).softmax(1), (truth.table / temperature).softmax(1)
    uniform = torch.full_like(true, 1 / true.shape[1])
    kept = held(truth)
    return {
        "error": (table - truth.table).square().mean(1).sqrt() / truth.table.square().mean().sqrt(),
        "from_uniform": variation(learned, uniform),
        "true_from_uniform": variation(true, uniform),
        "wrong": variation(learned, true),
        "kept_guided": (learned * kept).sum(1),
        "kept_true": (true * kept).sum(1),
        "kept_random": kept.mean(1),
        "kept_best": kept.max(1).values,
    }


def held(truth: Truth) -> Tensor:
    """[K, Q]: mean probability of the class with only these parts in motion, relative to all parts in motion."""
    alone, whole = truth.games[:, truth.layout.combinations], truth.games[:, -1]
    of_class = [truth.labels == label for label in range(truth.classes)]
    return torch.stack([alone[rows].mean(0) / whole[rows].mean() for rows in of_class])


def variation(one: Tensor, other: Tensor) -> Tensor:
    """[K]: total variation between rows."""
    return (one - other).abs().sum(1) / 2


def shares_of_the_rarer(train: Tensor, labels: Tensor, mixer: Any, batch_size: int) -> Tensor:
    """[K]: mean label share of a class in pasted clips whose other class is more frequent; NaN if there are none."""
    classes = len(mixer.class_counts)
    total, count = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    batches = [batch for epoch in range(EPOCHS) for batch in epoch_batches(epoch_order(train, mixer.seed, epoch), batch_size)]
    for step, chosen in enumerate(batches):
        own = labels[chosen]
        plan = draw_plan(
            own, mixer.saliency, mixer.priority, mixer.combinations, mixer.part_of_joint, mixer.mean_motion.shape[1],
            seed=mixer.seed, step=step, temperature=mixer.temperature, blend_probability=0.0,
        )  # fmt: skip
        other = own[plan.partner]
        theirs = mixer.class_counts[other] < mixer.class_counts[own]
        mine = mixer.class_counts[own] < mixer.class_counts[other]
        for rarer, of_class, share in ((theirs, other, plan.label_share), (mine, own, 1 - plan.label_share)):
            total.index_add_(0, of_class[rarer], share[rarer].double())
            count.index_add_(0, of_class[rarer], torch.ones(int(rarer.sum()), dtype=torch.float64))
    return total / count


if __name__ == "__main__":
    main()
