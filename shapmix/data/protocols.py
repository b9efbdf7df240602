"""Evaluation protocols: training, validation and test clips of a store, by number or by the lists of the store."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shapmix.data.clips import Splits, check_classes, without_classes
from shapmix.data.longtail import buckets, longtail_counts, longtail_list, match_list
from shapmix.data.store import Prepared
from shapmix.process.errors import DataError

# Training subjects of NTU RGB+D 120; those up to 40 are the training subjects of NTU RGB+D 60.
NTU_SUBJECTS = (
    1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, 52, 53,
    54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
)  # fmt: skip
VAL_PER_CLASS = 10
HELD_OUT_SHARE = 0.05

log = logging.getLogger("shapmix")


class Protocol(NamedTuple):
    """Attribute of a recording that decides the split, its training values and its test values (None: all others)."""

    number: str
    trains: tuple[int, ...]
    tests: tuple[int, ...] | None = None


PROTOCOLS = {
    "xsub": Protocol("subject", NTU_SUBJECTS),
    "xview": Protocol("camera", (2, 3)),
    "xset": Protocol("setup", tuple(range(2, 33, 2))),
    "cross-view": Protocol("camera", (1, 2)),  # NW-UCLA
    "cross-view-val": Protocol("camera", (1,), (2,)),  # NW-UCLA, for model selection: the test view is not used
    "cross-subject": Protocol("subject", tuple(range(1, 10))),  # NW-UCLA: subject 10 is the test subject
}


def store_splits(
    prepared: Prepared,
    *,
    protocol: str | None = None,
    imbalance: float | None = None,
    n_max: int | None = None,
    train_list: str | Path | None = None,
    min_frames: int = 1,
    drop_empty_classes: bool = False,
    seed: int = 0,
) -> Splits:
    """Splits of a store.

    Training clips are those of `train_list`, or a long-tailed sample with `imbalance` from the training pool (for NTU RGB+D 120 the
    published lists), or all. Validation clips are never test clips: the list `val` of the store if it also has `test`; otherwise up
    to 10 clips per class that the training list does not use; or, if all clips are trained on, a twentieth of each class's
    performances (with all cameras).

    Args:
        prepared: the store.
        protocol: one of `PROTOCOLS`; the prefix of a pair of lists of the store (`xsub` for `xsub_train` and `xsub_val`); or any
            two of its lists, the training list first (`train/val`). None uses the lists `train` and `test` (or `val` if there
            is no `test`).
        imbalance: largest class / smallest class.
        n_max: training clips of the largest class of the long-tailed sample; None uses all of them.
        train_list: file with one name per line.
        min_frames: shorter clips are dropped.
        drop_empty_classes: classes without training clips are dropped and logged; the others are renumbered.
        seed: of all random draws.

    Raises:
        DataError: an unknown protocol, numbers that the store does not contain, an empty pool, lists that share clips, a class
            without training clips, or an invalid list file.
    """
    if imbalance is not None and train_list is not None:
        raise DataError("give imbalance or train_list, not both: the list already defines the training clips")
    long_enough = prepared.clips.lengths >= min_frames
    pools = _pools(prepared, protocol)
    _check_apart(prepared.clips.names, *pools)
    pools = Pools(*(part[long_enough[part]] for part in pools))
    for part, clips in (("training", pools.train), ("test", pools.test)):
        if len(clips) == 0:
            of_length = "" if min_frames == 1 else f" of at least {min_frames} frames"
            raise DataError(f"protocol {protocol or 'of the store'}: no {part} clips{of_length}; choose another protocol")
    used = pools.train
    if train_list is not None:
        used = used[match_list(train_list, [prepared.clips.names[clip] for clip in used.tolist()])]
    counts = prepared.clips.class_counts(used)
    if drop_empty_classes and bool((counts == 0).any()):
        prepared, pools = _without_empty(prepared, counts, pools)
    else:
        check_classes(prepared.clips, counts)
    store, (train_pool, val, test) = prepared.clips, pools
    names = [store.names[clip] for clip in train_pool.tolist()]
    labels = store.labels[train_pool].tolist()
    if train_list is not None:
        chosen = match_list(train_list, names)
    elif imbalance is not None:
        largest = n_max or max(np.bincount(labels))
        chosen = longtail_list(names, labels, longtail_counts(store.num_classes, largest, imbalance), seed)
    else:
        chosen = list(range(len(names)))
    if len(val) == 0:
        if len(chosen) == len(names):
            val = train_pool[held_out(labels, _performances(prepared, train_pool), HELD_OUT_SHARE, seed)]
            kept = set(val.tolist())
            chosen = [row for row in chosen if int(train_pool[row]) not in kept]
        else:
            val = train_pool[left_over(labels, _performances(prepared, train_pool), chosen, VAL_PER_CLASS, seed)]
    train = train_pool[chosen]
    _log_profile(store.class_counts(train), [store.names[clip] for clip in train.tolist()])
    return Splits(store, train, val, test)


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


def held_out(labels: Sequence[int], performances: Sequence[str], share: float, seed: int) -> list[int]:
    """Rows of all clips of a fraction `share` of each class's performances, at least one if the class has two or more."""
    rows: list[int] = []
    for label in sorted(set(labels)):
        of_class = sorted({performance for performance, other in zip(performances, labels, strict=True) if other == label})
        count = max(round(share * len(of_class)), 1) if len(of_class) > 1 else 0
        drawn = set(np.random.default_rng([seed, label]).permutation(of_class)[:count].tolist())
        rows += [
            row
            for row, (performance, other) in enumerate(zip(performances, labels, strict=True))
            if other == label and performance in drawn
        ]
    return rows


