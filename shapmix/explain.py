"""`python -m shapmix.explain RUN`: which body parts a trained network looks at, clip by clip and class by class.

Writes pictures, the exact games (`explanation.npz`) and one self-contained page (`index.html`) into RUN/explanation.
"""

from __future__ import annotations

import base64
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jinja2
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from shapmix import plots
from shapmix.checkpoint import CheckpointError
from shapmix.command import check_output_folder, ended
from shapmix.config import ConfigError
from shapmix.data.clips import DataError
from shapmix.explanation import Explanation, explain
from shapmix.files import write_whole
from shapmix.game import Output, PartGame
from shapmix.kernels import BackendError
from shapmix.layout import LayoutError
from shapmix.run import RunError
from shapmix.trained import open_with_data

log = logging.getLogger("shapmix")


@dataclass(frozen=True)
class ExplainConfig:
    """Explain a trained network by the exact Shapley values of body parts."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory of `python -m shapmix.train`."""
    clips: tuple[str, ...] = ()
    """Names of clips to explain; none takes the first --per-class clips of every class of the split."""
    per_class: int = 8
    """Clips of a class; with five parts a clip costs 31 forwards."""
    split: Literal["test", "val", "train"] = "test"
    checkpoint: Literal["best", "last"] = "best"
    output: Output = "probability"
    """What a coalition is worth: the probability of the clip's own class, its logit or its log-probability."""
    out: Path | None = None
    """Where to write; default RUN/explanation."""
    max_rows: int = 64
    """Clips forwarded at once."""
    threads: int | None = None


class ExplainError(RunError):
    """A request that cannot be met; the message names what and the remedy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = tyro.cli(ExplainConfig, args=argv, prog="python -m shapmix.explain", console_outputs=True)

    def work() -> int:
        print(f"explanation: {run(config)}")
        return 0

    return ended(work, (BackendError, CheckpointError, ConfigError, DataError, LayoutError, RunError))


def run(config: ExplainConfig) -> Path:
    """Forwards the coalitions, draws, and writes the page; returns its path.

    Raises:
        OSError: the page cannot be written where it should; nothing was forwarded.
        ExplainError: a clip or split that is not there.
        ConfigError, CheckpointError, DataError: a run that cannot be read.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    out = config.out or config.run / "explanation"
    check_output_folder(out)
    _, splits, network, sampler, mixer = open_with_data(config.run, config.checkpoint)
    store = splits.store
    chosen = choose_clips(
        config, {"test": splits.test, "val": splits.val, "train": splits.train}[config.split], store.labels, store.names
    )
    labels, names = store.labels[chosen], [store.names[clip] for clip in chosen.tolist()]
    game = PartGame(
        network, store.layout, mixer.mean_motion, config.output, max_rows=config.max_rows, restored_frames=mixer.restored_frames
    )
    with tqdm(desc="coalitions", unit="clip", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        explanation = explain(game, sampler.evaluation(chosen), labels, names, progress=progress)

    out.mkdir(parents=True, exist_ok=True)
    explanation.save(out / "explanation.npz")
    pose = store.clip(int(chosen[0]))
    return write_page(
        out,
        explanation,
        store.class_names,
        pose[len(pose) // 2, 0],
        f"{config.run.name}, {config.checkpoint} checkpoint",
        y_down=store.y_down,
    )


def choose_clips(config: ExplainConfig, split: Tensor, labels: Tensor, names: list[str]) -> Tensor:
    """Indices of the clips that are asked for by name, or of the first few of each class of the split.

    Raises:
        ExplainError: a name that no clip has, or nothing to explain.
    """
    if config.clips:
        index = {name: clip for clip, name in enumerate(names)}
        for name in config.clips:
            if name not in index:
                raise ExplainError(f"--clips: no clip is named '{name}'; the first of the data set is '{names[0]}'")
        return torch.tensor([index[name] for name in config.clips])
    if config.per_class < 1:
        raise ExplainError(f"--per-class: at least 1, not {config.per_class}")
    first = [split[labels[split] == label][: config.per_class] for label in labels[split].unique()]
    if not first:
        raise ExplainError(f"--split {config.split}: it holds no clip")
    return torch.cat(first)


def write_page(
    out: Path, explanation: Explanation, class_names: list[str], pose: Tensor, title: str, *, y_down: bool = False
) -> Path:
    """Draws every picture into `out` and the page that holds them all; `pose` [V, C] is the skeleton that is coloured."""
    layout = explanation.layout
    parts = list(layout.parts)
    by_class, combinations = explanation.by_label(explanation.parts), explanation.by_label(explanation.rectified)
    shown = [class_names[label] for label in by_class.labels.tolist()]
    strongest = int((explanation.full_values - explanation.base_values).argmax())

    plots.plot_saliency(out / "combinations.png", combinations.mean, layout, shown)
    plots.plot_parts(out / "parts.png", by_class.mean, by_class.standard_error, pose, layout, shown, y_down=y_down)
    plots.plot_waterfall(
        out / "waterfall.png", explanation.parts[strongest], float(explanation.base_values[strongest]), parts, explanation.output
    )
    pairs = explanation.interactions("k_sii", 2).mean(0)
    plots.plot_interactions(out / "interactions.png", pairs, layout)
    faithfulness = explanation.faithfulness()
    plots.plot_curves(out / "curves.png", faithfulness, explanation.output)
    example = f"'{explanation.names[strongest]}' of class '{class_names[int(explanation.labels[strongest])]}'"
    pictures = [
        (
            "Body parts",
            "parts.png",
            "Mean Shapley value of each part over a class's clips, on the skeleton; the whisker is the standard error of the mean.",
        ),
        (
            "Combinations",
            "combinations.png",
            "What a combination of parts adds to the other parts on average, never below zero: what training mixes by.",
        ),
        ("One clip", "waterfall.png", f"From the mean motion to the whole clip {example}, part by part."),
        (
            "Interactions",
            "interactions.png",
            "Pairs of parts that are worth more together (blue) or less (orange) than apart, by the k-Shapley interaction index.",
        ),
        ("Is it faithful?", "curves.png", faithfulness.verdict(explanation.output.replace("_", "-"))),
    ]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("shapmix"), autoescape=True, undefined=jinja2.StrictUndefined)
    table = [
        (name, int(count), [f"{value:+.3f}" for value in row])
        for name, count, row in zip(shown, by_class.clips.tolist(), by_class.mean.tolist(), strict=True)
    ]
    page = environment.get_template("explain.html").render(
        title=title,
        clips=len(explanation),
        rows=explanation.rows_forwarded,
        output=explanation.output.replace("_", "-"),
        parts=[part.replace("_", " ") for part in parts],
        table=table,
        pictures=[(heading, base64.b64encode((out / file).read_bytes()).decode(), caption) for heading, file, caption in pictures],
    )
    path = out / "index.html"
    write_whole(path, page)
    return path


if __name__ == "__main__":
    sys.exit(main())
