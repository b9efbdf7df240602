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
from shapmix.data.store_writer import PrepareError, check_offset, check_third_coordinate
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


def inspect_source(path: Path, format: str = AUTO, options: SourceOptions | None = None) -> str:
    """The text of `python -m shapmix.prepare --inspect`: what `path` holds, and the commands to type next.

    Raises:
        DataError: no data set of a known format, or one that cannot be opened.
    """
    options = options or SourceOptions()
    name = detect_format(path) if format == AUTO and path.exists() else format
    source, known = _opened(path, name, options)
    sample = read_sample(source)
    lines = {
        "source": str(path),
        "format": f"{name}: {FORMATS[name].about}" if name in FORMATS else name,
        "skeleton": _skeleton(source, sample, options, known),
        "clips": f"{len(source.names):,}",
        **_sampled(source, sample, options),
        **_classes(source),
        "splits": _splits(source, sample),
        "damaged": _damaged(sample),
    }
    width = max(map(len, lines)) + 2
    text = "\n".join(f"{key:<{width}}{value}" for key, value in lines.items())
    return "\n".join(
        [text, *_note(source, sample, len(source.names)), "", "next:", *_commands(path, format, options, source, sample, known)]
    )


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
    """The source, and whether its skeleton is known; if not, it is opened with any, because only the clips are looked at."""
    try:
        return find_source(path, name, options), True
    except DataError as error:
        if options.layout is not None or name not in FORMATS:
            raise
        try:
            return find_source(path, name, replace(options, layout=BUILT_IN[0])), False
        except DataError:
            raise error from None


def _layout(source: Source) -> Layout:
    return source.layout if isinstance(source.layout, Layout) else load_layout(source.layout)


def _skeleton(source: Source, sample: Sample, options: SourceOptions, known: bool) -> str:
    joints = sorted({*sample.shapes(2)})
    if not known:
        counts = ", ".join(map(str, joints)) or "unknown number of"
        return f"{counts} joints; the layout is not known: give --layout with {_fitting_layouts(joints)} or your own .toml file"
    layout = _layout(source)
    origin = (
        "given with --layout"
        if options.layout
        else "comes with the data"
        if "/" in str(source.layout)
        else "of the format, or guessed"
    )
    text = f"{layout.name}, {layout.num_joints} joints in {len(layout.parts)} parts ({origin})"
    if joints and joints != [layout.num_joints]:
        text += (
            f"; but clips have {', '.join(map(str, joints))} joints: give --layout with {_fitting_layouts(joints)} or a .toml file"
        )
    return text


def _fitting_layouts(joints: Sequence[int]) -> str:
    fitting = [name for name in BUILT_IN if [load_layout(name).num_joints] == list(joints)]
    return f"one of {', '.join(fitting)}" if fitting else "(no built-in layout has as many joints)"


def _sampled(source: Source, sample: Sample, options: SourceOptions) -> dict[str, str]:
    if not sample.read:
        return {}
    coordinates, people, frames = (sorted({*sample.shapes(axis)}) for axis in (3, 1, 0))
    text = ", ".join(map(str, coordinates)) + (", the last one is a score" if source.scores else "")
    if _like_a_score(source, sample, options):
        text += "; the third is from 0 to 1 in every clip, like a score: give --scores, or --depth if it is a depth"
    else:
        try:
            for index, recording in sample.read.items():
                check_third_coordinate(source, source.names[index], recording.joints, options.depth)
        except PrepareError as error:
            text += f"; {error}"
    lengths = sample.shapes(0)
    return {
        "people": f"{people[0]}"
        if len(people) == 1
        else f"{people[0]} to {people[-1]} per clip; absent ones are padded with zeros",
        "coordinates": text,
        "frames": f"{frames[0]} / {median(lengths):g} / {frames[-1]} (min / median / max)",
    }


def _like_a_score(source: Source, sample: Sample, options: SourceOptions) -> bool:
    """Whether `--scores` may be missing: the third of three coordinates is from 0 to 1, and the others are not."""
    if source.scores or options.depth or {*sample.shapes(3)} != {3}:
        return False
    joints = [recording.joints for recording in sample.read.values()]
    third = [clip[..., 2] for clip in joints]
    within = all(values.min() >= 0 and values.max() <= 1 for values in third) and any(values.any() for values in third)
    return within and any(clip[..., :2].min() < 0 or clip[..., :2].max() > 1 for clip in joints)


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


def _note(source: Source, sample: Sample, clips: int) -> list[str]:
    read = len(sample.read) + len(sample.damaged)
    if read == clips:
        return []
    return [
        f"(people, coordinates, frames, columns and damage are those of a sample: {read} clips, read in {sample.seconds:.1f} s)"
    ]


def _commands(path: Path, format: str, options: SourceOptions, source: Source, sample: Sample, known: bool) -> list[str]:
    store = f"{path.resolve().name.partition('.')[0] or 'clips'}.store"
    given = [] if format == AUTO else ["--format", format]
    for option, value in options.given().items():
        given += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    if not known:
        fitting = [name for name in BUILT_IN if [load_layout(name).num_joints] == sorted({*sample.shapes(2)})]
        given += ["--layout", fitting[0] if fitting else "LAYOUT.toml"]
    try:
        check_offset(source, None)
    except DataError:
        given += ["--label-offset", "1"]
    if _like_a_score(source, sample, options):
        given.append("--scores")
    if sample.damaged:
        given.append("--skip-damaged")
    training = ["--dataset", "store", "--data-root", store, *_split_options(source, sample)]
    if len({*source.labels}) < len(source.class_names) - ("--label-offset" in given):
        training.append("--drop-empty-classes")
    if len(source.names) < 4 * BATCH:
        training += ["--batch-size", str(max(4, 1 << (len(source.names) // 4).bit_length() - 1))]
    return [
        f"  python -m shapmix.prepare {shlex.join([str(path), store, *given])}",
        f"  python -m shapmix.train {shlex.join(training)}",
    ]


def _split_options(source: Source, sample: Sample) -> list[str]:
    """The first choice for such data: its own lists, a published protocol, other people, or a random split."""
    if "train" in source.splits and {"test", "val"} & {*source.splits}:
        return []
    choices = offered_names(source.names, source.splits, sample.columns())
    if choices[0] == RANDOM and "subject" in choices:
        return ["--split", "subject", "--test-share", "0.2"]
    return ["--split", choices[0]]
