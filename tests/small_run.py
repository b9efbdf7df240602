"""Training on data small enough for seconds, with pictures of four pixels; run as a script, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shapmix.data.clips import Splits
from shapmix.data.synthetic import make_synthetic

PICTURES = ("plot_confusion", "plot_saliency", "plot_mixed_clip")


def make_small() -> Splits:
    """Four classes of 24 to 8 clips."""
    return make_synthetic(num_classes=4, n_max=24, imbalance=3, val_per_class=2, test_per_class=3)


def make_small_runs(replace: Callable[[object, str, object], None], splits: Splits) -> None:
    """Whatever a configuration asks for, the trainer gets the small data; `replace` is `setattr` or what undoes it."""
    from shapmix.training import build

    replace(build, "read_splits", lambda config: splits)


def leave_pictures_out(replace: Callable[[object, str, object], None]) -> None:
    """Those of a run take longer to draw than its training; tests/pictures look at them."""
    from matplotlib.image import imsave

    from shapmix.pictures import plots

    def draw(path: Path, *content: object, **options: object) -> None:
        imsave(path, np.zeros((2, 2, 3)))

    for name in PICTURES:
        replace(plots, name, draw)


if __name__ == "__main__":
    from shapmix import train

    make_small_runs(setattr, make_small())
    leave_pictures_out(setattr)
    sys.exit(train.main(sys.argv[1:]))
