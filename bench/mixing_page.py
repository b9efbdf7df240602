"""Pictures of docs/mixing.md and the figures beside them, from the embedded data.

    python -m bench.mixing_page [--runs FOLDER] [--out FOLDER] [--results FILE] [--set NAME] [options of the trainer]

Trains two small networks without mixing, one on joints and one on bones, into FOLDER, or reads them if they are there. Then it
draws the pictures and measures what these networks see in mixed clips. With `--set NAME` it only measures, on the data set that the
options of the trainer name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bench import ROOT
from bench.machine import commit, machine
from shapmix import ShapMix, train
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.mixing.mixers import MixedBatch
from shapmix.pictures.plots import front, plot_mixed_clip, save_figure
from shapmix.training.build import make_mixer
from shapmix.training.trained import WithData, open_with_data

EMBEDDED = "embedded data"
RECORDED = ("dataset", "split", "test_values", "imbalance", "n_max", "num_frames", "batch_size", "epochs")  # of the options
STREAMS = ("joint", "bone")
MIXERS = {"mixup": "Mixup", "stmix": "ST-Mix", "shapmix": "Shap-Mix"}
EPOCHS = 2  # over which saliency is measured, and mixes are drawn
HOST, PARTNER, NEITHER, MIX = "#3b4a5a", "#1f78b4", "#c9ced4", "#d95f02"


class Example(NamedTuple):
    """A pair of clips: rows of the batch, and the batch as each mixer mixes it in the same step."""

    host: int
    partner: int
    labels: Tensor
    batches: dict[str, MixedBatch]

    def clip(self, mix: str | None = None, row: int | None = None) -> Tensor:
        """[C, T, V, M]: the host (or another row), or the mix of a mixer."""
        clean, mixed = next(iter(self.batches.values())).clips.chunk(2) if mix is None else self.batches[mix].clips.chunk(2)
        return clean[self.host if row is None else row] if mix is None else mixed[self.host]

    def pasted(self, mix: str) -> Tensor:
        """[T, V] bool: the joints that the mixer took from the partner."""
        return (self.clip(mix) != self.clip()).any(0).any(-1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing, draws, measures, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "mixing_page", help="folder of the two runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results" / "mixing_page.json")
    parser.add_argument("--set", help="name of another data set, on which no picture is drawn")
    options, of_trainer = parser.parse_known_args(arguments)
    runs = {stream: trained(options.runs / stream, stream, of_trainer) for stream in STREAMS}
    mixers = {stream: measured_mixer(run) for stream, run in runs.items()}
    seen = {stream: what_is_seen(runs[stream], mixers[stream]) for stream in STREAMS}
    if options.set is None:
        example = find_example(runs["joint"], mixers["joint"])
        draw_strip(options.out / "mixing_clips.png", runs["joint"], example)
        draw_window(options.out / "mixing_window.png", runs["joint"], example)
        draw_saliency(options.out / "mixing_saliency.png", runs["joint"], mixers["joint"], example)
        draw_seen(options.out / "mixing_seen.png", seen)
    sets = json.loads(options.results.read_text()) if options.results.exists() else {}
    command = "python -m bench.mixing_page" + ("" if options.set is None else " --set NAME OPTIONS")
    recipe = {key: getattr(runs["joint"].config, key) for key in RECORDED}
    found = {"command": command, "commit": commit(), "machine": machine(), "options": recipe, "seen": seen}
    options.results.write_text(json.dumps({**sets, options.set or EMBEDDED: found}, indent=1) + "\n")
    print(seen_table(seen))


def trained(run: Path, stream: str, options: Sequence[str]) -> WithData:
    """The run without mixing, which is trained if it is not there."""
    if not (run / "result.json").exists():
        begun = ["--resume", str(run)] if (run / "config.yaml").exists() else ["--run-dir", str(run)]
        if train.main(["--mix", "none", "--stream", stream, *begun, *options]):
            raise SystemExit(f"bench.mixing_page: the run {run} failed")
    return open_with_data(run)


def measured_mixer(run: WithData) -> ShapMix:
    """A Shap-Mix mixer that never blends whole clips, with the saliency of the run's network."""
    config = replace(run.config, mix="shapmix", blend_probability=0.0, saliency=replace(run.config.saliency, warmup_epochs=0))
    mixer = make_mixer(config, run.splits, run.sampler, 1)
    for step, chosen in enumerate(batches(run)):
        mixer.observe(run.network, run.sampler.training(chosen, step), run.splits.store.labels[chosen], step)
    return mixer


def batches(run: WithData) -> Iterator[Tensor]:
    """The training clips of each step of some epochs."""
    for epoch in range(EPOCHS):
        yield from epoch_batches(epoch_order(run.splits.train, run.config.seed, epoch), run.config.batch_size)


