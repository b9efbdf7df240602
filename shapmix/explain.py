"""`python -m shapmix.explain RUN`: which body parts a trained network looks at, clip by clip and class by class.

Writes pictures, the exact games (`explanation.npz`) and one self-contained page (`index.html`) into RUN/explanation.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from shapmix.kernels import BackendError
from shapmix.pages.explanation import choose_clips, write_page
from shapmix.process.ending import check_output_folder, ended
from shapmix.process.errors import DataError, RunError
from shapmix.shapley.explanation import explain
from shapmix.shapley.game import Output, PartGame
from shapmix.skeleton.layout import LayoutError
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import ConfigError
from shapmix.training.trained import open_with_data


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
    split = {"test": splits.test, "val": splits.val, "train": splits.train}[config.split]
    chosen = choose_clips(store, split, config.clips, config.per_class)
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


if __name__ == "__main__":
    sys.exit(main())
