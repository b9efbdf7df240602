"""The tables of docs/formats.md: a row for every format that is registered, and every command runs on data of its format."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest

from shapmix import prepare, train
from shapmix.data.sources.find import detect_format
from shapmix.data.sources.registry import FORMATS
from tests.source_files import BUILDERS, plain

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROWS = re.findall(
    r"^\| (.+?) \| `(\w+)` \| `python -m shapmix\.prepare (.+?)` \|(?: `(.+?)`)? \|$", PAGE.read_text("utf-8"), re.MULTILINE
)
OTHERS = {
    "penn_action": partial(plain, joints=13),
    "utd_mhad": partial(plain, classes=("1", "2")),
}  # data sets in the plain form, by SOURCE
SHORT = ["--epochs", "1", "--num-frames", "8", "--network.widths", "8", "--saliency.warmup-epochs", "0", "--device", "cpu"]
SHORT += ["--drop-empty-classes"]  # the made data has two classes
SHORT += ["--schedule.warmup-epochs", "0", "--threads", "1", "--batch-size", "2", "--mix", "none"]


def test_every_format_has_a_row_and_every_row_is_read() -> None:
    assert {format for _, format, _, _ in ROWS} == set(FORMATS), "docs/formats.md: a row per registered format"
    assert set(BUILDERS) == set(FORMATS), "tests/source_files.py: a builder per registered format"
    assert len(ROWS) == PAGE.read_text("utf-8").count("shapmix.prepare ") - 1  # besides --inspect


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("tool", "format", "arguments", "training"), ROWS, ids=[row[2].split()[0] for row in ROWS])
def test_the_commands_of_a_row_run(
    tool: str, format: str, arguments: str, training: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, store, *options = shlex.split(arguments)
    OTHERS.get(source, BUILDERS[format])(Path(source))
    assert detect_format(Path(source)) == format
    assert prepare.main([source, store, *options]) == 0
    assert train.main(["--dataset", "store", "--data-root", store, *shlex.split(training), *SHORT]) == 0
