"""The reference's whole step under torch.compile, in a separate process that compiles while others measure.

`python -m bench.compiled --workload JSON --compiler NAME --folder FOLDER` compiles at low priority and creates `ready` in the
folder; once `go` exists there, it measures, alone on the GPU, and writes `result.json`. It exits if its parent exits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.stages import Background, CannotRunError, Content, write_json
from bench.step import WholeStep, Workload
from bench.timing import quantiles, seconds

WARM_UP_STEPS = 4  # compile forward and backward, in eval and in training mode
SPARE_CORES = 4  # left for concurrent measurements
HALF = torch.bfloat16


class CompilingProcess:
    """The parent's handle: starts the process, triggers the measurement, reads the result."""

    def __init__(self, workload: Workload, compiler: str, folder: Path) -> None:
        self.folder = folder
        arguments = ["--workload", json.dumps(vars(workload)), "--compiler", compiler, "--folder", str(folder)]
        cores = max((os.cpu_count() or 1) - SPARE_CORES, 1)
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(cores)}
        self.process = Background([sys.executable, "-m", "bench.compiled", *arguments], environment)

    @property
    def compiles(self) -> bool:
        """Whether it is still compiling, and may use the GPU for its warm-up steps."""
        return not (self.folder / "ready").exists() and not self.process.has_ended()

    def result(self, left: float) -> Content:
        """Waits for the compilation, triggers the measurement and returns its result.

        Raises:
            CannotRunError: compilation or measurement did not finish within `left` seconds.
            RuntimeError: the process failed.
        """
        deadline = time.monotonic() + left
        self._wait_for("ready", deadline, "it is still compiling")
        (self.folder / "go").touch()
        self._wait_for("result.json", deadline, "it compiled, but was still measuring")
        found: Content = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return found

    def _wait_for(self, name: str, deadline: float, state: str) -> None:
        while not (self.folder / name).exists():
            if self.process.has_ended():
                raise RuntimeError(f"the torch.compile process exited: {self.process.end().last_line}")
            if time.monotonic() > deadline:
                raise CannotRunError(f"{state} at the time limit")
            time.sleep(0.02)


def measure(workload: Workload, compiler: str, folder: Path, device: torch.device) -> None:
    """Compiles, waits for `go`, measures."""
    starter = os.getppid()
    begin = time.monotonic()
    step = WholeStep(workload, device, eager=True, autocast=HALF, compiler=compiler)
    for _ in range(WARM_UP_STEPS):
        step.run()
    step.check_losses()
    compiled = round(time.monotonic() - begin, 1)
    (folder / "ready").touch()
    while not (folder / "go").exists():
        if os.getppid() != starter:
            return  # the parent has exited
        time.sleep(0.02)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [seconds(step.run, device) for _ in range(workload.rounds)]
    found: dict[str, Any] = {
        "seconds": quantiles(times),
        "rounds": len(times),
        "precision": "bf16",
        "losses": step.check_losses(),
        "compiler": compiler,
        "compiled in": compiled,
    }
    if device.type == "cuda":
        found["bytes_at_most"] = torch.cuda.max_memory_allocated(device)
    write_json(folder / "result.json", found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=json.loads, required=True)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.nice(10)
    workload = Workload(**{**options.workload, "widths": tuple(options.workload["widths"])})
    measure(workload, options.compiler, options.folder, torch.device("cuda:0" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
