"""Which clips of a store train and which test: by lists, by a published protocol, at random, in folds, or by a column."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shapmix.data.protocols import PROTOCOLS, Protocol, protocols_of
from shapmix.data.store import Prepared
from shapmix.process.choices import nearest
from shapmix.process.errors import DataError

RANDOM = "random"
TEST_SHARE = 0.2  # of --split random
SHOWN_VALUES = 12  # of a column, in a message

log = logging.getLogger("shapmix")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which clips of a store train and which test."""

    split: str | None = None
    """What is divided into training and test clips. random: the clips, stratified by class. A column (subject, camera, setup,
    replication, or one of your table): its values. A published protocol of the data set (xsub, xview, xset; cross-view,
    cross-view-val, cross-subject), or the common beginning of two lists (x of x_train and x_val). None: the lists train and test,
    or train and val, that come with the data."""
    test_share: float | None = None
    """Fraction of the clips that test, with --split random (default: 0.2) or with a column, whose values are then drawn."""
    fold: str | None = None
    """i/k, such as 1/5: part i of k tests, the others train. Parts of the clips (stratified by class), of the list --train-split,
    or with --split COLUMN of its values; with as many parts as values, this leaves one value out."""
    test_values: tuple[str, ...] = ()
    """With --split COLUMN: the values that test, such as --split subject --test-values 3 for leave-one-subject-out."""
    train_split: str | None = None
    """Name of the list that trains, one of those that come with the data; needs --test-split. With --fold instead, the list alone
    is divided: a change can be tried on its clips while those of the other lists are left alone."""
    test_split: str | None = None
    """Name of the list that tests; needs --train-split."""
    split_seed: int = 0
    """Seed of random splits. It is separate from --seed, so that runs with several seeds have the same test clips."""

    @property
    def divides_a_list(self) -> bool:
        """Whether the clips of the list `train_split` alone are divided, in folds."""
        return self.train_split is not None and self.test_split is None and self.fold is not None

    def contradiction(self) -> str | None:
        """What is wrong with these options for any data, or None."""
        by_lists = self.train_split is not None or self.test_split is not None
        ways = [option for option, given in _given(self).items() if given]
        if self.divides_a_list:
            by_lists = False
            if self.split is not None:
                return "split and train_split both say which clips are divided; give one"
        if by_lists and (self.train_split is None or self.test_split is None):
            return "train_split and test_split belong together; give both, or --fold to divide the list train_split"
        if by_lists and (ways or self.split is not None):
            return (
                f"{' and '.join(['split'] * (self.split is not None) + ways)}: train_split and test_split already divide the clips"
            )
        if by_lists and self.train_split == self.test_split:
            return f"train_split and test_split are both '{self.train_split}'; give two lists"
        if len(ways) > 1:
            return f"{' and '.join(ways)} all say which clips test; give one"
        if self.test_values and self.split in (None, RANDOM):
            return "test_values are values of a column; give --split COLUMN"
        if self.test_share is not None and not 0 < self.test_share < 1:
            return f"test_share: a fraction of the clips between 0 and 1, not {self.test_share:g}"
        if self.fold is not None and _parsed(self.fold) is None:
            return f"fold: i/k such as 1/5, with i from 1 to k and k at least 2, not '{self.fold}'"
        return None


class Pools(NamedTuple):
    """Candidate training, validation (possibly empty) and test clips of a store."""

    train: Tensor
    val: Tensor
    test: Tensor


