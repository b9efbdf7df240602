"""Long-tailed training lists: exponential class profile, published sampling of clips, list files and class buckets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shapmix.data.sources.bounded import line_of_name
from shapmix.process.choices import nearest
from shapmix.process.errors import DataError

MANY_ABOVE = 100
FEW_BELOW = 20


class Buckets(NamedTuple):
    """[K] bool masks of the classes with more than 100, 20 to 100 and fewer than 20 training clips."""

    many: Tensor
    medium: Tensor
    few: Tensor


def longtail_counts(num_classes: int, n_max: int, imbalance: float) -> list[int]:
    """Training clips of each class: int(n_max * f^(c / (K - 1))) with f = 1 / imbalance, the largest class first.

    Raises:
        DataError: no classes, an imbalance below 1, or a profile without clips for the last class.
    """
    if num_classes < 1:
        raise DataError(f"a long-tailed profile needs at least one class, not {num_classes}")
    if not (imbalance >= 1 and np.isfinite(imbalance)):
        raise DataError(f"imbalance (largest class / smallest class) must be at least 1, not {imbalance}")
    # The same expression as for the published lists: n_max / imbalance ** x rounds differently.
    ratio = 1 / imbalance
    counts = [int(n_max * ratio ** (label / max(num_classes - 1, 1))) for label in range(num_classes)]
    if counts[-1] < 1:
        raise DataError(f"n_max {n_max} with imbalance {imbalance} leaves the smallest class without clips; lower the imbalance")
    return counts


def list_seed(seed: int, imbalance: float) -> int:
    """Seed of the long-tailed list of a run: 0, the published lists', for run 0; else of the run's seed and the imbalance.

    With one seed for all imbalances, the list of a longer tail would be part of that of a shorter one.
    """
    if seed == 0:
        return 0
    bits = int(np.float64(imbalance).view(np.uint64))
    return int(np.random.SeedSequence([seed, bits]).generate_state(1)[0])


def longtail_list(names: Sequence[str], labels: Sequence[int], counts: Sequence[int], seed: int = 0) -> list[int]:
    """Indices into `names` of the long-tailed training clips, sampled as in the published lists.

    In class order, the clips of each class (in the order of `names`) are shuffled by NumPy's legacy generator and the first
    `counts[c]` are kept, or all if the class has fewer. The result depends on the order of `names` and on the size of every
    earlier class: only the published training order reproduces the published lists.

    Raises:
        DataError: mismatched lengths, a label outside `counts`, or a class without clips.
    """
    if len(names) != len(labels):
        raise DataError(f"{len(names)} names and {len(labels)} labels do not match")
    label_of = np.asarray(labels, dtype=np.int64)
    for clip in np.flatnonzero((label_of < 0) | (label_of >= len(counts))).tolist():
        raise DataError(f"clip '{names[clip]}' has label {label_of[clip]}; the {len(counts)} classes are 0 to {len(counts) - 1}")
    generator = np.random.RandomState(seed)
    kept: list[int] = []
    for label, count in enumerate(counts):
        clips = np.flatnonzero(label_of == label)
        if not len(clips):
            raise DataError(f"class {label} has no clip to draw {count} training clips from; remove the class or add clips")
        generator.shuffle(clips)
        kept += clips[:count].tolist()
    return kept


def buckets(counts: Sequence[int] | Tensor) -> Buckets:
    """The many-, medium- and few-shot classes of `counts` [K]; an empty bucket is all False."""
    count = torch.as_tensor(counts)
    many, few = count > MANY_ABOVE, count < FEW_BELOW
    return Buckets(many, ~(many | few), few)


def match_list(path: str | Path, known: Sequence[str]) -> list[int]:
    """Index in `known` of each name of a list file, in the file's order.

    Raises:
        DataError: as `read_list`, or an unknown name (with its line and the closest known name).
    """
    index = {name: number for number, name in enumerate(known)}
    found: list[int] = []
    for name, line in line_of_name(Path(path)).items():
        if name not in index:
            hint = nearest(name, known)
            raise DataError(
                f"{path}, line {line}: unknown clip '{name}'{hint + ' Correct' if hint else '; correct'} or remove the line"
            )
        found.append(index[name])
    return found
