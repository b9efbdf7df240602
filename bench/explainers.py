"""Shapley values of body parts compared with captum, shap and shapiq: `python -m bench.explainers RUN --out FILE`.

All libraries explain the same clips of a trained run through their usual interface: captum with a feature mask, shap and shapiq
with a function of the visible parts, one clip at a time. Each runs with the eager network and with ours, to separate the speed-up
of the network from that of the engine. Exact methods come first, then sampling methods with the library's default budget or half
of the coalitions; errors are relative to the exact values. Times are interleaved; peak memory is measured in separate processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import shap
import shapiq
import torch
from torch import Tensor, nn

from bench.machine import commit, machine, peak_bytes
from bench.timing import interleaved, quantiles
from shapmix.networks import ctrgcn_reference
from shapmix.networks.skeleton_graph import WIDTHS
from shapmix.reference.coalition import coalition_inputs
from shapmix.shapley.game import PartGame
from shapmix.shapley.values import shapley_values
from shapmix.skeleton.layout import Layout
from shapmix.training.build import backbone_options
from shapmix.training.trained import open_with_data

CLIPS = 32
SECONDS = 60.0
SAMPLED_FORWARDS = 16  # half of the coalitions of five parts
CPU = torch.device("cpu")


class Counted(nn.Module):
    """Counts the clips that a network forwards."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, 0

    def forward(self, clips: Tensor) -> Tensor:
        self.rows += len(clips)
        logits: Tensor = self.network(clips)
        return logits


