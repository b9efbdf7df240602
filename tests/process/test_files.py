"""Files that are whole or absent, and folders that one process writes at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shapmix.process.files import InUseError, named, only_writer, whole_file, write_whole

HOLD = """
import sys, time
from pathlib import Path
from shapmix.files import only_writer
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
    assert (tmp_path / "lock").exists()  # what a killed process leaves holds nobody up
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
        assert "this file system has no locks (No locks available)" in caplog.text


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "before")
    with pytest.raises(AttributeError), whole_file(path) as file:
        file.written(b"after")  # type: ignore[attr-defined]
    assert path.read_text() == "before"
    with whole_file(path) as first, whole_file(path) as second:  # names of one's own
        first.write(b"first")
        second.write(b"second")
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, named(tmp_path / "x.csv"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "x.csv")
