"""The trainer: `python -m shapmix.train`, or `torchrun --nproc-per-node N -m shapmix.train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shapmix.process import parallel
from shapmix.process.command import run_command, start_computing
from shapmix.process.signals import StopRequest, end_with_parent, stop_requests
from shapmix.training.baselines import run_with_baselines
from shapmix.training.build import check_machine
from shapmix.training.config import parse_config


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of `shapmix.process.command`."""
    with stop_requests() as request:  # also while an error is printed: torchrun stops the other processes as soon as one exits
        return run_command(lambda: train(sys.argv[1:] if argv is None else argv, request))


def train(argv: Sequence[str], request: StopRequest) -> None:
    """Trains until the configured epoch, or until a stop is requested."""
    config = parse_config(argv)
    device = start_computing(config)
    check_machine(config, device)
    end_with_parent()
    with parallel.process_group(device):
        run_with_baselines(config, request)


if __name__ == "__main__":
    sys.exit(main())
