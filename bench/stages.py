"""Measurements within a time budget, a record that is saved after each of them, and commands with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench import ROOT
from bench.machine import commit, machine, tree

Content = dict[str, Any]
Verdict = Literal["green", "red", "not run"]
KEY = ("tree", "card", "torch", "triton", "workload")  # measurements are comparable if these agree


class Judged(NamedTuple):
    """The verdict of a check, with a reason unless it is green."""

    verdict: Verdict
    reason: str = ""


GREEN = Judged("green")


class CannotRunError(RuntimeError):
    """An item cannot be measured; the message says why."""


@dataclass(frozen=True)
class Item:
    """A measurement.

    Attributes:
        name: key in the record.
        estimate: expected seconds; the item is not started if less time is left.
        run: takes the seconds left and returns the content to record.
    """

    name: str
    estimate: float
    run: Callable[[float], Content]


class Record:
    """A results file with one run per version, card and workload; written atomically after each item.

    Args:
        path: the file. Existing runs of other versions, cards or workloads are kept.
        command: the command that measures.
        workload: parameters of the measurement; a different workload is a different run.
        version: the commit if the checkout is not a repository.

    Raises:
        ValueError: the file is not a results file.
    """

    def __init__(self, path: Path, command: str, workload: Content, version: str | None = None) -> None:
        self.path = path
        self.runs = read_runs(path) if path.exists() else []
        where = machine()
        own = {
            "command": command,
            "commit": version or commit(),
            "tree": tree(),
            "card": where["gpu"] or where["cpu"],
            "torch": where["torch"],
            "triton": where["triton"],
            "workload": workload,
            "machine": where,
            "verdict": {"word": "unverified", "reason": "not yet compared with the reference"},
            "items": {},
        }
        self.run = self._kept(own)

    @property
    def items(self) -> dict[str, Content]:
        """The content of each item: results, or the reason why it was not measured."""
        found: dict[str, Content] = self.run["items"]
        return found

    def has(self, name: str) -> bool:
        """Whether an item was measured successfully."""
        return not {"not run", "error"} & self.items.get(name, {"not run": ""}).keys()

    def add(self, name: str, content: Content) -> None:
        self.items[name] = content
        self.write()

    def write(self) -> None:
        write_json(self.path, {"runs": self.runs})

    def reload(self) -> None:
        """Reads the file again, with the items added by another process."""
        self.runs = read_runs(self.path)
        self.run = self._kept(self.run)

    def _kept(self, own: Content) -> Content:
        """The file's run with the same `KEY`, else this one."""
        for run in self.runs:
            if all(run.get(key) == own[key] for key in KEY):
                return run
        self.runs.append(own)
        return own


def read_runs(path: Path) -> list[Content]:
    """The runs of a results file.

    Raises:
        ValueError: it is not a results file.
    """
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a results file of bench.headline or tests.gpu ({error!r}); give a different file"
        ) from error


def walk(items: Sequence[Item], record: Record, deadline: float, *, after: Callable[[], None] = lambda: None) -> None:
    """Measures the items in order, continuing after errors; skips items that the record has or that do not fit.

    Args:
        deadline: in `time.monotonic()` seconds.
        after: called after each item.
    """
    for item in items:
        if record.has(item.name):
            continue
        begin = time.monotonic()
        left = deadline - begin
        try:
            if left < item.estimate:
                raise CannotRunError(f"it takes about {item.estimate:.0f} s, and {max(left, 0):.0f} s are left")
            content = item.run(left)
        except CannotRunError as error:
            content = {"not run": str(error)}
        except Exception as error:  # a failed item does not stop the others
            content = {"error": f"{type(error).__name__}: {error}"}
        record.add(item.name, {**content, "took": round(time.monotonic() - begin, 1)})
        after()


@dataclass(frozen=True)
class Finished:
    """How a command ended; `code` is None where it was killed at its limit, or never began."""

    code: int | None
    seconds: float
    output: str

    @property
    def last_line(self) -> str:
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "no output")


@contextmanager
def in_background(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Background]:
    """Runs a command in the background at low priority; kills it and its children on exit."""
    running = Background(["nice", "-n", "10", *command], {**os.environ, **(environment or {})})
    try:
        yield running
    finally:
        running.end()


def run_command(command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> Finished:
    """Runs one command in the repository's root; at its limit it is killed with its children."""
    return run_commands({"": command}, limit, workers=1, environment=environment)[""]


def run_commands(
    commands: Mapping[str, Sequence[str]], limit: float, *, workers: int, environment: Mapping[str, str] | None = None
) -> dict[str, Finished]:
    """Runs several commands, `workers` at a time, in order, within one common limit."""
    deadline = time.monotonic() + limit
    waiting = list(commands.items())
    running: dict[str, Background] = {}
    finished: dict[str, Finished] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, command = waiting.pop(0)
                running[name] = Background(command, {**os.environ, **(environment or {})})
            late = time.monotonic() >= deadline
            for name, process in list(running.items()):
                if late or process.has_ended():
                    finished[name] = running.pop(name).end()
            if late:
                return finished | {name: Finished(None, 0.0, "") for name, _ in waiting}
            time.sleep(0.02)
    finally:
        for process in running.values():
            process.end()
    return {name: finished[name] for name in commands}


class Background:
    """A running process in a separate process group."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="shapmix-", suffix=".log")
        self.log = Path(name)
        self.begin = time.monotonic()
        self._finished: Finished | None = None
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(descriptor)

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> Finished:
        """The result of the process, which is killed first if it is still running."""
        code = self.process.poll()
        if code is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self._finished is None:
            output = self.log.read_text(encoding="utf-8", errors="replace")
            self.log.unlink()
            self._finished = Finished(code, time.monotonic() - self.begin, output)
        return self._finished


def write_json(path: Path, content: Any) -> None:
    """Writes a file atomically: readers never see a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines that a command wrote; an incomplete last line is skipped."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