class Task:
    """The clips [N, C, T, V, M], their labels, the baseline of hidden joints, and both networks."""

    def __init__(self, run: Path, clips: int) -> None:
        config, splits, ours, sampler, mixer = open_with_data(run, "last")
        store = splits.store
        eager = ctrgcn_reference.CTRGCN(
            store.layout,
            store.num_classes,
            num_people=store.num_people,
            in_channels=store.num_coordinates,
            **backbone_options(config),
        )
        eager.load_state_dict(ours.state_dict())
        chosen = splits.test[torch.linspace(0, len(splits.test) - 1, clips).long()]
        self.clips, self.labels = sampler.evaluation(chosen), store.labels[chosen]
        self.layout: Layout = store.layout
        self.mean_motion: Tensor = mixer.mean_motion
        self.networks = {"ours": Counted(ours.eval()), "eager": Counted(eager.eval())}
        self.about = {"dataset": config.dataset, "clip": list(self.clips.shape), "widths": list(config.network.widths or WIDTHS)}

    def shapmix(self, network: Counted) -> Tensor:
        game = PartGame(network, self.layout, self.mean_motion)
        return shapley_values(game.table(self.clips, self.labels).double(), self.layout.num_parts)

    def shapmix_bfloat16(self, network: Counted) -> Tensor:
        game = PartGame(network, self.layout, self.mean_motion, autocast=torch.bfloat16)
        return shapley_values(game.table(self.clips, self.labels).double(), self.layout.num_parts)

    def captum(self, network: Counted, **sampling: Any) -> Tensor:
        """[N, P]; captum assigns the value of a part to each of its elements."""
        method = captum.attr.ShapleyValueSampling if sampling else captum.attr.ShapleyValues
        mask = self.layout.part_of_joint.view(1, 1, 1, -1, 1).expand(1, *self.mean_motion.shape).contiguous()
        with torch.no_grad():
            found = method(lambda clips: network(clips).softmax(1)).attribute(
                self.clips, baselines=self.mean_motion[None], target=self.labels, feature_mask=mask, **sampling
            )
        first = torch.stack([torch.nonzero(self.layout.part_of_joint == part)[0, 0] for part in range(self.layout.num_parts)])
        return found[:, 0, 0, first, 0].double()

    def value_of(self, network: Counted, clip: int) -> Callable[[np.ndarray], np.ndarray]:
        """Maps visible parts [R, P] to the probability of the clip's label [R], as a user of shap or shapiq would."""
        bits = 1 << torch.arange(self.layout.num_parts)

        def value(shown: np.ndarray) -> np.ndarray:
            sets = (torch.from_numpy(np.asarray(shown)).long() * bits).sum(1)
            clips = coalition_inputs(self.clips[clip : clip + 1], self.mean_motion, sets, self.layout.part_of_joint)
            with torch.no_grad():
                return network(clips).softmax(1)[:, self.labels[clip]].double().numpy()

        return value

    def each_clip(self, explain: Callable[[Callable[[np.ndarray], np.ndarray]], Any], network: Counted) -> Tensor:
        return torch.stack([torch.as_tensor(explain(self.value_of(network, clip))) for clip in range(len(self.clips))])

    def shap(self, network: Counted, **sampling: Any) -> Tensor:
        parts = self.layout.num_parts
        method = shap.explainers.Permutation if sampling else shap.explainers.Exact
        masker = shap.maskers.Independent(np.zeros((1, parts)))
        return self.each_clip(lambda value: method(value, masker)(np.ones((1, parts)), silent=True, **sampling).values[0], network)

    def shapiq(self, network: Counted, budget: int | None = None) -> Tensor:
        parts = self.layout.num_parts

        def explain(value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            if budget is None:
                found = shapiq.ExactComputer(value, n_players=parts)("SV")
            else:
                found = shapiq.KernelSHAP(parts, random_state=0).approximate(budget, value)
            return np.array([found[(part,)] for part in range(parts)])

        return self.each_clip(explain, network)

    def methods(self) -> dict[str, Callable[[], Tensor]]:
        """Methods by name, each with one of the networks; "shapmix" is the first."""
        ours, eager = self.networks["ours"], self.networks["eager"]
        found: dict[str, Callable[[], Tensor]] = {
            "shapmix": partial(self.shapmix, ours),
            "shapmix, bfloat16": partial(self.shapmix_bfloat16, ours),
        }
        for name, network in (("eager network", eager), ("our network", ours)):
            found |= {
                f"captum exact, {name}": partial(self.captum, network),
                f"shap exact, {name}": partial(self.shap, network),
                f"shapiq exact, {name}": partial(self.shapiq, network),
            }
        budget = SAMPLED_FORWARDS
        return found | {
            "captum sampling (25 orders), eager network": partial(self.captum, eager, n_samples=25),
            "shap permutation, eager network": partial(self.shap, eager, max_evals=2 * self.layout.num_parts + 1),
            f"shapiq KernelSHAP ({budget} coalitions), eager network": partial(self.shapiq, eager, budget),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the process that measures one method
    arguments = parser.parse_args()
    task = Task(arguments.run, arguments.clips)
    methods = task.methods()
    if arguments.memory_of is not None:
        print(peak_bytes(methods[arguments.memory_of]))
        return
    if arguments.out is None:
        parser.error("--out is required")

    exact = methods["shapmix"]()
    rows: dict[str, dict[str, Any]] = {}
    for name, method in methods.items():
        for network in task.networks.values():
            network.rows = 0
        values = method()
        rows[name] = {
            "rows a clip": sum(network.rows for network in task.networks.values()) / arguments.clips,
            "error": float((values - exact).norm() / exact.norm()),
        }
    for name, times in interleaved(methods, CPU, budget=arguments.seconds, least=3).items():
        rows[name]["times"] = times
    for name, row in rows.items():
        ratios = [theirs / ours for theirs, ours in zip(row["times"], rows["shapmix"]["times"], strict=True)]
        row |= {"seconds": quantiles(row["times"]), "times shapmix": quantiles(ratios)}
        child = [sys.executable, "-m", "bench.explainers", str(arguments.run), "--clips", str(arguments.clips), "--memory-of", name]
        row["peak bytes"] = int(subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()[-1])
    for name, row in rows.items():
        del row["times"]
        print(
            f"{name:<56} {row['rows a clip']:>6.1f} rows  {row['seconds']['p50']:>8.3f} s  {row['times shapmix']['p50']:>6.2f}x  "
            f"error {row['error']:.1e}  {row['peak bytes'] / 1e6:>6.0f} MB"
        )
    content = {
        "command": f"python -m bench.explainers RUN --clips {arguments.clips}",
        "commit": commit(),
        "machine": machine(),
        "task": task.about | {"parts": task.layout.num_parts, "threads": torch.get_num_threads()},
        "methods": rows,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