def mixes(mixer: ShapMix) -> dict[str, ShapMix]:
    """The mixer under each name; in a step all of them draw the same partners and windows."""
    found = {}
    for name in MIXERS:
        found[name] = deepcopy(mixer)
        found[name].mix_name = name
    return found


def find_example(run: WithData, mixer: ShapMix) -> Example:
    """The first pair whose partner is of the rarer class and brings an arm among the parts that its saliency ranks first.

    If there is none, the first pair of two classes in which Shap-Mix pastes a part of the body.
    """
    store, other = run.splits.store, None
    favourite = store.layout.combinations[mixer.saliency.argmax(1)]
    arm = 1 << list(store.layout.parts).index("right_arm")
    for step, chosen in enumerate(batches(run)):
        labels = store.labels[chosen]
        clips = run.sampler.evaluation(chosen)
        mixed = {name: each.mix(clips, labels, step) for name, each in mixes(mixer).items()}
        for host, partner in enumerate(mixed["shapmix"].partner.tolist()):
            example = Example(host, partner, labels, mixed)
            joints = example.pasted("shapmix").any(0)
            bits = sum(1 << part for part in store.layout.part_of_joint[joints].unique().tolist())
            if labels[host] == labels[partner] or not bits or bits == store.layout.all_parts:
                continue
            other = other or example
            rarer = mixer.class_counts[labels[partner]] < mixer.class_counts[labels[host]]
            if rarer and bits == favourite[labels[partner]] and bits & arm and example.pasted("stmix").any():
                return example
    if other is None:
        raise SystemExit("bench.mixing_page: no pair of two classes was drawn; train with more clips")
    return other


def draw_strip(path: Path, run: WithData, example: Example) -> None:
    """Frames of host and partner, and of the mix of each mixer."""
    store, labels = run.splits.store, example.labels
    names = [store.class_names[int(labels[row])] for row in (example.host, example.partner)]
    clips = {f"host: {names[0]}": example.clip(), f"partner: {names[1]}": example.clip(row=example.partner)}
    changed = {}
    for mix, shown in MIXERS.items():
        share = float(example.batches[mix].share[example.host])
        title = f"{shown}: {1 - share:.2f} of the host's label, {share:.2f} of the partner's"
        clips[title] = example.clip(mix)
        if mix != "mixup":
            changed[title] = example.pasted(mix)
    plot_mixed_clip(path, clips, changed, store.layout, up=store.up)


def draw_window(path: Path, run: WithData, example: Example) -> None:
    """Over time, the height of a pasted joint, and the length of a bone that joins the pasted parts to the host."""
    layout, pasted = run.splits.store.layout, example.pasted("shapmix")
    taken = pasted.any(0).tolist()
    moved = [joint for joint in range(layout.num_joints) if taken[joint]]
    shown = next((joint for joint in moved if layout.joints[joint].endswith("wrist")), moved[-1])
    seam, inner = next((edge for edge in layout.edges if taken[edge[0]] != taken[edge[1]]), layout.edges[0])
    inside = torch.nonzero(pasted[:, shown]).flatten()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    place, length = figure.subplots(1, 2)
    clips = {"host": (example.clip(), HOST), "partner": (example.clip(row=example.partner), PARTNER)}
    clips["Shap-Mix"] = (example.clip("shapmix"), MIX)
    for name, (clip, colour) in clips.items():
        place.plot(front(clip, 0, up=run.splits.store.up)[1, :, shown, 0], color=colour, label=name)
        length.plot((clip[:, :, seam, 0] - clip[:, :, inner, 0]).norm(dim=0), color=colour)
    place.set_title(f"height of {layout.joints[shown]}", fontsize="medium")
    length.set_title(f"length of the bone from {layout.joints[inner]} to {layout.joints[seam]}", fontsize="medium")
    length.set_ylim(bottom=0)
    for axes in (place, length):
        axes.axvspan(float(inside[0]) - 0.5, float(inside[-1]) + 0.5, color=MIX, alpha=0.12, linewidth=0)
        axes.set_xlabel("frame")
        axes.spines[["top", "right"]].set_visible(False)
    place.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


