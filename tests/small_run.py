"""Training on data small enough for seconds, with pictures of four pixels; run as a script, in a process of its own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shapmix.data.clips import Splits
from shapmix.data.synthetic import make_synthetic

HOLD_AT = "SHAPMIX_TEST_HOLD_AT"  # variable of a process of its own: the step at which it waits for a signal
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


def hold(replace: Callable[[object, str, object], None]) -> None:
    """A run waits inside the step `HOLD_AT`, if that is set, until it has received a signal: however slow the machine is, the run
    has not ended before the test sends it."""
    if HOLD_AT not in os.environ:
        return
    from shapmix.process.signals import StopRequest
    from shapmix.training.eager_step import EagerStep

    receive, step, received, steps = StopRequest._receive, EagerStep.forward_backward, [], iter(range(1, 1 << 30))

    def heard(self: StopRequest, number: int, frame: object) -> None:
        received.append(number)
        receive(self, number, frame)

    def held(self: EagerStep, batch: object) -> object:
        result = step(self, batch)
        late = next(steps) >= int(os.environ[HOLD_AT])
        while late and not received:
            time.sleep(0.01)
        return result

    replace(StopRequest, "_receive", heard)
    replace(EagerStep, "forward_backward", held)


if __name__ == "__main__":
    from shapmix import train

    hold(setattr)
    make_small_runs(setattr, make_small())
    leave_pictures_out(setattr)
    sys.exit(train.main(sys.argv[1:]))
