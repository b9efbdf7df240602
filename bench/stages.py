"""Items that are measured within a time budget, a record that is on disk after each of them, and commands with a time limit."""

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
KEY = ("tree", "card", "torch", "triton", "workload")  # what two measurements share that may stand side by side


class Judged(NamedTuple):
    """What a check found, and why where it is not green."""

    verdict: Verdict
    reason: str = ""


GREEN = Judged("green")


class CannotRunError(RuntimeError):
    """An item cannot be measured here or now; the message says why."""


@dataclass(frozen=True)
class Item:
    """Something to measure.

    Attributes:
        name: in the record.
        estimate: seconds that it takes; it is not begun where fewer are left.
        run: is given the seconds that are left, returns what is recorded.
    """

    name: str
    estimate: float
    run: Callable[[float], Content]


class Record:
    """A results file: what was measured of each version on each card, item by item; whole on disk after each.

    Args:
        path: of the file. Runs of other versions, cards or workloads that it holds are kept.
        command: that measures.
        workload: what is measured; runs of another workload are other runs.
        version: the commit, where the checkout is no repository.

    Raises:
        ValueError: the file holds something else.
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
            "verdict": {"word": "unproved", "reason": "nothing was compared with the reference yet"},
            "items": {},
        }
        self.run = self._kept(own)

    @property
    def items(self) -> dict[str, Content]:
        """What was measured, and why what was not."""
        found: dict[str, Content] = self.run["items"]
        return found

    def has(self, name: str) -> bool:
        """Whether an item need not be measured again."""
        return not {"not run", "error"} & self.items.get(name, {"not run": ""}).keys()

    def add(self, name: str, content: Content) -> None:
        self.items[name] = content
        self.write()

    def write(self) -> None:
        write_json(self.path, {"runs": self.runs})

    def reload(self) -> None:
        """What another process added to the file."""
        self.runs = read_runs(self.path)
        self.run = self._kept(self.run)

    def _kept(self, own: Content) -> Content:
        """The file's run that has all of `KEY` in common with this one, else this one."""
        for run in self.runs:
            if all(run.get(key) == own[key] for key in KEY):
                return run
        self.runs.append(own)
        return own


def read_runs(path: Path) -> list[Content]:
    """Of a results file.

    Raises:
        ValueError: it is none.
    """
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results file of bench.headline or bench.gpu ({error!r}): give another") from error


def walk(items: Sequence[Item], record: Record, deadline: float, *, after: Callable[[], None] = lambda: None) -> None:
    """Measures one item after the other, whatever becomes of them; leaves out what the record has and what does not fit.

    Args:
        deadline: of `time.monotonic()`.
        after: is called after each item.
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
        except Exception as error:  # one item that fails does not take the others along
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
    """A command that runs meanwhile, behind others; killed at the end with everything that it started."""
    running = Background(["nice", "-n", "10", *command], {**os.environ, **(environment or {})})
    try:
        yield running
    finally:
        running.end()


def run_command(command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> Finished:
    """One command in the repository's root; at its limit it is killed with everything that it started."""
    return run_commands({"": command}, limit, workers=1, environment=environment)[""]


def run_commands(
    commands: Mapping[str, Sequence[str]], limit: float, *, workers: int, environment: Mapping[str, str] | None = None
) -> dict[str, Finished]:
    """Several commands, `workers` at a time in the order given, all within one limit."""
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
    """A running process that leads a group of its own."""

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
        """What it left; killed first where it still runs."""
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
    """Whole or not at all: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of JSON that a command wrote until it ended; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