def draw_saliency(path: Path, run: WithData, mixer: ShapMix, example: Example) -> None:
    """Saliency of each combination for the partner's class, and the probability that it is drawn; the drawn one in orange."""
    layout, label = run.splits.store.layout, int(example.labels[example.partner])
    values = mixer.saliency[label]
    probability = (values.double() / mixer.temperature).softmax(0)
    order = values.argsort(descending=True)
    bits = sum(1 << part for part in layout.part_of_joint[example.pasted("shapmix").any(0)].unique().tolist())
    names = [layout.part_names(int(layout.combinations[column])) for column in order]
    colours = [MIX if int(layout.combinations[column]) == bits else HOST for column in order]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    figure.suptitle(run.splits.store.class_names[label], fontsize="medium")
    for axes, heights, title in zip(
        figure.subplots(2, 1, sharex=True), (values[order], 100 * probability[order]), ("saliency", "drawn, %"), strict=True
    ):
        axes.bar(range(len(order)), heights.tolist(), color=colours)
        axes.set_ylabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[1].axhline(100 / len(order), color="#8a94a0", linestyle="--", linewidth=1)
    figure.axes[1].set_xticks(range(len(order)), names, rotation=60, ha="right", fontsize=7)
    save_figure(figure, path)


@torch.no_grad()
def what_is_seen(run: WithData, mixer: ShapMix) -> dict[str, dict[str, float]]:
    """What the network gives to the host's class, the partner's, the others, and the rarer of the two; the partner's label share.

    Means over mixes of training clips of two classes. `clean`: the clip by itself; `motion` and `place`: Shap-Mix with only how the
    pasted joints move, or only where they are (`apart`).
    """
    sums: dict[str, Tensor] = {}
    pairs, sizes = 0, run.splits.class_counts()
    for step, chosen in enumerate(batches(run)):
        labels, clips = run.splits.store.labels[chosen], run.sampler.evaluation(chosen)
        mixed = {name: each.mix(clips, labels, step) for name, each in mixes(mixer).items()}
        guided = mixed["shapmix"]
        kept = labels != labels[guided.partner]
        pairs += int(kept.sum())
        views = {name: (batch.clips.chunk(2)[1], batch.share) for name, batch in mixed.items()}
        for name, clip in zip(("motion", "place"), apart(clips, guided.clips.chunk(2)[1]), strict=True):
            views[name] = (clip, guided.share)
        views["clean"] = (clips, torch.zeros_like(guided.share))
        for name, (clip, share) in views.items():
            probability = run.network(clip).double().softmax(1)
            host, partner = (probability.gather(1, of[:, None])[:, 0] for of in (labels, labels[guided.partner]))
            rarer = torch.where(sizes[labels] > sizes[labels[guided.partner]], partner, host)
            columns = torch.stack([host, partner, 1 - host - partner, rarer, share.double()], 1)[kept]
            sums[name] = sums.get(name, torch.zeros(5, dtype=torch.float64)) + columns.sum(0)
    return {name: dict(zip(COLUMNS, (total / pairs).tolist(), strict=True)) for name, total in sums.items()}


def apart(clean: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Two halves of a paste [N, C, T, V, M]: how the pasted joints move, and where they are.

    Motion: the partner's movement about the host's mean position in the window. Place: the host's movement about the partner's.
    """
    pasted = (mixed != clean).any(1, keepdim=True).any(-1, keepdim=True)  # [N, 1, T, V, 1]
    count = pasted.sum(2, keepdim=True).clamp(min=1)
    here, there = ((clips * pasted).sum(2, keepdim=True) / count for clips in (clean, mixed))
    return torch.where(pasted, mixed - there + here, clean), torch.where(pasted, clean - here + there, clean)


COLUMNS = ("host", "partner", "neither", "rarer", "label")
ROWS = {
    "clean": "clean clip",
    "mixup": "Mixup",
    "stmix": "ST-Mix",
    "shapmix": "Shap-Mix",
    "motion": "Shap-Mix, only how parts move",
    "place": "Shap-Mix, only where parts are",
}


def draw_seen(path: Path, seen: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Stacked bars of each mixer and stream, with the partner's share of the label as a mark."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (stream, rows) in zip(figure.subplots(1, len(seen), sharey=True), seen.items(), strict=True):
        for place, name in enumerate(ROWS):
            left = 0.0
            for column, colour in (("host", HOST), ("partner", PARTNER), ("neither", NEITHER)):
                axes.barh(place, 100 * rows[name][column], left=left, color=colour, label=f"{column} class" if not place else None)
                left += 100 * rows[name][column]
            if name != "clean":
                axes.plot([100 * (1 - rows[name]["label"])] * 2, [place - 0.4, place + 0.4], color=MIX, linewidth=2)
        axes.set_yticks(range(len(ROWS)), list(ROWS.values()))
        axes.set_ylim(len(ROWS) - 0.5, -0.5)
        axes.set_xlabel("mean probability, %")
        axes.set_title(f"{stream} stream", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def seen_table(seen: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown rows per stream and mixer: the figures of `what_is_seen`."""
    lines = []
    for stream, rows in seen.items():
        for name, shown in ROWS.items():
            figures = [f"{100 * rows[name][column]:.0f}%" for column in COLUMNS]
            lines.append(f"| {stream} | {shown} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
