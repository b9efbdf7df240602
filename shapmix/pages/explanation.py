"""HTML page of `python -m shapmix.explain`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from shapmix.data.clips import ClipStore
from shapmix.pages.rendering import render
from shapmix.pictures import plots
from shapmix.process.errors import RunError
from shapmix.process.files import check_output_folder, write_whole
from shapmix.shapley.explanation import Explanation, explain
from shapmix.shapley.game import Output, PartGame
from shapmix.training.trained import Checkpoint, open_with_data


class ExplainError(RunError):
    """An invalid request; the message names the option and the remedy."""


def explain_run(
    run: Path,
    checkpoint: Checkpoint,
    out: Path,
    device: torch.device,
    *,
    clips: Sequence[str] = (),
    per_class: int = 8,
    split: Literal["test", "val", "train"] = "test",
    output: Output = "probability",
    max_rows: int | None = None,
    data_root: Path | None = None,
) -> Path:
    """Forwards every coalition of a run's clips, and writes `explanation.npz`, the pictures and the page; returns the page's path.

    Raises:
        OSError: the page cannot be written where it should; nothing was forwarded.
        ExplainError: a clip or split that is not there, or `max_rows` that is not positive.
        ConfigError, CheckpointError, DataError: a run that cannot be read.
    """
    check_output_folder(out)
    if max_rows is not None and max_rows < 1:
        raise ExplainError(f"max_rows is {max_rows}; give a positive number")
    _, splits, network, sampler, mixer = open_with_data(run, checkpoint, device, data_root=data_root)
    store = splits.store
    chosen = choose_clips(store, {"test": splits.test, "val": splits.val, "train": splits.train}[split], clips, per_class)
    labels, names = store.labels[chosen].to(device), [store.names[clip] for clip in chosen.tolist()]
    mean_motion = mixer.mean_motion.to(device)
    game = PartGame(network, store.layout, mean_motion, output, max_rows=max_rows, restored_frames=mixer.restored_frames)
    with tqdm(desc="coalitions", unit="clip", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        explanation = explain(game, sampler.evaluation(chosen).to(device), labels, names, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    explanation.save(out / "explanation.npz")
    pose = store.clip(int(chosen[0]))
    title = f"{run.name}, {checkpoint} checkpoint"
    return write_page(out, explanation, store.class_names, pose[len(pose) // 2, 0], title, up=store.up)


def choose_clips(store: ClipStore, split: Tensor, wanted: Sequence[str], per_class: int) -> Tensor:
    """Indices of the clips named in `wanted`, or of the first `per_class` clips of each class of the split.

    Raises:
        ExplainError: an unknown clip name, or no clips to explain.
    """
    if wanted:
        index = {name: clip for clip, name in enumerate(store.names)}
        for name in wanted:
            if name not in index:
                raise ExplainError(f"--clips: unknown clip '{name}'; the first clip of the data set is '{store.names[0]}'")
        return torch.tensor([index[name] for name in wanted])
    if per_class < 1:
        raise ExplainError(f"--per-class: must be at least 1, not {per_class}")
    labels = store.labels[split]
    first = [split[labels == label][:per_class] for label in labels.unique()]
    if not first:
        raise ExplainError("--split: the split is empty")
    return torch.cat(first)


def write_page(
    out: Path, explanation: Explanation, class_names: list[str], pose: Tensor, title: str, *, up: tuple[int, int] = (1, 1)
) -> Path:
    """Draws all figures and the HTML page into `out`; `pose` [V, C] is the skeleton to colour."""
    by_class = explanation.by_label(explanation.parts)
    shown = [class_names[label] for label in by_class.labels.tolist()]
    pictures = draw_figures(out, explanation, class_names, pose, up=up)
    table = [
        (name, int(count), [f"{value:+.3f}" for value in row])
        for name, count, row in zip(shown, by_class.clips.tolist(), by_class.mean.tolist(), strict=True)
    ]
    page = render(
        "explain.html",
        title=title,
        clips=len(explanation),
        rows=explanation.rows_forwarded,
        output=explanation.output.replace("_", "-"),
        parts=[part.replace("_", " ") for part in explanation.layout.parts],
        table=table,
        pictures=[(heading, base64.b64encode((out / file).read_bytes()).decode(), caption) for heading, file, caption in pictures],
    )
    path = out / "index.html"
    write_whole(path, page)
    return path


def draw_figures(
    out: Path, explanation: Explanation, class_names: list[str], pose: Tensor, *, up: tuple[int, int]
) -> list[tuple[str, str, str]]:
    """Draws all figures into `out`; returns (heading, file name, caption) of each."""
    layout = explanation.layout
    parts = list(layout.parts)
    by_class, combinations = explanation.by_label(explanation.parts), explanation.by_label(explanation.rectified)
    shown = [class_names[label] for label in by_class.labels.tolist()]
    strongest = int((explanation.full_values - explanation.base_values).argmax())

    plots.plot_saliency(out / "combinations.png", combinations.mean, layout, shown)
    plots.plot_parts(out / "parts.png", by_class.mean, by_class.standard_error, pose, layout, shown, up=up)
    plots.plot_waterfall(
        out / "waterfall.png", explanation.parts[strongest], float(explanation.base_values[strongest]), parts, explanation.output
    )
    pairs = explanation.interactions("k_sii", 2).mean(0)
    plots.plot_interactions(out / "interactions.png", pairs, layout)
    faithfulness = explanation.faithfulness()
    plots.plot_curves(out / "curves.png", faithfulness, explanation.output)
    example = f"'{explanation.names[strongest]}' of class '{class_names[int(explanation.labels[strongest])]}'"
    return [
        (
            "Body parts",
            "parts.png",
            "Mean Shapley value of each part over the clips of a class, on the skeleton; error bars are standard errors.",
        ),
        (
            "Combinations",
            "combinations.png",
            "Mean rectified contribution of a combination of parts to the other parts: the saliency that guides the mixing.",
        ),
        ("One clip", "waterfall.png", f"From the mean motion to the complete clip {example}, part by part."),
        (
            "Interactions",
            "interactions.png",
            "Pairs of parts that contribute more (blue) or less (orange) together than apart, by the k-Shapley interaction index.",
        ),
        ("Is it faithful?", "curves.png", faithfulness.verdict(explanation.output.replace("_", "-"))),
    ]
