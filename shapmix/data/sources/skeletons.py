"""The skeleton of a data set whose format does not define one."""

from __future__ import annotations

import logging
from pathlib import Path

from shapmix.process.errors import DataError
from shapmix.skeleton.layout import BUILT_IN, Layout, load_layout

GUESSED = {(25, 3, False): "ntu25", (17, 3, True): "coco17"}  # joints, numbers per joint, whether the last is a score
_log = logging.getLogger("shapmix")


def choose_layout(
    layout: str | None, where: Path, joints: int, coordinates: int, *, scores: bool, takes_scores: bool = False
) -> str:
    """The layout that the user gave, or the only one that is ever guessed for such clips; a guess is logged.

    Two skeletons are guessed: 25 joints in 3D (`ntu25`), and 17 joints of x, y and a score (`coco17`). The number of joints alone
    does not identify a skeleton: BODY_25 and NTU have 25, COCO and Human3.6M have 17.

    Args:
        layout: the value of `--layout`, if given.
        where: begins messages.
        joints, coordinates: V and C of the clips, with the score.
        scores: whether the last coordinate is a score.
        takes_scores: whether the format takes `--scores`, which the message then proposes.

    Raises:
        DataError: no layout is given and none is guessed; the message lists the built-in layouts with so many joints.
    """
    if layout is not None:
        return layout
    numbers = f"{joints} joints of {coordinates} numbers" + (" (the last a score)" if scores else "")
    guess = GUESSED.get((joints, coordinates, scores))
    if guess is None:
        choices = fitting_layouts(joints, coordinates - int(scores))
        scored = (
            [] if scores or not takes_scores else [name for name in BUILT_IN if _fits(load_layout(name), joints, coordinates - 1)]
        )
        if scored:
            choices = f"one of {', '.join(scored)} with --scores if the last number is a score; otherwise {choices}"
        raise DataError(f"{where}: {numbers}, and the format does not name the skeleton; give --layout: {choices}")
    _log.info("%s: %s; assuming layout %s (give --layout if the skeleton is another)", where, numbers, guess)
    return guess


def fitting_layouts(joints: int, dimension: int) -> str:
    """The values of `--layout` for so many joints and coordinates (without a score), as the end of a message."""
    fitting = [name for name in BUILT_IN if _fits(load_layout(name), joints, dimension)]
    if not fitting:
        return "a .toml file that describes the skeleton (no built-in one fits)"
    return f"one of {', '.join(fitting)}, or a .toml file"


def _fits(layout: Layout, joints: int, dimension: int) -> bool:
    return layout.num_joints == joints and dimension in layout.dimensions
