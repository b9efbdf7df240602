"""NW-UCLA: skeleton clips of ten actions from three views, one JSON file a clip, in a folder or in its archive."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shapmix.data.clips import Splits, join_clips
from shapmix.data.longtail import longtail_counts, longtail_list, match_list, nearest
from shapmix.data.protocols import held_out, left_over
from shapmix.data.sources.bounded import read_table, show
from shapmix.data.sources.nw_ucla import ACTION_NUMBERS, CLASS_NAMES, Performed, find_clips, read_clips
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import load_layout

N_MAX = 100

TRAIN_VIEWS = (1, 2)

HELD_OUT_SHARE = 0.1

_log = logging.getLogger("shapmix")


def load_nw_ucla(
    root: str | Path,
    *,
    imbalance: float | None = None,
    train_list: str | Path | None = None,
    n_max: int = N_MAX,
    val_per_class: int = 10,
    min_frames: int = 1,
    drop_empty_classes: bool = False,
    seed: int = 0,
) -> Splits:
    """Cross-view NW-UCLA: views 1 and 2 train, view 3 tests; raw coordinates in metres as recorded, layout `ucla20`, M = 1.

    Training clips are those of `train_list`, or the long-tailed draw with `imbalance`, or all. The draw depends on the order
    of the training clips: it is that of `train.csv` where the file lies beside the clips, and then imbalance 10 with seed 0
    is the published list of 403 clips. Without `train.csv` the names are sorted, and the draw is another one.

    Validation clips are never test clips. Those of a long-tailed set are `val_per_class` of each class, or as many as there
    are, from the training views' clips that the list leaves out: it costs no tail clip. Both views film the same
    performance, so clips of performances that nobody trains on are taken first. When all clips train, a tenth of each
    class's performances, with both their views, is held out instead. `val_per_class=0` holds nothing out.

    Args:
        root: a folder that holds `all_sqe/` or `all_sqe.tar.xz`, or the path of the archive itself; it is read as a stream.
        imbalance: largest class over smallest; None for every training clip.
        train_list: a list file with one clip name a line, instead of `imbalance`.
        n_max: clips of the largest class of the long-tailed draw.
        val_per_class: validation clips of each class.
        min_frames: shorter clips are dropped after the lists are drawn, and named in the log. A clip of one frame is a pose
            without motion, and is kept by default.
        drop_empty_classes: classes without training clips are left out, and named; the others are renumbered. A class without test
            clips is then no error either.
        seed: of the long-tailed draw and of the choice of validation clips.

    Raises:
        DataError: missing or damaged files, clips that do not fit the layout, contradicting labels, unknown names in a list,
            or a class without training or test clips.
    """
    if imbalance is not None and train_list is not None:
        raise DataError("give imbalance or train_list, not both: the list already says which clips train")
    source = find_clips(Path(root))
    read = read_clips(source)
    train_pool, test_pool = _cross_view(read, source.parent)
    class_names = list(CLASS_NAMES)
    if drop_empty_classes:
        listed = None if train_list is None else match_list(train_list, [clip.name for clip in train_pool])
        train_pool, test_pool, class_names = _without_empty(train_pool, test_pool, listed)
    clips = train_pool + test_pool
    labels = [clip.label for clip in clips]
    # The published draw is over train.csv's whole order: lists index the training pool, which comes first in `clips`.
    pool_labels = labels[: len(train_pool)]
    if not drop_empty_classes:
        _check_classes(pool_labels, "training views 1 and 2", source)
        _check_classes(labels[len(train_pool) :], "test view 3", source)

    if train_list is not None:
        train = match_list(train_list, [clip.name for clip in train_pool])
    elif imbalance is not None:
        counts = longtail_counts(len(class_names), n_max, imbalance)
        train = longtail_list([clip.name for clip in train_pool], pool_labels, counts, seed)
    else:
        train = list(range(len(train_pool)))
    performances = [clip.performance for clip in train_pool]
    if train_list is None and imbalance is None:
        val = held_out(pool_labels, performances, HELD_OUT_SHARE, seed) if val_per_class else []
        train = sorted(set(train) - set(val))
    else:
        val = left_over(pool_labels, performances, train, val_per_class, seed)
        if val_per_class and not val:
            raise DataError(
                f"{train_list or 'the long-tailed draw'} trains on every clip of the training views and leaves none to "
                "validate on; leave clips out, drop the list to have a tenth held out, or give val_per_class=0"
            )

    short = {index for index, clip in enumerate(clips) if len(clip.frames) < min_frames}
    if short:
        dropped = ", ".join(clips[index].name for index in sorted(short))
        _log.info("%s: dropped clips of fewer than %d frames: %s", source, min_frames, dropped)
    new_index = np.cumsum([index not in short for index in range(len(clips))]) - 1

    def kept(indices: Sequence[int]) -> Tensor:
        return torch.tensor([int(new_index[index]) for index in indices if index not in short], dtype=torch.int64)

    stored = [clip for index, clip in enumerate(clips) if index not in short]
    if not stored:
        raise DataError(f"{source}: no clip has {min_frames} frames; lower min_frames")
    store = join_clips(
        [clip.frames for clip in stored],
        [clip.label for clip in stored],
        [clip.name for clip in stored],
        load_layout("ucla20"),
        class_names,
    )
    return Splits(store, kept(train), kept(val), kept(range(len(train_pool), len(clips))))


def _cross_view(read: dict[str, Performed], folder: Path) -> tuple[list[Performed], list[Performed]]:
    """Training and test clips, in the order of `train.csv` and `test.csv` where they exist, else by name."""
    pools: list[list[Performed]] = []
    for table, training in (("train.csv", True), ("test.csv", False)):
        members = {name: clip for name, clip in sorted(read.items()) if (clip.view in TRAIN_VIEWS) == training}
        path = folder / table
        pools.append(_in_table_order(path, members) if path.is_file() else list(members.values()))
    return pools[0], pools[1]


def _in_table_order(path: Path, members: dict[str, Performed]) -> list[Performed]:
    """The clips that a table with the columns name and label lists, in its order."""
    clips: list[Performed] = []
    for line, row in read_table(path, ("name", "label")):
        where = f"{path}, line {line}"
        name, label = row["name"], row["label"]
        if name not in members:
            raise DataError(f"{where}: no clip {show(name)} in these views{nearest(name, members)}; correct or remove the line")
        if label != str(members[name].label + 1):
            raise DataError(f"{where}: label {label[:20]} of '{name}' contradicts label {members[name].label + 1} in its JSON")
        clips.append(members.pop(name))
    if members:
        _log.info("%s: %d clips of these views are not listed and not used: %s", path, len(members), ", ".join(members))
    return clips


def _without_empty(
    train_pool: list[Performed], test_pool: list[Performed], listed: Sequence[int] | None
) -> tuple[list[Performed], list[Performed], list[str]]:
    """Both pools and the class names without the classes that no clip of the list (or of the training pool) has."""
    used = train_pool if listed is None else [train_pool[row] for row in listed]
    kept = sorted({clip.label for clip in used})
    lost = [label for label in range(len(CLASS_NAMES)) if label not in kept]
    if not lost:
        return train_pool, test_pool, list(CLASS_NAMES)
    tests = Counter(clip.label for clip in test_pool)
    named = ", ".join(f"'{CLASS_NAMES[label]}' ({tests[label]} test clips)" for label in lost)
    _log.info("%d of %d classes have no training clip and are left out: %s", len(lost), len(CLASS_NAMES), named)
    pools = (
        [replace(clip, label=kept.index(clip.label)) for clip in pool if clip.label in kept] for pool in (train_pool, test_pool)
    )
    return next(pools), next(pools), [CLASS_NAMES[label] for label in kept]


def _check_classes(labels: list[int], views: str, source: Path) -> None:
    for label, name in enumerate(CLASS_NAMES):
        if label not in labels:
            action = f"a{ACTION_NUMBERS[label]:02d}"
            raise DataError(
                f"{source}: class '{name}' (action {action}) has no clip in the {views}; "
                "complete the data set, or give --drop-empty-classes"
            )
