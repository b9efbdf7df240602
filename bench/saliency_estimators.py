"""Error of each estimator's class saliency on a trained network, at the published cost.

    python -m bench.saliency_estimators RUN --out FILE [--plot PNG]

Every coalition of every training clip is forwarded once. This gives the exact table, and the estimators read their values from it,
so that they see the network's real noise between and within samples. Each estimator then runs for some epochs with the run's
batches and decay, from an empty table, with two forward passes per sample. Reported for the second half of the steps: the root mean
square error of the class table relative to the root mean square of the exact table, and the total variation between the
distributions from which mixing draws combinations.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bench.machine import commit, machine
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.mixing.estimators import ESTIMATORS
from shapmix.mixing.marginals import Request
from shapmix.mixing.saliency import SALIENCY_SCALE, ClassSaliency
from shapmix.networks.skeleton_graph import WIDTHS
from shapmix.reference import expected_marginals
from shapmix.reference.saliency import contexts
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import Layout
from shapmix.training.trained import open_with_data

SEEDS = 5


class Truth:
    """All coalitions of a network's training clips.

    From log_probability [n, 2^P, K] and labels [n] it computes the exact class table [K, Q].
    """

    def __init__(self, log_probability: Tensor, labels: Tensor, layout: Layout) -> None:
        self.log_probability, self.labels, self.layout = log_probability, labels, layout
        index = labels.view(-1, 1, 1).expand(-1, log_probability.shape[1], 1)
        self.games = log_probability.gather(2, index).squeeze(2).exp().double()
        self.joint_counts = layout.joints_in(layout.combinations)
        self.samples = expected_marginals(self.games, layout.combinations, layout.num_parts) * SALIENCY_SCALE / self.joint_counts
        self.classes = log_probability.shape[2]
        self.table = torch.stack([self.samples[labels == label].mean(0) for label in range(self.classes)])

    def spread(self) -> dict[str, float]:
        """Root mean square standard deviation of an entry: between samples of a class, and over contexts within a sample."""
        between = torch.stack([self.samples[self.labels == label].var(0) for label in range(self.classes)])
        every = contexts(self.layout.combinations, self.layout.num_parts)
        each = (self.games[:, every.with_sets] - self.games[:, every.without_sets]).relu() * SALIENCY_SCALE
        each = each / self.joint_counts[:, None]
        mean = (each * every.weights).sum(2, keepdim=True)
        within = ((each - mean).square() * every.weights).sum(2)
        return {"between samples": float(between.nanmean().sqrt()), "within a sample": float(within.mean().sqrt())}

    def error(self, table: Tensor, temperature: float) -> tuple[float, float]:
        """Relative root mean square error of a class table, and the mean total variation of the mixing distributions."""
        difference = (table.double() - self.table).square().mean() / self.table.square().mean()
        wrong = ((table.double() / temperature).softmax(1) - (self.table / temperature).softmax(1)).abs().sum(1) / 2
        return float(difference.sqrt()), float(wrong.mean())


def follow(truth: Truth, estimator: str, batches: list[Tensor], decay: float, temperature: float, seed: int) -> dict[str, Any]:
    """Runs one estimator over the batches (indices into the truth); the first half of the steps is warm-up."""
    table = ClassSaliency(truth.classes, truth.layout, truth.joint_counts, estimator, decay)
    empty = truth.log_probability[0, :1]  # the mean motion, the same for every clip
    rows, errors = 0, []
    for step, batch in enumerate(batches):
        labels = truth.labels[batch]
        found = ESTIMATORS[estimator].propose(Request(table.measured[labels], truth.layout, seed, step))
        logits = torch.cat([empty, truth.log_probability[batch[found.samples], found.coalitions]])
        table.update(found, logits, labels)
        rows += len(logits)
        if step >= len(batches) // 2:
            errors.append(truth.error(table.mean, temperature))
    error, variation = torch.tensor(errors, dtype=torch.float64).mean(0).tolist()
    return {"error": error, "variation": variation, "rows a sample": rows / sum(map(len, batches))}


def read_truth(run: Path) -> tuple[Truth, dict[str, Any], Any]:
    """Forwards all coalitions of the run's training clips."""
    config, splits, network, sampler, mixer = open_with_data(run, "last")
    store = splits.store
    game = PartGame(network, store.layout, mixer.mean_motion, "log_prob", restored_frames=mixer.restored_frames)
    tables = [game.table(sampler.training(part, step)) for step, part in enumerate(splits.train.split(64))]
    widths = list(config.network.widths or WIDTHS)
    about = {"dataset": config.dataset, "clips": len(splits.train), "widths": widths, "epochs": config.epochs}
    return Truth(torch.cat(tables), store.labels[splits.train], store.layout), about, config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--epochs", type=int, default=20, help="epochs to run; errors are averaged over the second half")
    arguments = parser.parse_args()
    truth, about, config = read_truth(arguments.run)
    everyone = torch.arange(len(truth.labels))
    results: dict[str, Any] = {}
    for estimator in ESTIMATORS:
        if estimator == "exact":
            continue  # needs 31 forward passes per sample, a different budget
        each = []
        for seed in range(SEEDS):
            batches = [
                batch
                for epoch in range(arguments.epochs)
                for batch in epoch_batches(epoch_order(everyone, seed, epoch), config.batch_size)
            ]
            each.append(follow(truth, estimator, batches, config.saliency.decay, config.saliency.temperature, seed))
        results[estimator] = {
            key: {"mean": float(torch.tensor([one[key] for one in each]).mean()), "seeds": [one[key] for one in each]}
            for key in each[0]
        }
        print(f"{estimator:<14}" + "  ".join(f"{key} {value['mean']:.3f}" for key, value in results[estimator].items()), flush=True)
    content = {
        "command": f"python -m bench.saliency_estimators RUN --epochs {arguments.epochs}",
        "commit": commit(),
        "machine": machine(),
        "run": about | {"batch_size": config.batch_size, "decay": config.saliency.decay},
        "spread": truth.spread(),
        "estimators": results,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot:
        plot(arguments.plot, results)


def plot(path: Path, results: dict[str, Any]) -> None:
    """Plots errors and total variations side by side, with one dot per seed."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    names = list(results)
    titles = {"error": "relative error of the class table", "variation": "total variation of the mixing distribution"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        axes.barh(names, [results[name][key]["mean"] for name in names], color="#9fb8c9")
        for row, name in enumerate(names):
            axes.plot(results[name][key]["seeds"], [row] * SEEDS, "o", color="#1f4e6b", markersize=3)
        axes.invert_yaxis()
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
