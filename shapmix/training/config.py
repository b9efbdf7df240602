"""Reads a configuration: a data set's preset, a YAML file and the command line, in this order."""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import tyro
import yaml

from shapmix.process.command import program
from shapmix.process.files import write_whole
from shapmix.training.options import FREE_ON_RESUME, NOT_SAVED, ConfigError, Stage2, TrainConfig, check_config, options, plain
from shapmix.training.weights import run_of

DESCRIPTION = """Train a skeleton network with Shap-Mix.

Values are taken from the preset, then --config, then the command line. With --preset, --dataset, --resume or --config, --help shows
the values that result."""

LARGEST_FILE, MOST_KEYS = 1 << 20, 1000  # bytes and keys of a configuration
OPTIONS = frozenset(options(TrainConfig()))
PRESETS = Path(__file__).parent / "presets"
OF_A_START = ("init_from", "stage2", "reset", "freeze", "saliency_from", "baselines")  # those of a first stage are not the second's


def presets() -> list[str]:
    """Names for --preset."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Preset, then the resumed run, then the file, then the command line; the later wins.

    Raises:
        ConfigError: an unreadable file, or values that contradict each other.
        SystemExit: an unknown key (the message names the nearest) or a value of the wrong type.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=_path)
    early.add_argument("--resume", type=_path)
    early.add_argument("--dataset")
    early.add_argument("--preset")
    early.add_argument("--init-from", "--init_from", type=_path)
    early.add_argument("--stage2", type=lambda text: None if text == "None" else text)
    early.add_argument("--run-dir", "--run_dir")
    known, _ = early.parse_known_args(argv)
    if known.resume is not None and known.run_dir is not None:
        raise ConfigError(f"run_dir: --resume {known.resume} resumes in that directory; omit --run-dir")
    files = []
    if known.resume is not None:
        files.append(known.resume / "config.yaml")
    if known.config is not None:
        files.append(known.config)
    given = [(str(path), _read_yaml(path)) for path in files]
    if known.init_from is not None and known.resume is None:
        given = [*_of_first_stage(known.init_from, known.stage2), *given]
    dataset = known.dataset or next((values["dataset"] for _, values in reversed(given) if "dataset" in values), "synthetic")
    name = known.preset or dataset
    if known.preset is not None and known.preset not in presets():
        raise ConfigError(f"preset: '{known.preset}' is unknown; give one of {', '.join(presets())}")
    if name in presets():  # an unknown data set is reported by the parser below
        # an explicit preset overrides the resumed configuration, which may then reject it
        place = 1 if known.preset is not None and known.resume is not None else 0
        given.insert(place, (f"preset {name}", _read_yaml(PRESETS / f"{name}.yaml")))
    config = TrainConfig()
    for name, values in _with_second_stage(given, known.stage2):
        network = values.get("network")
        halves = isinstance(network, dict) and "halve" in network
        config = _of_these_widths(_parse_file(name, values, config), config, halves)
    whose = " and ".join(name for name, _ in given) or "no preset"
    given_above = config
    config = _parse(
        list(argv), config, prog=program("train"), description=f"{DESCRIPTION} The defaults below are those of {whose}."
    )
    config = _of_these_widths(config, given_above, any(argument.startswith("--network.halve") for argument in argv))
    check_config(config)
    return config


def _of_first_stage(path: Path, stage2: str | None) -> list[tuple[str, dict[str, Any]]]:
    """What a run takes over from the run directory whose weights it starts from: its network, and with a second stage all of it."""
    run = run_of(path)
    if run is None:
        return []
    values = _read_yaml(run / "config.yaml")
    if stage2 is None:
        values = {key: value for key, value in values.items() if key == "network"}
    return [(str(run / "config.yaml"), {key: value for key, value in values.items() if key not in OF_A_START})]


def _with_second_stage(given: list[tuple[str, dict[str, Any]]], stage2: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files with the preset of a second stage: before the file that names it, and after all of them if the command line does.

    Raises:
        ConfigError: an unknown stage.
    """
    for name, values in given:
        if stage2 is None and isinstance(values.get("stage2"), str):
            yield _second_stage(values["stage2"], f"{name}: ")
        yield name, values
    if stage2 is not None:
        yield _second_stage(stage2, "")


