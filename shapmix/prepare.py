"""Converts a data set to a store that opens instantly: `python -m shapmix.prepare SOURCE OUT`.

The store is written in `OUT.partial`: frames are appended to one file, and a journal has a line per complete recording. After a
stop or a kill, the same command resumes after the last line. The folder is renamed to OUT when it is complete.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shapmix.data.inspection import inspect_source
from shapmix.data.sources.find import AUTO, describe_formats, find_source
from shapmix.data.sources.registry import FORMATS, SourceOptions
from shapmix.data.store import damaged_clips, read_index
from shapmix.data.store_writer import PrepareError, prepare
from shapmix.process.command import WRONG, RegisteredName, read_options, run_command
from shapmix.process.cpu import usable_cpus
from shapmix.process.signals import Interruption


@dataclass(frozen=True)
class PrepareConfig:
    """Convert a data set of any known format to a store for `python -m shapmix.train --dataset store --data-root OUT`."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder, archive or file of the data set."""
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    """Folder of the store; must be new."""
    format: Annotated[
        str,
        RegisteredName(FORMATS, also=(AUTO,)),
        tyro.conf.arg(help=f"Format of SOURCE; auto detects it. {describe_formats()}."),
    ] = AUTO
    reading: Annotated[SourceOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=SourceOptions)
    label_offset: int | None = None
    """Label of the first class: 1 for labels 1 to K. Default: 0, and labels that start at 1 are an error."""
    dtype: Literal["float32", "float16"] = "float32"
    """float16 halves the size on disk; coordinates keep three digits. Training reads such a store into memory, as float32."""
    skip_damaged: bool = False
    """Skip and list damaged recordings; otherwise the first one is an error."""
    inspect: bool = False
    """Only print what SOURCE holds, from a sample of its clips, and the commands to type next."""
    check: bool = False
    """Only verify every checksum of the store SOURCE."""
    workers: int = field(default_factory=usable_cpus)
    """Reader threads."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    return run_command(lambda: prepare_or_check(read_options(PrepareConfig, argv, "prepare")))


def prepare_or_check(config: PrepareConfig) -> int:
    """Writes the store, or verifies one; returns the exit code."""
    if config.check:
        return check(config.source)
    if config.reading.scores and config.reading.depth:
        raise PrepareError("--scores and --depth contradict each other: give the one that the third coordinate is")
    if config.reading.people is not None and config.reading.people < 1:
        raise PrepareError(f"--people: must be at least 1, not {config.reading.people}")
    if config.inspect:
        print(inspect_source(config.source, config.format, config.reading))
        return 0
    if config.out is None:
        raise PrepareError("give the folder of the store: python -m shapmix.prepare SOURCE OUT")
    try:
        found = find_source(config.source, config.format, config.reading)
        prepare(
            found,
            config.out,
            people=config.reading.people,
            dtype=config.dtype,
            depth=config.reading.depth,
            skip_damaged=config.skip_damaged,
            label_offset=config.label_offset,
            workers=config.workers,
            options=config.reading.given(),
        )
    except KeyboardInterrupt:
        raise Interruption(signal.SIGINT, "stopped; the same command resumes") from None
    return 0


def check(folder: Path) -> int:
    """Prints every recording of a store with a wrong checksum; returns the exit code."""
    damaged = list(damaged_clips(folder))
    for name, reason in damaged:
        print(f"{folder}: recording '{name}': {reason}", file=sys.stderr)
    count = len(read_index(folder)["clips"]["name"])
    print(f"{folder}: {count - len(damaged)} of {count} recordings are intact")
    return WRONG if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
