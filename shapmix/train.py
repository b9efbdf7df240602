"""The trainer: `python -m shapmix.train`, or `torchrun --nproc-per-node N -m shapmix.train`. Reads from top to bottom."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from shapmix.kernels import BackendError
from shapmix.process import parallel
from shapmix.process.device import choose_device
from shapmix.process.errors import DataError, RunError
from shapmix.process.memory import keep_freed_memory
from shapmix.process.signals import Interruption, StopRequest, end_with_parent, stop_requests
from shapmix.skeleton.layout import LayoutError
from shapmix.training.baselines import run_with_baselines
from shapmix.training.build import check_machine
from shapmix.training.checkpoint import CheckpointError
from shapmix.training.config import ConfigError, parse_config


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0, 1 after an error, 128 + the signal's number after a signal."""
    logging.basicConfig(
        level=logging.INFO if int(os.environ.get("RANK", 0)) == 0 else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    with stop_requests() as request:  # also while an error is told: torchrun ends the other processes as soon as one is gone
        return _main(sys.argv[1:] if argv is None else argv, request)


def _main(argv: Sequence[str], request: StopRequest) -> int:
    try:
        config = parse_config(argv)
        device = choose_device(config.device)
        check_machine(config, device)
        if device.type == "cpu":
            keep_freed_memory()
        end_with_parent()
        with parallel.process_group(device):
            run_with_baselines(config, request)
    except Interruption as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (BackendError, CheckpointError, ConfigError, DataError, LayoutError, parallel.LostProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # of the files beside the checkpoints; those name themselves
        print(f"error: {error.filename or 'the run directory'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