def find_pools(prepared: Prepared, options: SplitOptions) -> Pools:
    """The clips that train and test.

    Raises:
        DataError: contradictory options, an unknown split, lists or numbers that the data does not have, or values that leave no
            clip to train or to test; the message lists what the data supports.
    """
    wrong = options.contradiction()
    if wrong is not None:
        raise DataError(wrong)
    lists, none = prepared.splits, torch.empty(0, dtype=torch.int64)
    if options.divides_a_list:
        return _inside(prepared, options)
    by_way = any(_given(options).values())
    if options.split is None and not by_way:
        training, testing = _two_lists(prepared, options)
        own_val = lists.get("val", none) if (training, testing) == ("train", "test") else none
        return Pools(lists[training], own_val, lists[testing])
    split = options.split or RANDOM
    columns = columns_of(prepared)
    if split == RANDOM:
        return _apart(prepared, _random(prepared, options), "random")
    published = _published(prepared, split)
    if published is not None and by_way:
        way = next(way for way, given in _given(options).items() if given)
        raise DataError(f"{way}: split '{split}' already says which clips test; remove --{way.replace('_', '-')}")
    if published is not None:
        return published
    if split not in columns:
        known = [*offered_names(prepared.clips.names, lists, columns)]
        raise DataError(f"unknown split '{split}'{nearest(split, known) or ';'} {_supported(prepared)}")
    return _apart(prepared, _by_column(prepared, split, columns[split], options), split)


def columns_of(prepared: Prepared) -> dict[str, list[str]]:
    """Values [n] of every column with two or more, as text; '' if unknown."""
    numbers = {name: [str(value) if value else "" for value in values.tolist()] for name, values in prepared.numbers.items()}
    return {name: values for name, values in {**numbers, **prepared.columns}.items() if len({*values} - {""}) > 1}


def offered(names: Sequence[str], lists: Mapping[str, object], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The options that divide such data, as they are typed."""
    found = []
    for name in offered_names(names, lists, columns):
        values = sorted({*columns.get(name, ())}, key=_order)
        if "" in values or (name in columns and len(values) < 2):
            continue
        shown = ", ".join(values[:SHOWN_VALUES]) + (", ..." if len(values) > SHOWN_VALUES else "")
        found.append(f"--split {name}" + (f" (with --test-values of {shown}, or --fold 1/{len(values)})" if values else ""))
    return [*_pairs(lists), *found, "--fold 1/5"]


def offered_names(names: Sequence[str], lists: Mapping[str, object], columns: Mapping[str, Sequence[str]]) -> list[str]:
    """The values of `--split` for such data."""
    known = {column: [value for value in values if not value] for column, values in columns.items()}
    published = [name for name, one in protocols_of(names).items() if one.column in columns and not known[one.column]]
    return [*dict.fromkeys([*_prefixes(lists), *published, RANDOM, *columns])]


def _pairs(lists: Mapping[str, object]) -> list[str]:
    """Pairs of lists by name: train and test, or train and val."""
    testing = next((name for name in ("test", "val") if name in lists), None)
    if testing and "train" in lists:
        return [f"--train-split train --test-split {testing}"]
    prefixed = {f"{prefix}_{ending}" for prefix in _prefixes(lists) for ending in ("train", "test", "val")}
    others = [name for name in lists if name not in prefixed]
    return [f"--train-split A --test-split B with two of the lists {', '.join(sorted(others))}"] if len(others) > 1 else []


def _prefixes(lists: Mapping[str, object]) -> list[str]:
    ends = [name.removesuffix("_train") for name in lists if name.endswith("_train")]
    return [start for start in ends if f"{start}_test" in lists or f"{start}_val" in lists]


def _supported(prepared: Prepared) -> str:
    return f"this data supports {'; '.join(offered(prepared.clips.names, prepared.splits, columns_of(prepared)))}"


def _given(options: SplitOptions) -> dict[str, bool]:
    """Whether each option that says which clips test is given."""
    return {
        "test_share": options.test_share is not None,
        "fold": options.fold is not None,
        "test_values": bool(options.test_values),
    }


def _parsed(fold: str) -> tuple[int, int] | None:
    """(part from 0, number of parts) of `i/k`."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", fold)
    if found is None:
        return None
    part, parts = int(found[1]), int(found[2])
    return (part - 1, parts) if 1 <= part <= parts and parts > 1 else None


def _two_lists(prepared: Prepared, options: SplitOptions) -> tuple[str, str]:
    lists = prepared.splits
    if options.train_split is not None and options.test_split is not None:
        _check_list(lists, "train_split", options.train_split)
        _check_list(lists, "test_split", options.test_split)
        return options.train_split, options.test_split
    if "train" in lists and {"test", "val"} & set(lists):
        return "train", "test" if "test" in lists else "val"
    names = sorted(lists)
    if "train" in lists:
        has = f"the data has the list{'s' * (len(names) > 1)} {', '.join(names)} but no test list"
    else:
        has = f"the data has {'the lists ' + ', '.join(names) if names else 'no lists'}, but none named train"
    raise DataError(f"{has}; choose the test clips: {_supported(prepared)}")


