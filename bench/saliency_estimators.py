"""Error of each estimator's class saliency on a trained network, at the published cost, and on smaller budgets.

    python -m bench.saliency_estimators RUN --out FILE [--plot PNG]
    python -m bench.saliency_estimators RUN --out FILE --budgets 2 1 0.5 0.25 --every 1 2 4 --batch-size 64

Every coalition of every training clip is forwarded once. This gives the exact table, and the estimators read their values from it,
so that they see the network's real noise between and within samples. Each estimator then runs for some epochs with the run's
batches and decay, from an empty table, with two forward passes per sample. Reported for the second half of the steps: the root mean
square error of the class table relative to the root mean square of the exact table, and the total variation between the
distributions from which mixing draws combinations. The network is fixed, so that the errors do not include how far a table lags
behind a network in training: one with `--every` K remembers K times as many steps.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bench.machine import commit, machine
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.mixing.estimators import ESTIMATORS, check_budget
from shapmix.mixing.marginals import FORWARDS, Request
from shapmix.mixing.saliency import SALIENCY_SCALE, ClassSaliency
from shapmix.networks.skeleton_graph import WIDTHS
from shapmix.reference import expected_marginals
from shapmix.reference.saliency import contexts
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import Layout
from shapmix.training.trained import open_with_data

SEEDS = 5
TRAINING = 6  # forward passes that training on a clip costs: its clean and its mixed half, a backward pass counted as two


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


def follow(
    truth: Truth,
    estimator: str,
    batches: list[Tensor],
    decay: float,
    temperature: float,
    seed: int,
    budget: float = FORWARDS,
    every: int = 1,
) -> dict[str, float]:
    """Runs one estimator over the batches (indices into the truth); the first half of the steps is warm-up."""
    table = ClassSaliency(truth.classes, truth.layout, truth.joint_counts, estimator, decay)
    empty = truth.log_probability[0, :1]  # the mean motion, the same for every clip
    rows, errors = 0, []
    for step, batch in enumerate(batches):
        if step % every == 0:
            labels = truth.labels[batch]
            request = Request(table.measured[labels], truth.layout, seed, step // every, budget=budget)
            found = ESTIMATORS[estimator].propose(request)
            logits = torch.cat([empty, truth.log_probability[batch[found.samples], found.coalitions]])
            table.update(found, logits, labels)
            rows += len(logits)
        if step >= len(batches) // 2:
            errors.append(truth.error(table.mean, temperature))
    error, variation = torch.tensor(errors, dtype=torch.float64).mean(0).tolist()
    a_sample = rows / sum(map(len, batches))
    return {
        "error": error,
        "variation": variation,
        "rows a sample": a_sample,
        "share of the step": a_sample / (a_sample + TRAINING),
    }


def over_seeds(each: list[dict[str, float]]) -> dict[str, Any]:
    """The mean of every figure, and its value for each seed."""
    return {key: {"mean": sum(one[key] for one in each) / len(each), "seeds": [one[key] for one in each]} for key in each[0]}


def on_budgets(
    truth: Truth, batches: list[list[Tensor]], config: Any, budgets: list[float], every: list[int]
) -> dict[str, dict[str, Any]]:
    """Every estimator on every budget that it can keep in these batches, one list of batches per seed."""
    results: dict[str, dict[str, Any]] = {}
    saliency, clips = config.saliency, len(batches[0][0])
    for estimator, budget in product(ESTIMATORS, budgets):
        try:
            check_budget(estimator, truth.layout, budget, clips)
        except ValueError as error:
            print(error, flush=True)
            continue
        for steps in every:
            given = (saliency.decay, saliency.temperature)
            each = [follow(truth, estimator, some, *given, seed, budget, steps) for seed, some in enumerate(batches)]
            found = over_seeds(each)
            results.setdefault(estimator, {})[f"budget {budget:g} every {steps}"] = found
            print(f"{estimator:<14}budget {budget:<5g}every {steps}  {line_of(found)}", flush=True)
    return results


def line_of(found: dict[str, Any]) -> str:
    """The means of `over_seeds` in one line."""
    return "  ".join(f"{key} {value['mean']:.3f}" for key, value in found.items())


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
    parser.add_argument("--batch-size", type=int, help="of the batches that are measured; default: that of the run")
    parser.add_argument("--budgets", type=float, nargs="*", default=[], help="also measure on each of these, in every K-th step")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="each K")
    arguments = parser.parse_args()
    truth, about, config = read_truth(arguments.run)
    everyone, size = torch.arange(len(truth.labels)), arguments.batch_size or config.batch_size
    batches = [
        [batch for epoch in range(arguments.epochs) for batch in epoch_batches(epoch_order(everyone, seed, epoch), size)]
        for seed in range(SEEDS)
    ]
    results: dict[str, Any] = {}
    for estimator in ESTIMATORS:
        if estimator == "exact":
            continue  # needs 31 forward passes per sample, a different budget
        given = (config.saliency.decay, config.saliency.temperature)
        results[estimator] = over_seeds([follow(truth, estimator, some, *given, seed) for seed, some in enumerate(batches)])
        print(f"{estimator:<14}{line_of(results[estimator])}", flush=True)
    content = {
        "command": " ".join(["python -m bench.saliency_estimators RUN", *options_given(arguments)]),
        "commit": commit(),
        "machine": machine(),
        "run": about | {"batch_size": size, "decay": config.saliency.decay},
        "spread": truth.spread(),
        "estimators": results,
    }
    if arguments.budgets:
        content["budgets"] = on_budgets(truth, batches, config, arguments.budgets, arguments.every)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot:
        plot(arguments.plot, results)


def options_given(arguments: argparse.Namespace) -> list[str]:
    """The options that decide the figures, as they were given."""
    words = ["--epochs", arguments.epochs]
    if arguments.batch_size:
        words += ["--batch-size", arguments.batch_size]
    if arguments.budgets:
        words += ["--budgets", *arguments.budgets, "--every", *arguments.every]
    return [f"{word:g}" if isinstance(word, float) else str(word) for word in words]


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