def _second_stage(name: str, where: str) -> tuple[str, dict[str, Any]]:
    if name not in get_args(Stage2):
        raise ConfigError(f"{where}stage2: '{name}' is unknown; give one of {', '.join(get_args(Stage2))}")
    return f"preset {name}", _read_yaml(PRESETS / "stage2" / f"{name}.yaml")


def _path(text: str) -> Path | None:
    """A path; the word None stands for no path, as for the parser of all options."""
    return None if text == "None" else Path(text)


def _of_these_widths(config: TrainConfig, before: TrainConfig, halves: bool) -> TrainConfig:
    """`halve` belongs to the widths that it was set with: new widths alone reset it."""
    if halves or config.network.widths == before.network.widths:
        return config
    return replace(config, network=replace(config.network, halve=None))


def changed_on_resume(before: TrainConfig, now: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Option -> (value that the run had, value that it goes on with), of those that differ.

    Raises:
        ConfigError: one that a run keeps.
    """
    old, new = options(before), options(now)
    changed = {key: (old[key], new[key]) for key in new if old[key] != new[key] and key not in NOT_SAVED}
    for key, (had, wanted) in changed.items():
        if key not in FREE_ON_RESUME:
            raise ConfigError(
                f"{key}: the run was started with {had} and cannot go on with {wanted}; "
                "leave it out, or start a new run with --run-dir"
            )
    return changed


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved configuration as YAML that --config takes, whole or not at all."""
    values = {key: value for key, value in plain(asdict(config)).items() if key not in NOT_SAVED}
    write_whole(path, yaml.safe_dump(values, sort_keys=False))


def _parse(arguments: list[str], default: TrainConfig, prog: str, description: str = DESCRIPTION) -> TrainConfig:
    return tyro.cli(TrainConfig, args=arguments, default=default, prog=prog, description=description, console_outputs=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: more than {LARGEST_FILE} bytes are no configuration")
    try:
        values = yaml.safe_load(content)
    except Exception as error:  # YAML's constructors raise whatever Python makes of a value, such as KeyError for !!bool x
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys to values, not a {type(values).__name__}")
    _check_values(path, values)
    return values


def _check_values(path: Path, values: dict[Any, Any], group: str = "") -> None:
    """That a file holds names, values and lists of values, in groups one deep; aliases may make a large tree of a small file."""
    if len(values) > MOST_KEYS:
        raise ConfigError(f"{path}: {group or 'the file'} has {len(values)} keys, more than there are options")
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: keys are names of options, not {_short(key)}")
        if isinstance(value, dict):
            if key.replace("-", "_") in OPTIONS:
                raise ConfigError(f"{path}: {_short(key)}: a value or a list of values, not a group")
            if group:
                raise ConfigError(f"{path}: {group}.{_short(key)} is a group inside a group; the options of {group} are values")
            _check_values(path, value, key)
            continue
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, (str, int, float, bool, type(None))):
                raise ConfigError(f"{path}: {_short(key)}: a value or a list of values, not a {type(item).__name__} in one")
            if isinstance(item, int) and item.bit_length() > 64:
                raise ConfigError(f"{path}: {_short(key)}: a number of {item.bit_length()} bits is out of range")


def _short(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _parse_file(name: str, values: dict[str, Any], default: TrainConfig) -> TrainConfig:
    with parser_errors(name):
        return _parse(list(as_arguments(values)), default, prog=name)


@contextmanager
def parser_errors(name: str) -> Iterator[None]:
    """Errors of the parser inside are those of the file `name`, in one line, and not those of the command line.

    Raises:
        ConfigError: an unknown key (the message names the nearest), a value of the wrong type, or values that contradict each
            other.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            yield
    except SystemExit:
        # without the frame around the message, of whichever characters
        words = re.sub(r"[╭╮╰╯│─+|]|-{3,}", " ", said.getvalue()).partition("For full helptext")[0].split()
        raise ConfigError(f"{name}: {' '.join(words)[:600]}") from None
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def as_arguments(values: dict[str, Any], prefix: str = "--") -> Iterator[str]:
    """Nested YAML -> the arguments that say the same, so that file and command line share one parser and its errors."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from as_arguments(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}" if value else f"{prefix}no-{key}"
        else:
            yield f"{prefix}{key}"
            yield from (str(item) for item in (value if isinstance(value, list) else [value]))
