"""NW-UCLA splits: ten actions filmed from three views, with the cross-view protocol."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from shapmix.data.clips import Splits, join_clips
from shapmix.data.longtail import list_seed, longtail_counts, longtail_list, match_list
from shapmix.data.pools import held_out
from shapmix.data.sources.bounded import no_body, read_table, show
from shapmix.data.sources.nw_ucla import ACTION_NUMBERS, CLASS_NAMES, Performed, find_clips, read_clips
from shapmix.data.splits import left_over
from shapmix.process.choices import nearest
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
    """Cross-view NW-UCLA: training on views 1 and 2, testing on view 3; raw coordinates in metres, layout `ucla20`, M = 1.

    Training clips are those of `train_list`, or a long-tailed sample with `imbalance`, or all. The sample depends on the order of
    the training clips: with the order of `train.csv`, if that file is beside the clips, imbalance 10 and seed 0 reproduce the
    published list of 403 clips. Without `train.csv` the names are sorted and the sample differs.

    Validation clips are never test clips. For a long-tailed set they are up to `val_per_class` clips per class from the training
    views that the list does not use, so no tail clip is lost. Both views film the same performance, so clips of performances
    that are not trained on are preferred. If all clips are trained on, a tenth of each class's performances, with both views,
    is held out instead. `val_per_class=0` disables validation.

    Args:
        root: a folder that contains `all_sqe/` or `all_sqe.tar.xz`, or the archive itself, which is read as a stream.
        imbalance: largest class / smallest class; None uses every training clip.
        train_list: a list file with one clip name per line, instead of `imbalance`.
        n_max: training clips of the largest class of the long-tailed sample.
        val_per_class: validation clips per class.
        min_frames: shorter clips are dropped after the lists are drawn, and logged. A clip of one frame is a pose without
            motion; it is kept by default.
        drop_empty_classes: classes without training clips are dropped and logged; the others are renumbered. Classes without
            test clips are then permitted, too.
        seed: of the long-tailed sample and of the validation clips.

    Raises:
        DataError: missing or damaged files, clips that do not match the layout, contradictory labels, unknown names in a list,
            or a class without training or test clips.
    """
    if imbalance is not None and train_list is not None:
        raise DataError("give imbalance or train_list, not both: the list already defines the training clips")
    source = find_clips(Path(root))
    read = read_clips(source)
    for clip in read.values():
        if not clip.frames.any():
            raise no_body(f"{source}: {clip.name}")
    train_pool, test_pool = _cross_view(read, source.parent)
    class_names = list(CLASS_NAMES)
    if drop_empty_classes:
        listed = None if train_list is None else match_list(train_list, [clip.name for clip in train_pool])
        train_pool, test_pool, class_names = _without_empty(train_pool, test_pool, listed)
    # Lists index the training pool, which comes first in `clips`.
    clips = train_pool + test_pool
    labels = [clip.label for clip in clips]
    if not drop_empty_classes:
        _check_classes(labels[: len(train_pool)], "training views 1 and 2", source)
        _check_classes(labels[len(train_pool) :], "test view 3", source)

    train = _training_rows(train_pool, train_list, imbalance, n_max, len(class_names), seed)
    if train_list is None and imbalance is None:
        val = held_out(labels[: len(train_pool)], _performances(train_pool), HELD_OUT_SHARE, seed) if val_per_class else []
        train = sorted(set(train) - set(val))
    else:
        val = left_over(labels[: len(train_pool)], _performances(train_pool), train, val_per_class, seed)
        if val_per_class and not val:
            raise DataError(
                f"{train_list or 'the long-tailed sample'} uses every clip of the training views and leaves none to "
                "validate on; use fewer clips, remove the list to hold out a tenth, or give val_per_class=0"
            )
    return _splits(source, clips, class_names, (train, val, range(len(train_pool), len(clips))), min_frames)


def _performances(clips: Sequence[Performed]) -> list[str]:
    return [clip.performance for clip in clips]


def _training_rows(
    pool: Sequence[Performed], train_list: str | Path | None, imbalance: float | None, n_max: int, num_classes: int, seed: int
) -> list[int]:
    """Rows of the training pool: those of the list, or a long-tailed sample, or all."""
    names = [clip.name for clip in pool]
    if train_list is not None:
        return match_list(train_list, names)
    if imbalance is not None:
        # The published sample is drawn from the complete order of train.csv.
        counts = longtail_counts(num_classes, n_max, imbalance)
        return longtail_list(names, [clip.label for clip in pool], counts, list_seed(seed, imbalance))
    return list(range(len(pool)))


def _splits(
    source: Path, clips: Sequence[Performed], class_names: list[str], rows: Sequence[Sequence[int]], min_frames: int
) -> Splits:
    """Splits of the clips with at least `min_frames` frames; `rows` are the training, validation and test clips."""
    short = {index for index, clip in enumerate(clips) if len(clip.frames) < min_frames}
    if short:
        dropped = ", ".join(clips[index].name for index in sorted(short))
        _log.info("%s: dropped clips of fewer than %d frames: %s", source, min_frames, dropped)
    stored = [clip for index, clip in enumerate(clips) if index not in short]
    if not stored:
        raise DataError(f"{source}: no clip has {min_frames} frames; lower min_frames")
    new_index = np.cumsum([index not in short for index in range(len(clips))]) - 1
    train, val, test = (
        torch.tensor([int(new_index[index]) for index in split if index not in short], dtype=torch.int64) for split in rows
    )
    store = join_clips(
        [clip.frames for clip in stored],
        [clip.label for clip in stored],
        [clip.name for clip in stored],
        load_layout("ucla20"),
        class_names,
    )
    return Splits(store, train, val, test)


def _cross_view(read: dict[str, Performed], folder: Path) -> tuple[list[Performed], list[Performed]]:
    """Training and test clips, in the order of `train.csv` and `test.csv` if they exist, otherwise by name."""
    pools: list[list[Performed]] = []
    for table, training in (("train.csv", True), ("test.csv", False)):
        members = {name: clip for name, clip in sorted(read.items()) if (clip.view in TRAIN_VIEWS) == training}
        path = folder / table
        pools.append(_in_table_order(path, members) if path.is_file() else list(members.values()))
    return pools[0], pools[1]


def _in_table_order(path: Path, members: dict[str, Performed]) -> list[Performed]:
    """The clips in the order of a table with columns name and label."""
    clips: list[Performed] = []
    for line, row in read_table(path, ("name", "label")):
        where = f"{path}, line {line}"
        name, label = row["name"], row["label"]
        if name not in members:
            hint = nearest(name, members)
            raise DataError(
                f"{where}: no clip {show(name)} in these views{hint + ' Correct' if hint else '; correct'} or remove the line"
            )
        if label != str(members[name].label + 1):
            raise DataError(f"{where}: label {label[:20]} of '{name}' contradicts label {members[name].label + 1} in its JSON")
        clips.append(members.pop(name))
    if members:
        _log.info("%s: %d clips of these views are not listed and are ignored: %s", path, len(members), ", ".join(members))
    return clips


def _without_empty(
    train_pool: list[Performed], test_pool: list[Performed], listed: Sequence[int] | None
) -> tuple[list[Performed], list[Performed], list[str]]:
    """Both pools and the class names without the classes that have no clip in the list (or in the training pool)."""
    used = train_pool if listed is None else [train_pool[row] for row in listed]
    kept = sorted({clip.label for clip in used})
    lost = [label for label in range(len(CLASS_NAMES)) if label not in kept]
    if not lost:
        return train_pool, test_pool, list(CLASS_NAMES)
    tests = Counter(clip.label for clip in test_pool)
    named = ", ".join(f"'{CLASS_NAMES[label]}' ({tests[label]} test clips)" for label in lost)
    _log.info("%d of %d classes have no training clips and are dropped: %s", len(lost), len(CLASS_NAMES), named)
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
