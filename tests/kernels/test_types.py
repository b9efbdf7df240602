"""Type checkers see the signature of every op: a wrong argument and a wrong use of the result are errors."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

from shapmix import kernels
from shapmix.kernels.dispatch import OPS

ROOT = Path(__file__).parents[2]


def wrong_calls() -> dict[str, str]:
    """What is wrong -> a line that mypy must refuse: each argument of each op, the result, a name and a missing argument."""
    lines = {}
    for op in OPS:
        parameters = inspect.signature(getattr(kernels, op)).parameters
        right = {name: f"{name}=fine" for name in parameters}
        for name in parameters:
            lines[f"{op}: {name}"] = f"kernels.{op}({', '.join((right | {name: f'{name}=wrong'}).values())})"
        lines[f"{op}: result"] = f"{op}_result: int = kernels.{op}({', '.join(right.values())})"
        lines[f"{op}: name"] = f"kernels.{op}({', '.join(right.values())}, colour=fine)"
        lines[f"{op}: missing"] = f"kernels.{op}()"
    return lines


def test_every_wrong_call_of_an_op_is_an_error(tmp_path: Path) -> None:
    lines = wrong_calls()
    head = ["from typing import Any", "from shapmix import kernels", "fine: Any = None", "wrong = object()"]
    file = tmp_path / "calls.py"
    file.write_text("\n".join([*head, *lines.values()]) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    refused = {int(line) for line in re.findall(r"calls\.py:(\d+): error", done.stdout)}
    expected = range(len(head) + 1, len(head) + 1 + len(lines))
    accepted = [what for what, line in zip(lines, expected, strict=True) if line not in refused]
    assert not accepted, done.stdout + done.stderr
    assert refused == set(expected)
