"""Training, validation and test clips of a store, with long-tailed training lists and dropped classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shapmix.data.clips import ClipStore, Splits, check_classes, without_classes
from shapmix.data.longtail import buckets, list_seed, longtail_counts, longtail_list, match_list
from shapmix.data.pools import Pools, SplitOptions, find_pools, held_out, performances
from shapmix.data.store import Prepared
from shapmix.process.choices import nearest
from shapmix.process.errors import DataError

VAL_PER_CLASS = 10
HELD_OUT_SHARE = 0.05

log = logging.getLogger("shapmix")


def store_splits(
    prepared: Prepared,
    options: SplitOptions | None = None,
    *,
    imbalance: float | None = None,
    n_max: int | None = None,
    train_list: str | Path | None = None,
    min_frames: int = 1,
    drop_empty_classes: bool = False,
    drop_classes: Sequence[str] = (),
    seed: int = 0,
) -> Splits:
    """Splits of a store.

    Training clips are those of `train_list`, or a long-tailed sample with `imbalance` from the training pool (for NTU RGB+D 120 the
    published lists), or all. Validation clips are never test clips: the list `val` of the store if it also has `test`; otherwise up
    to 10 clips per class that the training list does not use; or, if all clips are trained on, a twentieth of each class's
    performances (with all cameras), but at least one of a class that has two.

    Args:
        prepared: the store.
        options: which clips train and which test; None: the lists `train` and `test` (or `val`) of the store.
        imbalance: largest class / smallest class.
        n_max: training clips of the largest class of the long-tailed sample; None uses all of them.
        train_list: file with one name per line.
        min_frames: shorter clips are dropped and logged.
        drop_empty_classes: classes without training clips are dropped and logged; the others are renumbered.
        drop_classes: names of classes that are dropped and logged, with all of their clips; the others are renumbered.
        seed: of the validation clips and the long-tailed sample.

    Raises:
        DataError: as `find_pools`, an empty pool, lists that share clips, a class without training clips, an unknown class to
            drop, or an invalid list file.
    """
    if imbalance is not None and train_list is not None:
        raise DataError("give imbalance or train_list, not both: the list already defines the training clips")
    pools = find_pools(prepared, options or SplitOptions())
    _check_apart(prepared.clips.names, *pools)
    pool = [prepared.clips.names[clip] for clip in pools.train.tolist()]
    listed = (
        None if train_list is None else [pool[row] for row in match_list(train_list, pool)]
    )  # also clips that are dropped below
    if drop_classes:
        prepared, pools = _without_named(prepared, drop_classes, pools)
    pools = _long_enough(prepared.clips, pools, min_frames)
    for part, clips in (("training", pools.train), ("test", pools.test)):
        if len(clips) == 0:
            of_length = "" if min_frames == 1 else f" of at least {min_frames} frames"
            raise DataError(f"no {part} clips{of_length}; choose other test clips with --split, --fold or --test-split")
    used = pools.train
    if listed is not None:
        used = used[_rows(listed, [prepared.clips.names[clip] for clip in used.tolist()])]
    counts = prepared.clips.class_counts(used)
    if drop_empty_classes and bool((counts == 0).any()):
        prepared, pools = _without_empty(prepared, counts, pools)
    else:
        check_classes(prepared.clips, counts, prepared.clips.class_counts(pools.test))
    store, (train_pool, val, test) = prepared.clips, pools
    names = [store.names[clip] for clip in train_pool.tolist()]
    labels = store.labels[train_pool].tolist()
    if listed is not None:
        chosen = _rows(listed, names)
    elif imbalance is not None:
        largest = n_max or max(np.bincount(labels))
        chosen = longtail_list(names, labels, longtail_counts(store.num_classes, largest, imbalance), list_seed(seed, imbalance))
    else:
        chosen = list(range(len(names)))
    if len(val) == 0:
        if len(chosen) == len(names):
            val = train_pool[held_out(labels, performances(prepared, train_pool), HELD_OUT_SHARE, seed)]
            kept = set(val.tolist())
            chosen = [row for row in chosen if int(train_pool[row]) not in kept]
        else:
            val = train_pool[left_over(labels, performances(prepared, train_pool), chosen, VAL_PER_CLASS, seed)]
    train = train_pool[chosen]
    splits = Splits(store, train, val, test)
    _log_profile(splits)
    return splits


def _long_enough(store: ClipStore, pools: Pools, min_frames: int) -> Pools:
    """The clips of at least so many frames; logs the others."""
    long = store.lengths >= min_frames
    if short := [store.names[clip] for part in pools for clip in part[~long[part]].tolist()]:
        log.info("dropped %d clips of fewer than %d frames: %s", len(short), min_frames, ", ".join(short))
    return Pools(*(part[long[part]] for part in pools))


def _rows(listed: Sequence[str], names: Sequence[str]) -> list[int]:
    """Rows in `names` of the listed clips that are left, in the order of the list."""
    row_of = {name: row for row, name in enumerate(names)}
    return [row_of[name] for name in listed if name in row_of]


def left_over(labels: Sequence[int], performances: Sequence[object], chosen: Sequence[int], per_class: int, seed: int) -> list[int]:
    """Rows of up to `per_class` unused clips per class, preferring performances without `chosen` (training) clips."""
    trained, seen = set(chosen), {performances[row] for row in chosen}
    rows: list[int] = []
    for label in sorted(set(labels)):
        spare = [row for row, other in enumerate(labels) if other == label and row not in trained]
        order = np.random.default_rng([seed, label]).permutation(len(spare))
        drawn = sorted((spare[place] for place in order), key=lambda row: performances[row] in seen)  # stable sort
        rows += drawn[:per_class]
    return rows


def _check_apart(names: Sequence[str], train: Tensor, val: Tensor, test: Tensor) -> None:
    """Checks that no clip is in two lists."""
    also_test = "are also test clips"
    correct = "correct the list"
    for kind, clips, others, what, remedy in (
        ("training", train, test, also_test, correct),
        ("training", train, val, "are also validation clips", correct),
        (
            "validation",
            val,
            test,
            also_test,
            f"{correct}, or give --train-split train --test-split val, which holds validation clips out of training",
        ),
    ):
        shared = clips[torch.isin(clips, others)]
        if len(shared):
            raise DataError(f"{len(shared)} {kind} clips {what}, such as '{names[int(shared[0])]}'; {remedy}")


def _without_named(prepared: Prepared, names: Sequence[str], pools: Pools) -> tuple[Prepared, Pools]:
    """Drops the classes of these names, and logs their clips."""
    store = prepared.clips
    for name in names:
        if name not in store.class_names:
            raise DataError(f"drop_classes: there is no class '{name}'{nearest(name, store.class_names)}")
    kept = torch.tensor([name not in names for name in store.class_names])
    log.info("dropped classes: %s", _with_clips(store, ~kept, pools))
    return _without(prepared, kept, pools)


def _without_empty(prepared: Prepared, counts: Tensor, pools: Pools) -> tuple[Prepared, Pools]:
    """Drops the classes without training clips (`counts` [K] is zero), and logs them."""
    store = prepared.clips
    lost = _with_clips(store, counts == 0, pools)
    log.info(
        "%d of %d classes have no training clips and are dropped%s",
        int((counts == 0).sum()), store.num_classes, f", together with their clips: {lost}" if lost else "",
    )  # fmt: skip
    return _without(prepared, counts > 0, pools)


def _with_clips(store: ClipStore, classes: Tensor, pools: Pools) -> str:
    """Those of `classes` [K] bool that have clips, with the number of clips of each."""
    parts = {part: store.class_counts(clips) for part, clips in zip(("training", "validation", "test"), pools, strict=True)}
    named = []
    for label in torch.nonzero(classes & (sum(parts.values(), torch.tensor(0)) > 0)).flatten().tolist():
        sizes = ", ".join(f"{int(counts[label])} {part}" for part, counts in parts.items() if part != "training" or counts[label])
        named.append(f"'{store.class_names[label]}' ({sizes} clips)")
    return ", ".join(named)


def _without(prepared: Prepared, kept: Tensor, pools: Pools) -> tuple[Prepared, Pools]:
    """The store and its pools restricted to the classes `kept` [K] bool, which are renumbered."""
    clips, index = without_classes(prepared.clips, kept)
    staying = index >= 0
    numbers = {name: values[staying] for name, values in prepared.numbers.items()}
    moved = Pools(*(new[new >= 0] for new in (index[part] for part in pools)))
    return replace(prepared, clips=clips, numbers=numbers, splits={}, columns={}), moved


def _log_profile(splits: Splits) -> None:
    counts = splits.store.class_counts(splits.train)
    sizes = ", ".join(f"{int(mask.sum())} {bucket}" for bucket, mask in buckets(counts)._asdict().items())
    log.info(
        "training list: %d clips, %d to %d per class (%s classes), sha256 %s",
        len(splits.train), int(counts.max()), int(counts.min()), sizes, splits.list_sha256[:16],
    )  # fmt: skip