def _check_list(lists: Mapping[str, object], option: str, name: str) -> None:
    if name not in lists:
        known = ", ".join(sorted(lists)) or "none"
        raise DataError(f"{option}: the data has no list '{name}'{nearest(name, lists) or ';'} its lists are {known}")


def _inside(prepared: Prepared, options: SplitOptions) -> Pools:
    """Pools of a fold of one list; clips that are not in the list are in no pool."""
    assert options.train_split is not None
    _check_list(prepared.splits, "train_split", options.train_split)
    clips = prepared.splits[options.train_split]
    labels, together = prepared.clips.labels[clips].tolist(), performances(prepared, clips)
    testing = torch.zeros(len(clips), dtype=torch.bool)
    testing[_fold(labels, together, options)] = True
    pools = Pools(clips[~testing], clips[:0], clips[testing])
    log.info("fold of list %s: %d training clips, %d test clips", options.train_split, len(pools.train), len(pools.test))
    return pools


def _published(prepared: Prepared, split: str) -> Pools | None:
    """Pools of a pair of lists that begin with `split`, or of a published protocol; None if there is no such split."""
    lists, none = prepared.splits, torch.empty(0, dtype=torch.int64)
    for ending in ("test", "val"):
        if f"{split}_train" in lists and f"{split}_{ending}" in lists:
            own_val = lists.get(f"{split}_val", none) if ending == "test" else none
            return Pools(lists[f"{split}_train"], own_val, lists[f"{split}_{ending}"])
    known = [one for one in PROTOCOLS if one.name == split]
    if not known:
        return None
    one = protocols_of(prepared.clips.names).get(split)
    if one is None:
        foreign = next(name for name in prepared.clips.names if not known[0].recordings.fullmatch(name))
        whose = " and ".join(protocol.dataset for protocol in known)
        raise DataError(
            f"split '{split}' is a protocol of {whose}, whose recordings are not named '{foreign}'; {_supported(prepared)}"
        )
    return _by_protocol(prepared, one)


def _by_protocol(prepared: Prepared, protocol: Protocol) -> Pools:
    names, numbers = prepared.clips.names, prepared.numbers[protocol.column]
    unknown = torch.nonzero(numbers == 0).flatten()
    if len(unknown):
        name = names[int(unknown[0])]
        raise DataError(
            f"split '{protocol.name}' needs the {protocol.column}, which is unknown for '{name}'; {_supported(prepared)}"
        )
    # the order of the preprocessed NTU files, and thus of the published samples: by subject (or camera, or setup), then by name
    keys = list(zip(numbers.tolist(), names, strict=True))
    in_order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    trained = torch.isin(numbers[in_order], torch.tensor(protocol.trains))
    tested = ~trained if protocol.tests is None else torch.isin(numbers[in_order], torch.tensor(protocol.tests))
    return Pools(in_order[trained], torch.empty(0, dtype=torch.int64), in_order[tested])


def _random(prepared: Prepared, options: SplitOptions) -> list[int]:
    """Test clips that are drawn class by class; the clips of a performance (all its cameras) stay together."""
    labels = prepared.clips.labels.tolist()
    together = performances(prepared, torch.arange(len(labels)))
    if options.fold is None:
        return held_out(labels, together, options.test_share or TEST_SHARE, options.split_seed)
    return _fold(labels, together, options)


def _fold(labels: Sequence[int], together: Sequence[str], options: SplitOptions) -> list[int]:
    """Rows that test in a fold that is drawn class by class; rows of one performance stay together."""
    part, parts = _parsed(options.fold or "") or (0, 1)
    tests: list[int] = []
    before = 0  # classes continue the count of earlier ones, so that all parts have the same size
    for label, of_class in _by_class(labels, together).items():
        drawn = np.random.default_rng([options.split_seed, label]).permutation(sorted(of_class)).tolist()
        if len(drawn) > 1:  # a single performance always trains: no class is without training clips
            tests += [row for place, one in enumerate(drawn, before) if place % parts == part for row in of_class[one]]
            before += len(drawn)
    return sorted(tests)


