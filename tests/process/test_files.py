"""Atomic writes, and locks of folders."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from shapmix.pictures import plots
from shapmix.process.files import InUseError, named, only_writer, whole_file, write_whole
from shapmix.shapley.explanation import Explanation
from shapmix.skeleton.layout import load_layout
from shapmix.training import metrics, scores
from shapmix.training.config import save_config
from shapmix.training.options import TrainConfig

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, time
from pathlib import Path
from shapmix.process.files import only_writer
with only_writer(Path("."), Path("lock")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_has_one_writer_and_the_message_names_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    message = f"process {holder.pid} on .* has been writing here since 20..-.*kill {holder.pid}"
    with pytest.raises(InUseError, match=message), only_writer(tmp_path, tmp_path / "lock"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "lock").exists()  # the lock file of a killed process does not block others
    with only_writer(tmp_path, tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        with pytest.raises(InUseError, match=f"process {os.getpid()} on"), only_writer(tmp_path, tmp_path / "lock"):
            pass
    assert not (tmp_path / "lock").exists()


def test_a_lock_without_a_readable_holder_is_a_lock(tmp_path: Path) -> None:
    with only_writer(tmp_path, tmp_path / "lock"):
        for content in (b"", b"[" * 4096, b"{}", b"\xff", b"null"):
            (tmp_path / "lock").write_bytes(content)
            message = "another process is writing here; wait for it, stop it, or give another folder"
            with pytest.raises(InUseError, match=message), only_writer(tmp_path, tmp_path / "lock"):
                pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_writer(tmp_path, tmp_path / "lock"):
        assert "this file system does not support locks (No locks available)" in caplog.text


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "before")
    with pytest.raises(AttributeError), whole_file(path) as file:
        file.written(b"after")  # type: ignore[attr-defined]
    assert path.read_text() == "before"
    with whole_file(path) as first, whole_file(path) as second:  # distinct temporary names
        first.write(b"first")
        second.write(b"second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]


def some_scores() -> scores.Scores:
    return scores.Scores(["a", "b"], torch.tensor([0, 1]), torch.eye(2).double(), torch.ones(2), ["x", "y"], torch.ones(2))


def explanation() -> Explanation:
    return Explanation(torch.zeros(1, 32), torch.zeros(1, dtype=torch.int64), ["a"], load_layout("ntu25"), "probability", 32)


WRITERS: dict[str, Callable[[Path], object]] = {
    "picture.png": lambda path: plots.save_figure(Figure(), path),
    "table.csv": lambda path: metrics.write_csv(path, [["a", 1]]),
    "scores.npz": lambda path: scores.save_scores(path, some_scores()),
    "explanation.npz": lambda path: explanation().save(path),
    "config.yaml": lambda path: save_config(TrainConfig(), path),
    "result.json": lambda path: scores.write_tables(path.parent, some_scores(), {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_leaves_what_was_there_where_the_disk_is_full(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_text("before")

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shapmix.process.files.synced", full)
        with pytest.raises(OSError, match="No space left") as caught:
            WRITERS[name](path)
    assert Path(caught.value.filename).parent == tmp_path
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {name: "before"}
    WRITERS[name](path)
    assert path.read_bytes() != b"before"


def test_files_are_written_by_the_one_writer() -> None:
    """Files that a command writes for its user; what a folder that is not yet the store holds is written as it comes."""
    other = re.compile(r"write_text\(|write_bytes\(|open\(\"[wx]|savefig\(path|savez\w*\(path|torch\.save\(\w+, path")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "shapmix").rglob("*.py")
        if path.name not in ("files.py", "store_writer.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if other.search(line)
    ]
    assert found == []


def test_an_error_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, named(tmp_path / "x.csv"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "x.csv")
