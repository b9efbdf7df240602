"""The console script: `shapmix COMMAND ...` is `python -m shapmix.COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from shapmix.process.choices import nearest
from shapmix.process.command import FAILED, finish

COMMANDS = {
    "prepare": "convert a data set of any known format to a store",
    "train": "train a network with Shap-Mix",
    "evaluate": "measure runs, and ensembles of runs, on their test split",
    "predict": "classify recordings, with the contribution of each body part",
    "explain": "explain a network with Shapley values of body parts, on one page",
    "report": "summarise a run on one page: curves, accuracy, confusion, saliency, mixed clips",
    "export": "write a trained network as ONNX or .pt2",
    "experiment": "train a grid of runs and tabulate their results",
    "doctor": "show what this machine can run, and compare it with the reference",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command named by the first argument; returns its exit code, 2 for an unknown command."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in COMMANDS:
        command: Callable[[Sequence[str]], int] = import_module(f"shapmix.{name}").main
        return command(rest)
    if name in ("--help", "-h"):
        print("usage: shapmix COMMAND [OPTIONS]\n\nshapmix COMMAND --help shows the options of a command.\n")
        print("\n".join(f"  {command:<12}{purpose}" for command, purpose in COMMANDS.items()))
        return 0
    hint = nearest(name, COMMANDS) or f"; give one of {', '.join(COMMANDS)}"
    return finish(f"error: unknown command '{name}'{hint}", FAILED)


if __name__ == "__main__":
    sys.exit(main())
