"""Registry of the data formats: one decorated reader per module; `--format`, help texts and errors list the registry.

    @source("my_format", "a folder with my.txt", fits=lambda path: (path / "my.txt").is_file())
    class MyFormat:
        def __init__(self, path: Path, *, layout: str | None = None) -> None: ...

A reader's keyword arguments are the options it takes: names of fields of `SourceOptions`. Modules in this folder are imported by
`shapmix.data.sources.find`; a reader elsewhere is registered when its module is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shapmix.data.sources import Source
from shapmix.process.choices import Registry

Opener = TypeVar("Opener", bound=Callable[..., Source])


@dataclass(frozen=True)
class SourceOptions:
    """What the files do not say; every format takes `layout`, and some of the others."""

    layout: str | None = None
    """Skeleton layout: a built-in name or a .toml file; needed unless the format defines the skeleton."""
    scores: bool = False
    """The last coordinate is the score of a pose estimator, where the format does not say so."""
    depth: bool = False
    """The third coordinate is a depth, although it looks like a score: it is between 0 and 1 with the others in pixels."""
    coordinates: int | None = None
    """Coordinates to read where a format has 2D and 3D poses; None: 3 of Toyota Smarthome, 2 of UAV-Human."""
    box_threshold: float | None = None
    """Least score of a person's box that is read from Kinetics-400; None: every box that the release contains."""
    people: int | None = None
    """People per clip, padded with zeros; None: as many as the clip with the most has, of pose tools, pyskl and mmaction2 at most
    two. These formats leave out further people; in the others a clip with more is an error."""
    train_names: Path | None = None
    """File with the names of the rows of x_train of an NTU npz, one per line."""
    test_names: Path | None = None
    """File with the names of the rows of x_test."""

    def given(self) -> dict[str, Any]:
        """The options that differ from their default."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}


class Format(NamedTuple):
    """A registered format: `about` completes "SOURCE is ...", `fits` tells whether a path looks like it, `open` reads it.

    `asks_layout` tells whether the files of a path leave the skeleton open: a network then reads them with its own.
    """

    about: str
    fits: Callable[[Path], bool]
    open: Callable[..., Source]
    options: tuple[str, ...]
    asks_layout: Callable[[Path], bool]


FORMATS = Registry[Format]("format")


def source(
    name: str, about: str, *, fits: Callable[[Path], bool], asks_layout: Callable[[Path], bool] = lambda path: False
) -> Callable[[Opener], Opener]:
    """Registers a reader: a class or function `(path, *, layout=None, ...)` that returns a `Source`.

    Args:
        name: value of `--format`.
        about: what the user gives, such as "a folder of .skeleton files".
        fits: whether an existing path looks like this format; it reads little and does not raise for other formats.
        asks_layout: whether the files of a path leave the skeleton open.

    Raises:
        ValueError: the name is already registered, or the reader does not take `layout`, or takes an unknown option.
    """

    def register(reader: Opener) -> Opener:
        arguments = inspect.signature(reader).parameters.values()
        known = [one.name for one in fields(SourceOptions)]
        options = tuple(one.name for one in arguments if one.kind is one.KEYWORD_ONLY and one.name in known)
        if "layout" not in options:
            raise ValueError(f"format '{name}' cannot be registered: its reader must take the keyword argument 'layout'")
        FORMATS.add(name, Format(about, fits, reader, options, asks_layout))
        return reader

    return register
