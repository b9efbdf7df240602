"""What a network that never saw a mix says of mixed clips: parts pasted as they are, and aligned with the other body.

    python -m bench.mix_evidence RUN [RUN ...] --out FILE

Each RUN is a run directory without mixing (`--mix none` or `two_views`), with its store. The clips are those that the run leaves
out of its training pool: they neither train, validate nor test. Pairs of different classes are mixed by random combinations of
parts, with windows as in training. Reported for the clip (host) and the partner, as means over all pairs:

- host, partner, neither: probability of the two classes, and of all others;
- label: the partner's share of the label, by area;
- share: the partner's part of the probability of both classes, which the label stands for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from bench.machine import commit, machine
from shapmix.data.pools import find_pools
from shapmix.data.store import open_store
from shapmix.draws.plans import MixPlan
from shapmix.mixing.mixers import MIXERS
from shapmix.mixing.rule import Aligner
from shapmix.networks.modes import isolated_eval_mode
from shapmix.reference import mix_clips
from shapmix.reference.plan import draw_window, mix_plan
from shapmix.skeleton.layout import Layout
from shapmix.training.trained import open_with_data

BATCH, BATCHES = 64, 20

Mix = Callable[[Tensor, MixPlan, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if len({run.name for run in arguments.runs}) < len(arguments.runs):
        parser.error("two runs have the same name; give them apart")
    found = {run.name: of_run(run) for run in arguments.runs}
    layouts = sorted({each["layout"] for each in found.values()})
    content = {
        "command": "python -m bench.mix_evidence RUN [RUN ...] --out FILE",
        "commit": commit(),
        "machine": machine(),
        "mean": {layout: averaged([each for each in found.values() if each["layout"] == layout]) for layout in layouts},
        "runs": found,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["mean"], indent=1))


def averaged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of several runs."""
    kinds = {kind: {name: mean(run[kind][name] for run in runs) for name in runs[0][kind]} for kind in ("pasted", "aligned")}
    return {"runs": len(runs), "accuracy": mean(run["accuracy"] for run in runs), **kinds}


def of_run(run: Path) -> dict[str, Any]:
    """Measures of one run."""
    config, splits, network, sampler, _ = open_with_data(run, "last")
    store = splits.store
    if MIXERS[config.mix].mixes:
        raise SystemExit(f"{run}: trained with --mix {config.mix}; give a run that saw no mixed clip")
    assert config.data_root is not None
    pool = find_pools(open_store(config.data_root), config).train
    left = pool[~torch.isin(pool, torch.cat([splits.train, splits.val]))]
    clips, labels = sampler.evaluation(left), store.labels[left]
    aligner = Aligner(store.layout, store.num_coordinates, store.scores)
    with torch.no_grad(), isolated_eval_mode(network):
        accuracy = float((network(clips).argmax(1) == labels).float().mean())
    return {
        "layout": store.layout.name,
        "clips": len(left),
        "accuracy": accuracy,
        "pasted": evidence(network, clips, labels, store.layout, mix_clips),
        "aligned": evidence(network, clips, labels, store.layout, aligner),
    }


@torch.no_grad()
def evidence(network: nn.Module, clips: Tensor, labels: Tensor, layout: Layout, mix: Mix) -> dict[str, float]:
    """Means over the mixed pairs of different classes among clips [n, C, T, V, M]; the pairs and plans do not depend on `mix`."""
    rows = []
    with isolated_eval_mode(network):
        for step in range(BATCHES):
            generator = torch.Generator().manual_seed(step)
            chosen = torch.randperm(len(clips), generator=generator)[:BATCH]
            parts = layout.combinations[torch.randint(len(layout.combinations), (len(chosen),), generator=generator)]
            window = draw_window(len(chosen), clips.shape[2], seed=0, step=step, blend_probability=0.0)
            plan = mix_plan(window, parts, layout.part_of_joint, clips.shape[2])
            own, other = labels[chosen], labels[chosen][plan.partner]
            probability = network(mix(clips[chosen], plan, layout.part_of_joint)[len(chosen) :]).double().softmax(1)
            host, partner = (probability.gather(1, of[:, None])[:, 0] for of in (own, other))
            each = torch.stack([host, partner, 1 - host - partner, plan.lam, partner / (host + partner)], 1)
            rows.append(each[own != other])
    means = torch.cat(rows).mean(0).tolist()
    return dict(zip(("host", "partner", "neither", "label", "share"), means, strict=True))


if __name__ == "__main__":
    main()
