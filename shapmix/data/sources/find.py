"""Detection of the format of a data set, and its opening."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from itertools import islice
from pathlib import Path
from pkgutil import iter_modules

import shapmix.data.sources as sources
from shapmix.data.sources import Source
from shapmix.data.sources.registry import FORMATS, SourceOptions
from shapmix.process.choices import check_choice
from shapmix.process.errors import DataError

AUTO = "auto"
MOST_SEEN, SHOWN_ENDINGS = 100_000, 6  # files and endings of a folder of an unknown format

for module in iter_modules(sources.__path__):  # each module registers its format
    import_module(f"{sources.__name__}.{module.name}")


def find_source(path: Path, format: str = AUTO, options: SourceOptions | None = None) -> Source:
    """Opens a data set.

    Args:
        path: file or folder.
        format: a registered format; `auto` detects it.
        options: what the files do not say; every format accepts `depth` and `people`, which `prepare` checks.

    Raises:
        DataError: the path does not exist, its format is unknown or ambiguous, an option belongs to a different format, or the
            reader fails.
        ValueError: `format` is not registered.
    """
    check_choice(FORMATS.option, format, (AUTO, *FORMATS))
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    name = detect_format(path) if format == AUTO else format
    found, given = FORMATS[name], (options or SourceOptions()).given()
    for option in given.keys() - {*found.options, "depth", "people"}:
        takers = ", ".join(other for other, entry in FORMATS.items() if option in entry.options)
        flag = "--" + option.replace("_", "-")
        raise DataError(f"{path}: the format is {name}, which does not take {flag} (only {takers}); remove it, or give --format")
    return found.open(path, **{option: value for option, value in given.items() if option in found.options})


def detect_format(path: Path) -> str:
    """Name of the only format that fits an existing path.

    Raises:
        DataError: no format fits, or several do.
    """
    fitting = [name for name, entry in FORMATS.items() if entry.fits(path)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(f"{path}: could be {' or '.join(fitting)}; choose with --format")
    raise DataError(f"{path}: unknown format; it is {_seen(path)}. Known formats: {describe_formats()}")


def _seen(path: Path) -> str:
    """What a path of an unknown format is: the endings of a folder's files, with their counts, or of a file."""
    if not path.is_dir():
        return f"a file that ends in '{path.suffix}'"
    files = islice((file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file()), MOST_SEEN)
    endings = Counter(file.suffix or "no ending" for file in files)
    counts = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(SHOWN_ENDINGS))
    return f"a folder with {counts or 'no files'} (in it and in its folders)"


def describe_formats() -> str:
    """`name: what it is` of every registered format."""
    return "; ".join(f"{name}: {entry.about}" for name, entry in FORMATS.items())
