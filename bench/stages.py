"""Commands with a time limit, stages within a time budget, and a result that is on disk after each of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
Result = dict[str, Any]
Verdict = Literal["green", "red", "not run"]


class Judged(NamedTuple):
    """How a stage ended, and why where it is not green."""

    verdict: Verdict
    reason: str = ""


GREEN = Judged("green")


@dataclass(frozen=True)
class Stage:
    """A part of the suite: adds to the result, within `limit` seconds (it is given what is left where that is less)."""

    name: str
    limit: float
    run: Callable[[Result, float], Judged]
    needs: str | None = None  # a stage that must have been green
    beside: bool = False  # runs at the same time as the stage before it


@dataclass(frozen=True)
class Finished:
    """How a command ended; `code` is None where it was killed at its limit, or never began."""

    code: int | None
    seconds: float
    output: str

    @property
    def last_line(self) -> str:
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "no output")


def run_stages(stages: Sequence[Stage], result: Result, out: Path, budget: float) -> None:
    """Runs one stage after the other, whatever becomes of them, and writes the result before and after each."""
    deadline = time.monotonic() + budget
    writing = Lock()
    result["stages"] = {
        stage.name: {"verdict": "not run", "reason": "the suite ended before it", "seconds": 0.0} for stage in stages
    }

    def run(stage: Stage) -> None:
        begin = time.monotonic()
        left = deadline - begin
        if left <= 0:
            judged = Judged("not run", f"the suite's {budget:.0f} s were spent")
        elif stage.needs is not None and result["stages"][stage.needs]["verdict"] != "green":
            judged = Judged("not run", f"it needs a green {stage.needs}")
        else:
            try:
                judged = stage.run(result, min(stage.limit, left))
            except Exception as error:
                judged = Judged("red", f"{type(error).__name__}: {error}")
        with writing:
            result["stages"][stage.name] = {**judged._asdict(), "seconds": round(time.monotonic() - begin, 1)}
            write_json(out, result)

    write_json(out, result)
    for together in side_by_side(stages):
        if len(together) == 1:
            run(together[0])
            continue
        with ThreadPoolExecutor(len(together)) as pool:
            list(pool.map(run, together))


def side_by_side(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages that run at the same time."""
    groups: list[list[Stage]] = []
    for stage in stages:
        if stage.beside and groups:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def run_command(command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> Finished:
    """One command in the repository's root; at its limit it is killed with everything that it started."""
    return run_commands({"": command}, limit, workers=1, environment=environment)[""]


def run_commands(
    commands: Mapping[str, Sequence[str]], limit: float, *, workers: int, environment: Mapping[str, str] | None = None
) -> dict[str, Finished]:
    """Several commands, `workers` at a time in the order given, all within one limit."""
    deadline = time.monotonic() + limit
    waiting = list(commands.items())
    running: dict[str, _Running] = {}
    finished: dict[str, Finished] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, command = waiting.pop(0)
                running[name] = _Running(command, {**os.environ, **(environment or {})})
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


class _Running:
    """A process that leads a group of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="shapmix-", suffix=".log")
        self.log = Path(name)
        self.begin = time.monotonic()
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
        output = self.log.read_text(encoding="utf-8", errors="replace")
        self.log.unlink()
        return Finished(code, time.monotonic() - self.begin, output)


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