class Pools(NamedTuple):
    """Candidate training, validation (possibly empty) and test clips of a store."""

    train: Tensor
    val: Tensor
    test: Tensor


def _pools(prepared: Prepared, protocol: str | None) -> Pools:
    lists, none = prepared.splits, torch.empty(0, dtype=torch.int64)
    if protocol is None:
        if "train" not in lists or not {"test", "val"} & set(lists):
            raise DataError(f"{_lists_of(prepared)}; choose a protocol that it supports: {_known(prepared)}")
        protocol = "train/test" if "test" in lists else "train/val"
    training, pair, testing = protocol.partition("/")
    if pair:
        for name in (training, testing):
            if name not in lists:
                known = ", ".join(sorted(lists)) or "none"
                raise DataError(f"protocol '{protocol}': the store has no list '{name}'; its lists are {known}")
        if training == testing:
            raise DataError(f"protocol '{protocol}': '{training}' is both training and test list; give two lists")
        own_val = lists.get("val", none) if (training, testing) == ("train", "test") else none
        return Pools(lists[training], own_val, lists[testing])
    for ending in ("test", "val"):
        if f"{protocol}_train" in lists and f"{protocol}_{ending}" in lists:
            return Pools(lists[f"{protocol}_train"], none, lists[f"{protocol}_{ending}"])
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol '{protocol}'; this store supports {_known(prepared)}")
    number, trains, tests = PROTOCOLS[protocol]
    numbers = prepared.numbers[number]
    unknown = torch.nonzero(numbers == 0).flatten()
    if len(unknown):
        name = prepared.clips.names[int(unknown[0])]
        raise DataError(f"protocol '{protocol}' needs the {number}, which is unknown for '{name}'")
    # the order of the preprocessed NTU files, and thus of the published samples: by subject (or camera, or setup), then by name
    keys = list(zip(numbers.tolist(), prepared.clips.names, strict=True))
    in_order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    trained = torch.isin(numbers[in_order], torch.tensor(trains))
    tested = ~trained if tests is None else torch.isin(numbers[in_order], torch.tensor(tests))
    return Pools(in_order[trained], none, in_order[tested])


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
            f"{correct}, or give --protocol train/val, which holds validation clips out of training",
        ),
    ):
        shared = clips[torch.isin(clips, others)]
        if len(shared):
            raise DataError(f"{len(shared)} {kind} clips {what}, such as '{names[int(shared[0])]}'; {remedy}")


def _without_empty(prepared: Prepared, counts: Tensor, pools: Pools) -> tuple[Prepared, Pools]:
    """Drops the classes without training clips (`counts` [K] is zero) from the store and its pools, and logs them."""
    store = prepared.clips
    clips, index = without_classes(store, counts > 0)
    validation, tests = store.class_counts(pools.val), store.class_counts(pools.test)
    lost = [
        f"'{store.class_names[label]}' ({int(validation[label])} validation, {int(tests[label])} test clips)"
        for label in torch.nonzero((counts == 0) & (validation + tests > 0)).flatten().tolist()
    ]
    log.info(
        "%d of %d classes have no training clips and are dropped%s",
        int((counts == 0).sum()), store.num_classes, f", together with their clips: {', '.join(lost)}" if lost else "",
    )  # fmt: skip
    staying = index >= 0
    numbers = {name: values[staying] for name, values in prepared.numbers.items()}
    kept = Pools(*(moved[moved >= 0] for moved in (index[part] for part in pools)))
    return Prepared(clips, numbers, {}, prepared.source), kept


def _lists_of(prepared: Prepared) -> str:
    lists = sorted(prepared.splits)
    if "train" in lists:
        return f"the store has the list{'s' * (len(lists) > 1)} {', '.join(lists)} but no test list"
    return f"the store has {'the lists ' + ', '.join(lists) if lists else 'no lists'}, but none named train"


def _known(prepared: Prepared) -> str:
    """Protocols that the store supports."""
    by_number = [name for name, one in PROTOCOLS.items() if bool((prepared.numbers[one.number] > 0).all())]
    lists = prepared.splits
    by_list = [
        name.removesuffix("_train")
        for name in lists
        if name.endswith("_train") and any(name.removesuffix("train") + ending in lists for ending in ("test", "val"))
    ]
    by_pair = [f"train/{testing}" for testing in ("test", "val") if "train" in lists and testing in lists]
    return ", ".join(sorted({*by_number, *by_list, *by_pair})) or "none, because it has neither numbers nor pairs of lists"


def _performances(prepared: Prepared, clips: Tensor) -> list[str]:
    """Identifies the performance of each clip, shared by all its cameras; the clip's name if its numbers are unknown."""
    columns = [prepared.numbers[name][clips].tolist() for name in ("setup", "subject", "replication")]
    labels, names = prepared.clips.labels[clips].tolist(), [prepared.clips.names[clip] for clip in clips.tolist()]
    return [
        f"{setup}/{subject}/{replication}/{label}" if subject else name
        for name, label, setup, subject, replication in zip(names, labels, *columns, strict=True)
    ]


def _log_profile(counts: Tensor, names: Sequence[str]) -> None:
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    sizes = ", ".join(f"{int(mask.sum())} {bucket}" for bucket, mask in buckets(counts)._asdict().items())
    log.info(
        "training list: %d clips, %d to %d per class (%s classes), sha256 %s",
        len(names), int(counts.max()), int(counts.min()), sizes, digest[:16],
    )  # fmt: skip