def _by_column(prepared: Prepared, column: str, values: list[str], options: SplitOptions) -> list[int]:
    """Test clips: those of some values of a column."""
    if "" in values:
        name = prepared.clips.names[values.index("")]
        raise DataError(f"split '{column}': the {column} of '{name}' is unknown; {_supported(prepared)}")
    known = sorted({*values}, key=_order)
    shown = ", ".join(known[:SHOWN_VALUES]) + (", ..." if len(known) > SHOWN_VALUES else "")
    if options.test_values:
        for value in options.test_values:
            if value not in known:
                raise DataError(f"test_values: no clip has the {column} '{value}'; the values are {shown}")
        chosen = {*options.test_values}
    elif options.fold is not None:
        part, parts = _parsed(options.fold) or (0, 1)
        if parts > len(known):
            raise DataError(f"fold: {parts} parts of {len(known)} values of {column}; give at most --fold 1/{len(known)}")
        chosen = {*known[part::parts]}
    elif options.test_share is not None:
        chosen, wanted = set(), options.test_share * len(values)
        for value in np.random.default_rng(options.split_seed).permutation(known).tolist()[:-1]:
            if sum(one in chosen for one in values) < wanted:
                chosen.add(value)
    else:
        raise DataError(
            f"split '{column}': say which clips test: --test-values of {shown}; --fold 1/{len(known)}; or --test-share 0.2"
        )
    log.info("test clips: %s %s", column, ", ".join(sorted(chosen, key=_order)))
    return [row for row, value in enumerate(values) if value in chosen]


def _apart(prepared: Prepared, tests: list[int], split: str) -> Pools:
    """Pools of these test clips and all others; logs their numbers, and a way that keeps people apart."""
    testing = torch.zeros(len(prepared.clips), dtype=torch.bool)
    testing[tests] = True
    log.info("split %s: %d training clips, %d test clips", split, int((~testing).sum()), len(tests))
    if split == RANDOM and "subject" in columns_of(prepared):
        log.info("the same people train and test; --split subject keeps them apart")
    return Pools(*(torch.nonzero(one).flatten() for one in (~testing, testing & ~testing, testing)))


def _by_class(labels: Sequence[int], together: Sequence[str]) -> dict[int, dict[str, list[int]]]:
    """Class -> performance -> rows."""
    found: dict[int, dict[str, list[int]]] = {}
    for row, (label, performance) in enumerate(zip(labels, together, strict=True)):
        found.setdefault(label, {}).setdefault(performance, []).append(row)
    return dict(sorted(found.items()))


def _order(value: str) -> tuple[int, str]:
    """Numbers by size, then texts."""
    return (int(value), "") if value.isdecimal() else (1 << 62, value)


def held_out(labels: Sequence[int], together: Sequence[str], share: float, seed: int) -> list[int]:
    """Rows of all clips of a fraction `share` of each class's performances, at least one if the class has two or more."""
    rows: list[int] = []
    for label, of_class in _by_class(labels, together).items():
        count = min(max(round(share * len(of_class)), 1), len(of_class) - 1)
        drawn = np.random.default_rng([seed, label]).permutation(sorted(of_class))[:count].tolist()
        rows += sorted(row for performance in drawn for row in of_class[performance])
    return rows


def performances(prepared: Prepared, clips: Tensor) -> list[str]:
    """Identifies the performance of each clip, shared by all its cameras; the clip's name if its numbers are unknown.

    A subject with a camera or a replication identifies a performance, and so does a setup with a replication.
    """
    columns = [prepared.numbers[name][clips].tolist() for name in ("setup", "subject", "replication", "camera")]
    labels, names = prepared.clips.labels[clips].tolist(), [prepared.clips.names[clip] for clip in clips.tolist()]
    return [
        f"{setup}/{subject}/{replication}/{label}" if (subject and (replication or camera)) or (setup and replication) else name
        for name, label, setup, subject, replication, camera in zip(names, labels, *columns, strict=True)
    ]
