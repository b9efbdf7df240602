"""What a data set holds, found in seconds from its lists and a sample of its clips, without converting it."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from shapmix.data.pools import RANDOM, offered_names
from shapmix.data.sources import Recording, Source
from shapmix.data.sources.find import AUTO, detect_format, find_source
from shapmix.data.sources.registry import FORMATS, SourceOptions
from shapmix.data.store import NUMBERS
from shapmix.data.store_writer import PrepareError, check_offset, check_third_coordinate, how_to_declare_scores
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import BUILT_IN, Layout, load_layout

SAMPLE, SECONDS = 200, 3.0  # clips that are read, and for how long at most
SHOWN_CLASSES, SHOWN_DAMAGE, SHOWN_LISTS = 16, 3, 12
BATCH = 64  # the trainer's default


@dataclass(frozen=True)
class Sample:
    """Clips that were read: recordings by their index in the source, and the errors of the others."""

    read: Mapping[int, Recording]
    damaged: Sequence[str]
    seconds: float

    def shapes(self, axis: int) -> list[int]:
        return sorted(recording.joints.shape[axis] for recording in self.read.values())

    def columns(self) -> dict[str, list[str]]:
        """Known values of every column, of the clips of the sample."""
        found: dict[str, list[str]] = {}
        for recording in self.read.values():
            numbers = {name: str(value) if (value := getattr(recording, name)) else "" for name in NUMBERS}
            for name, text in {**numbers, **recording.columns}.items():
                found.setdefault(name, []).append(text)
        return {name: values for name, values in found.items() if len({*values} - {""}) > 1}


@dataclass(frozen=True)
class Inspected:
    """An opened data set and a sample of it.

    Attributes:
        path, asked, options: what the command was given; `asked` is the format, or auto.
        format: name of the format.
        source: the data set; with any layout if `known` is False, because only the clips are looked at.
        known: whether the skeleton is known.
        sample: clips of it.
    """

    path: Path
    asked: str
    options: SourceOptions
    format: str
    source: Source
    known: bool
    sample: Sample

    def joints(self) -> list[int]:
        return sorted({*self.sample.shapes(2)})

    def fitting_layouts(self) -> list[str]:
        """Built-in layouts with as many joints and as many dimensions as the clips have."""
        scores = self.source.scores or self.misses_scores()
        dimensions = {coordinates - scores for coordinates in self.sample.shapes(3)}
        known = [(name, load_layout(name)) for name in BUILT_IN]
        return [
            name
            for name, one in known
            if [one.num_joints] == self.joints() and (not one.dimensions or dimensions <= {*one.dimensions})
        ]

    def misses_scores(self) -> bool:
        """Whether `--scores` may be missing: the third of three coordinates is from 0 to 1, and the others are not."""
        joints = [recording.joints for recording in self.sample.read.values()]
        if "scores" not in FORMATS[self.format].options or self.source.scores or self.options.depth:
            return False
        if {*self.sample.shapes(3)} != {3}:
            return False
        within = all(clip[..., 2].min() >= 0 and clip[..., 2].max() <= 1 for clip in joints)
        return within and any(clip[..., 2].any() and (clip[..., :2].min() < 0 or clip[..., :2].max() > 1) for clip in joints)


def inspect_source(path: Path, format: str = AUTO, options: SourceOptions | None = None) -> str:
    """The text of `python -m shapmix.prepare --inspect`: what `path` holds, and the commands to type next.

    Raises:
        DataError: no data set of a known format, or one that cannot be opened.
    """
    options = options or SourceOptions()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    name = detect_format(path) if format == AUTO else format
    source, known = _opened(path, name, options)
    if not source.names:
        raise DataError(f"{path}: contains no recordings")
    seen = Inspected(path, format, options, name, source, known, read_sample(source))
    lines = {
        "source": str(path),
        "format": f"{name}: {FORMATS[name].about}",
        "skeleton": _skeleton(seen),
        "clips": f"{len(source.names):,}",
        **_sampled(seen),
        **_classes(source),
        "splits": _splits(source, seen.sample),
        "damaged": _damaged(seen.sample),
    }
    width = max(map(len, lines)) + 2
    text = "\n".join(f"{key:<{width}}{value}" for key, value in lines.items())
    return "\n".join([text, *_note(seen), "", "next:", *_commands(seen)])


def read_sample(source: Source) -> Sample:
    """Reads up to `SAMPLE` clips, evenly spaced, for at most `SECONDS` seconds."""
    begin = time.monotonic()
    read: dict[int, Recording] = {}
    damaged = []
    for index in dict.fromkeys(np.linspace(0, len(source.names) - 1, min(SAMPLE, len(source.names))).round().astype(int).tolist()):
        try:
            read[index] = source.read(index)
        except DataError as error:
            damaged.append(str(error))
        if time.monotonic() - begin > SECONDS:
            break
    return Sample(read, damaged, time.monotonic() - begin)


def _opened(path: Path, name: str, options: SourceOptions) -> tuple[Source, bool]:
    """The source, and whether its skeleton is known; if not, it is opened with any."""
    try:
        return find_source(path, name, options), True
    except DataError as error:
        if options.layout is not None:
            raise
        try:
            return find_source(path, name, replace(options, layout=BUILT_IN[0])), False
        except DataError:
            raise error from None


def _skeleton(seen: Inspected) -> str:
    joints, fitting, layout = seen.joints(), seen.fitting_layouts(), seen.source.layout
    remedy = f"give --layout with {'one of ' + ', '.join(fitting) + ' or ' if fitting else ''}your own .toml file"
    counts = ", ".join(map(str, joints)) or "unknown number of"
    if not seen.known:
        return f"{counts} joints; the layout is not known: {remedy}"
    known = layout if isinstance(layout, Layout) else load_layout(layout)
    text = f"{known.name}, {known.num_joints} joints in {len(known.parts)} parts ({_origin(seen)})"
    if joints not in ([], [known.num_joints]):
        return f"{text}; but clips have {counts} joints: {remedy}"
    scores = seen.source.scores or seen.misses_scores()
    declare = how_to_declare_scores(seen.source)
    wrong = next(filter(None, (known.wrong_dimension(c, scores=scores, declare=declare) for c in seen.sample.shapes(3))), None)
    return f"{text}; {wrong}" if wrong else text


def _origin(seen: Inspected) -> str:
    """Where the layout comes from."""
    if seen.options.layout is not None:
        return "given with --layout"
    if isinstance(seen.source.layout, Layout):
        return "built from the files"
    if seen.source.layout not in BUILT_IN:
        return "comes with the data"
    asked = FORMATS[seen.format].asks_layout(seen.path)
    return "assumed, or named by the files; --layout gives another" if asked else "that of the format"


def _sampled(seen: Inspected) -> dict[str, str]:
    source, sample = seen.source, seen.sample
    if not sample.read:
        return {}
    coordinates, people, lengths = (sample.shapes(axis) for axis in (3, 1, 0))
    text = ", ".join(map(str, sorted({*coordinates}))) + (", the last one is a score" if source.scores else "")
    if seen.misses_scores():
        text += "; the third is from 0 to 1 in every clip, like a score: give --scores, or --depth if it is a depth"
    else:
        try:
            for index, recording in sample.read.items():
                check_third_coordinate(source, source.names[index], recording.joints, seen.options.depth)
        except PrepareError as error:
            text += f"; {error}"
    several = f"{people[0]} to {people[-1]} per clip; absent ones are padded with zeros"
    return {
        "people": str(people[0]) if people[0] == people[-1] else several,
        "coordinates": text,
        "frames": f"{lengths[0]} / {median(lengths):g} / {lengths[-1]} (min / median / max)",
    }


def _classes(source: Source) -> dict[str, str]:
    counts = Counter(source.labels)
    names, order = source.class_names, [label for label, _ in counts.most_common()]
    largest, smallest = order[0], order[-1]
    shown = [f"{names[label]} {counts[label]}" for label in order]
    if len(shown) > SHOWN_CLASSES:
        half = SHOWN_CLASSES // 2
        shown = [*shown[:half], f"... {len(shown) - 2 * half} more ...", *shown[-half:]]
    empty = [name for label, name in enumerate(names) if label not in counts]
    text = f"{len(counts)}: {'; '.join(shown)}"
    if empty:
        text += f"; {len(empty)} without clips: {', '.join(empty[:SHOWN_CLASSES])}{', ...' if len(empty) > SHOWN_CLASSES else ''}"
    if len(counts) == 1:
        text += "; a classifier needs at least two"
    ratio = counts[largest] / counts[smallest]
    return {"classes": text, "imbalance": f"{ratio:.3g} (largest class / smallest class)"}


def _splits(source: Source, sample: Sample) -> str:
    lists = [f"{name} ({len(clips):,})" for name, clips in source.splits.items()]
    if len(lists) > SHOWN_LISTS:
        lists = [*lists[:SHOWN_LISTS], f"{len(lists) - SHOWN_LISTS} more"]
    options = offered_names(source.names, source.splits, sample.columns())
    return f"lists {', '.join(lists) or 'none'}; --split takes {', '.join(options)}; --fold 1/5"


def _damaged(sample: Sample) -> str:
    if not sample.damaged:
        return "none of the clips that were read"
    shown = "; ".join(sample.damaged[:SHOWN_DAMAGE])
    return f"{len(sample.damaged)} of the {len(sample.read) + len(sample.damaged)} clips that were read, such as: {shown}"


def _note(seen: Inspected) -> list[str]:
    read = len(seen.sample.read) + len(seen.sample.damaged)
    if read == len(seen.source.names):
        return []
    what = "people, coordinates, frames, columns and damage"
    return [f"({what} are those of a sample: {read} clips, read in {seen.sample.seconds:.1f} s)"]


def _commands(seen: Inspected) -> list[str]:
    """`prepare` and `train`, as they are typed."""
    source = seen.source
    store = f"{seen.path.resolve().name.partition('.')[0] or 'clips'}.store"
    given = [] if seen.asked == AUTO else ["--format", seen.asked]
    for option, value in seen.options.given().items():
        given += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    if not seen.known:
        given += ["--layout", [*seen.fitting_layouts(), "LAYOUT.toml"][0]]
    try:
        check_offset(source, None)
    except DataError:
        given += ["--label-offset", "1"]
    if seen.misses_scores():
        given.append("--scores")
    if seen.sample.damaged:
        given.append("--skip-damaged")
    training = ["--dataset", "store", "--data-root", store, *_split_options(source, seen.sample)]
    if len({*source.labels}) < len(source.class_names) - ("--label-offset" in given):
        training.append("--drop-empty-classes")
    if len(source.names) < 4 * BATCH:
        training += ["--batch-size", str(max(4, (1 << (len(source.names) // 4).bit_length()) // 2))]
    return [
        f"  python -m shapmix.prepare {shlex.join([str(seen.path), store, *given])}",
        f"  python -m shapmix.train {shlex.join(training)}",
    ]


def _split_options(source: Source, sample: Sample) -> list[str]:
    """The first choice for such data: its own lists, a published protocol, other people, or a random split."""
    lists = source.splits
    if "train" in lists and {"test", "val"} & {*lists}:
        return []
    choices = offered_names(source.names, lists, sample.columns())
    pairs = [(name, name.replace("train", ending)) for name in lists for ending in ("test", "val") if "train" in name]
    if choices[0] == RANDOM and (pair := next((one for one in pairs if one[1] in lists), None)):
        return ["--train-split", pair[0], "--test-split", pair[1]]
    if choices[0] == RANDOM and "subject" in choices:
        return ["--split", "subject", "--test-share", "0.2"]
    return ["--split", choices[0]]
