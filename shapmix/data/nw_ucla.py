"""NW-UCLA: skeleton clips of ten actions from three views, one JSON file a clip, in a folder or in its archive."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from shapmix.data.bounded import numbers, parse_json, read_file, read_table, show, tar_files
from shapmix.data.clips import DataError, Splits, join_clips
from shapmix.data.longtail import longtail_counts, longtail_list, match_list, nearest
from shapmix.data.protocols import held_out, left_over
from shapmix.layout import load_layout

CLASS_NAMES = (
    "pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down",
    "stand up", "donning", "doffing", "throw", "carry",
)  # fmt: skip
# The recordings have no actions 7 and 10: the aAA of a name is not the label plus one.
ACTION_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
N_MAX = 100
TRAIN_VIEWS = (1, 2)
HELD_OUT_SHARE = 0.1
LARGEST_FILE = 16 << 20  # bytes of a JSON clip: 15,000 frames; the longest real one has 127 kB
LARGEST_SET = 1 << 30  # bytes of all clips together, which are read at once; the real ones have 38 MB
DAMAGED = "the file is damaged, fetch it again"

_NAME = re.compile(r"(?P<performance>a(?P<action>\d\d)_s\d\d_e\d\d)_v(?P<view>\d\d)")
_log = logging.getLogger("shapmix")


@dataclass(frozen=True)
class _Clip:
    name: str
    frames: Tensor
    """[T, 1, 20, 3] float32"""
    label: int
    performance: str
    """What the views of one performance have in common: `a01_s02_e03`."""
    view: int


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


def find_clips(root: Path) -> Path:
    """The folder or the archive of JSON files that `root` names or holds."""
    if root.is_file():
        return root
    if not root.exists():
        raise DataError(f"{root}: no such folder; give the folder that holds NW-UCLA's all_sqe/ or all_sqe.tar.xz")
    for candidate in (root / "all_sqe", root / "all_sqe.tar.xz"):
        if candidate.exists():
            return candidate
    raise DataError(f"{root}: holds neither all_sqe/ nor all_sqe.tar.xz; give the folder that holds one of them")


def json_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """(path for messages, content) of every JSON file, one at a time."""
    left = LARGEST_SET
    for where, content in _folder(source) if source.is_dir() else _archive(source):
        left -= len(content)
        if left < 0:
            raise DataError(f"{source}: more than {LARGEST_SET} bytes of clips; NW-UCLA has 38 MB. Give the folder that holds it")
        yield where, content
    if left == LARGEST_SET:
        raise DataError(f"{source}: holds no .json clips; NW-UCLA has 1,484, named like a01_s01_e00_v01.json")


def read_clips(source: Path) -> dict[str, _Clip]:
    """Every clip of the folder or the archive, by name.

    Raises:
        DataError: as `parse_clip`, or a name that comes twice.
    """
    found: dict[str, _Clip] = {}
    for where, content in json_files(source):
        clip = parse_clip(where, content)
        if clip.name in found:
            raise DataError(f"{where}: a second clip of this name; remove one")
        found[clip.name] = clip
    return found


def _folder(source: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(source.glob("*.json")):
        yield str(path), read_file(path, LARGEST_FILE)


def _archive(source: Path) -> Iterator[tuple[str, bytes]]:
    for name, read in tar_files(source, ".json", LARGEST_FILE):
        yield f"{source}: {name}", read()


def parse_clip(where: str, content: bytes) -> _Clip:
    """One clip from its JSON text; every error begins with `where`."""
    stem = PurePosixPath(where.replace("\\", "/")).stem
    named = _NAME.fullmatch(stem)
    if named is None or int(named["action"]) not in ACTION_NUMBERS:
        actions = ", ".join(map(str, ACTION_NUMBERS))
        raise DataError(f"{where}: not the name of an NW-UCLA clip (aAA_sSS_eEE_vVV with AA one of {actions}); remove or rename it")
    data = parse_json(content, where, DAMAGED)
    if not isinstance(data, dict) or not {"skeletons", "label"} <= set(data):
        raise DataError(f"{where}: must be an object with the keys 'skeletons' and 'label'")
    skeletons, label = data["skeletons"], data["label"]
    if type(label) is not int or label not in range(1, len(CLASS_NAMES) + 1):
        raise DataError(f"{where}: label {show(label)} is out of range; NW-UCLA's labels are 1 to {len(CLASS_NAMES)}")
    expected = ACTION_NUMBERS.index(int(named["action"])) + 1
    if label != expected:
        raise DataError(f"{where}: label {label} contradicts the name, whose action {named['action']} has label {expected}")
    frames = torch.from_numpy(_coordinates(where, skeletons)).unsqueeze(1)
    return _Clip(stem, frames, label - 1, named["performance"], int(named["view"]))


def _coordinates(where: str, skeletons: object) -> np.ndarray:
    """[T, 20, 3] float32 of a clip's nested lists, naming the frame that does not fit."""
    if not isinstance(skeletons, list) or not skeletons:
        raise DataError(f"{where}: 'skeletons' holds no frames; remove the clip or fetch it again")
    for number, frame in enumerate(skeletons):
        joints = len(frame) if isinstance(frame, list) else 0
        if joints != 20:
            raise DataError(f"{where}: frame {number} has {joints} joints, NW-UCLA's skeleton has 20")
        if not all(isinstance(joint, list) and len(joint) == 3 for joint in frame) or not numbers(frame):
            joint, value = next((at, one) for at, one in enumerate(frame) if not _is_joint(one))
            raise DataError(f"{where}: frame {number}, joint {joint} is {show(value)}, not three numbers x y z; {DAMAGED}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused
        frames = np.array(skeletons, dtype=np.float32)
    if not np.isfinite(frames).all():
        number, joint, _ = np.argwhere(~np.isfinite(frames))[0]
        raise DataError(f"{where}: frame {number}, joint {joint} has a coordinate that is not finite; repair or remove the clip")
    if not frames.any():
        raise DataError(f"{where}: no frame holds a body, all coordinates are zero; remove the clip or fetch it again")
    return frames


def _is_joint(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and numbers([value])


def _cross_view(read: dict[str, _Clip], folder: Path) -> tuple[list[_Clip], list[_Clip]]:
    """Training and test clips, in the order of `train.csv` and `test.csv` where they exist, else by name."""
    pools: list[list[_Clip]] = []
    for table, training in (("train.csv", True), ("test.csv", False)):
        members = {name: clip for name, clip in sorted(read.items()) if (clip.view in TRAIN_VIEWS) == training}
        path = folder / table
        pools.append(_in_table_order(path, members) if path.is_file() else list(members.values()))
    return pools[0], pools[1]


def _in_table_order(path: Path, members: dict[str, _Clip]) -> list[_Clip]:
    """The clips that a table with the columns name and label lists, in its order."""
    clips: list[_Clip] = []
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
    train_pool: list[_Clip], test_pool: list[_Clip], listed: Sequence[int] | None
) -> tuple[list[_Clip], list[_Clip], list[str]]:
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
