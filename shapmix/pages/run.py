"""HTML page of `python -m shapmix.report`."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from shapmix.data.clips import ClipStore, Splits
from shapmix.data.sampling import ClipSampler
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MIXERS
from shapmix.pages.rendering import render
from shapmix.pictures import plots
from shapmix.process.files import check_output_file, write_whole
from shapmix.shapley.explanation import explain
from shapmix.shapley.game import PartGame
from shapmix.training import metrics
from shapmix.training.adjustment import adjusted, find_tau
from shapmix.training.example_mix import MixExample, example_mix
from shapmix.training.run_folder import read_metrics
from shapmix.training.schedule import describe_schedule, steps_of_an_epoch
from shapmix.training.scores import as_trained
from shapmix.training.trained import CPU, Checkpoint, open_with_data
from shapmix.training.views import Views, predict_views

WORST = 3  # number of confusions shown

EXPLAINED = 4  # test clips per class for the part values


def write_report(
    run: Path, checkpoint: Checkpoint, out: Path | None = None, device: torch.device = CPU, *, data_root: Path | None = None
) -> Path:
    """Evaluates a run's checkpoint on the test split and writes the page atomically; by default to `run`/report.html.

    Raises:
        OSError: the page cannot be written; checked before the evaluation.
        ConfigError, CheckpointError, DataError: invalid run or data.
    """
    path = out or run / "report.html"
    check_output_file(path)
    trained, splits, network, sampler, mixer = open_with_data(run, checkpoint, device, data_root=data_root)
    store, counts = splits.store, splits.class_counts()
    views = Views.of_run(trained)

    forward = as_trained(network, trained, device, run)

    def score(clips: Tensor) -> Tensor:
        return predict_views(forward, sampler, clips, trained.batch_size, device, views)

    tau, labels = find_tau(trained.logit_adjustment, splits, score), store.labels[splits.test]
    probabilities = adjusted(score(splits.test), counts, tau)
    accuracy, confusion = metrics.accuracy(probabilities, labels, counts), metrics.confusion_matrix(probabilities, labels)
    rows = read_metrics(run / "metrics.jsonl")

    about = (
        f"{trained.dataset}, mix {trained.mix}, loss {trained.loss}, {len(splits.train)} training clips, {len(labels)} test "
        f"clips, {len(rows)} epochs, seed {trained.seed}; the {checkpoint} checkpoint, {views}; "
        f"{describe_schedule(trained, steps_of_an_epoch(trained, splits))}"
    )
    about += f"; logits adjusted with tau {tau:g}" if tau is not None else ""
    scenes = mixed_scene(example_mix(trained, splits, sampler, mixer), up=store.up)
    scenes += worst_confusions(splits, sampler, probabilities.argmax(1), labels, confusion)
    values = part_values(network, mixer, splits, sampler, device)
    saliency = mixer.saliency if MIXERS[trained.mix].guided else None
    page = render(
        "report.html",
        title=run.name,
        about=about,
        buckets=[(head, _percent(accuracy.as_dict()[name])) for name, head in metrics.HEADS.items()],
        classes=class_rows(store.class_names, counts, confusion),
        pictures=figures(store, rows, confusion, values, saliency),
        scenes=scenes,
        data={"edges": store.layout.edges, "scenes": [scene["views"] for scene in scenes]},
    )
    write_whole(path, page)
    return path


def figures(
    store: ClipStore, rows: Sequence[dict[str, Any]], confusion: Tensor, values: Tensor, saliency: Tensor | None
) -> list[tuple[str, str, str]]:
    """(heading, base64 PNG, caption) of every figure; the saliency table only if the run has one."""
    layout, names = store.layout, store.class_names
    # a file of weights that became a run has no epochs
    found = [("Curves", draw_curves(rows), "Training losses and accuracies by epoch.")] if rows else []
    found += [
        ("Confusion", drawn(lambda path: plots.plot_confusion(path, confusion, names)), "Fraction of the true class."),
        (
            "Parts",
            drawn(lambda path: plots.plot_part_values(path, values, layout, names)),
            f"Contribution of each part to the probability of its class: Shapley values, mean of {EXPLAINED} test clips per class.",
        ),
    ]
    if saliency is not None:
        caption = "Contribution of each combination of parts to a class's probability, as estimated in training."
        found.append(("Class saliency", drawn(lambda path: plots.plot_saliency(path, saliency, layout, names)), caption))
    return found


def class_rows(names: Sequence[str], counts: Tensor, confusion: Tensor) -> list[tuple[str, int, int, str, float]]:
    """(name, training clips, test clips, accuracy as text, width of its bar in percent) of every class."""
    columns = (counts.tolist(), confusion.sum(1).tolist(), metrics.class_accuracy(confusion).tolist())
    return [
        (name, int(count), int(tested), _percent(share), 0.0 if share != share else 100 * share)
        for name, count, tested, share in zip(names, *columns, strict=True)
    ]


def mixed_scene(mix: MixExample | None, *, up: tuple[int, int]) -> list[dict[str, Any]]:
    """The animation of a mixed clip beside its sources, if the run mixes clips."""
    if mix is None:
        return []
    last = list(mix.clips)[-1]
    views = [moving(title, clip, mix.changed if title == last else None, up=up) for title, clip in mix.clips.items()]
    return [{"heading": "A mixed clip", "caption": "Orange: pasted from the partner.", "views": views}]


def part_values(network: nn.Module, mixer: ShapMix, splits: Splits, sampler: ClipSampler, device: torch.device = CPU) -> Tensor:
    """[K, P]: exact Shapley values of the parts, averaged over the first test clips of each class; NaN without clips."""
    store, test = splits.store, splits.test
    labels = store.labels[test]
    chosen = torch.cat([test[labels == label][:EXPLAINED] for label in range(store.num_classes)])
    game = PartGame(network, store.layout, mixer.mean_motion.to(device), restored_frames=mixer.restored_frames)
    values = []
    for some in chosen.split(64):
        names = [store.names[clip] for clip in some.tolist()]
        values.append(explain(game, sampler.evaluation(some).to(device), store.labels[some].to(device), names).parts)
    every, owners = torch.cat(values), store.labels[chosen]
    return torch.stack([every[owners == label].mean(0) for label in range(store.num_classes)])


def moving(title: str, clip: Tensor, changed: Tensor | None = None, *, up: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """Front view [T, M V, 2] of a clip [C, T, V, M] in the unit square (y up), and the mask [T, V] of coloured joints."""
    points = plots.front(clip, 0, up=up).permute(1, 3, 2, 0)  # [T, M, V, 2]
    stands = points.abs().amax((0, 2, 3)) > 0
    points = points[:, stands] if stands.any() else points[:, :1]
    low, high = points.amin((0, 1, 2)), points.amax((0, 1, 2))
    unit = (points - (low + high) / 2) / (high - low).max().clamp(min=1e-6) + 0.5
    coloured = [] if changed is None else changed.int().tolist()
    frames = unit.flatten(1, 2).mul(1000).round().div(1000).tolist()  # [T, M V, 2]
    return {"title": title, "frames": frames, "people": unit.shape[1], "changed": coloured}


def worst_confusions(
    splits: Splits, sampler: ClipSampler, predicted: Tensor, labels: Tensor, confusion: Tensor
) -> list[dict[str, Any]]:
    """The most frequent confusions: a misclassified test clip beside a training clip of the predicted class."""
    wrong = confusion.clone()
    wrong.fill_diagonal_(0)
    store, scenes = splits.store, []
    for place in wrong.flatten().argsort(descending=True, stable=True)[:WORST].tolist():
        true, taken = divmod(place, len(wrong))
        count = int(wrong[true, taken])
        if count == 0:
            break
        mistaken = splits.test[torch.nonzero((labels == true) & (predicted == taken))[0]]
        typical = splits.train[torch.nonzero(store.labels[splits.train] == taken)[0]]
        shown = ClipSampler(store, sampler.pipeline, "joint", sampler.num_frames).evaluation(torch.cat([mistaken, typical]))
        names = store.class_names
        views = [
            moving(title, clip, up=store.up)
            for title, clip in zip((f"test clip: {names[true]}", f"training clip: {names[taken]}"), shown, strict=True)
        ]
        caption = f"{count} of {int(confusion[true].sum())} test clips of '{names[true]}' are classified as '{names[taken]}'."
        scenes.append({"heading": f"{names[true]} classified as {names[taken]}", "caption": caption, "views": views})
    return scenes


def draw_curves(rows: Sequence[dict[str, Any]]) -> str:
    """Losses, accuracies and learning rate by epoch, as base64 PNG."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = {
        "loss": ("loss_clean", "loss_mixed"),
        "accuracy": ("accuracy", "val_top1", "val_class_mean"),
        "learning rate": ("lr",),
    }
    for axis, (name, keys) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for key in keys:
            found = [(row["epoch"], row[key]) for row in rows if key in row]
            if found:
                axis.plot(*zip(*found, strict=True), label=key.replace("_", " "), marker="o" if len(found) < 20 else None)
        axis.set_xlabel("epoch")
        axis.set_title(name, fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return base64.b64encode(content.getvalue()).decode()


def drawn(draw: Callable[[Path], None]) -> str:
    """The file that `draw` writes, as base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return base64.b64encode(path.read_bytes()).decode()


def _percent(value: float | None) -> str:
    return "n/a" if value is None or value != value else f"{100 * value:.1f}%"
