"""How the threads of OpenMP wait for each other, which OpenMP reads from the environment once, when torch loads it.

By default a waiting thread spins for milliseconds. On a busy machine it then occupies the CPU that the thread it waits for needs
(`bench/results/shared_machine.json`). The commands of this package therefore let threads sleep while they wait if other programs
compete for the CPUs when the command starts. Results do not depend on it.

The package imports this module before torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from shapmix.process.ending import is_command

LOADAVG = Path("/proc/loadavg")  # three load averages, runnable/all threads, the last process
POLICY = "OMP_WAIT_POLICY"
WAITING = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # settings of waiting that a user may have made


def cpus_of_affinity() -> int:
    """CPUs that the system lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others_compete() -> bool:
    """Whether other programs, in the last minute and now, leave fewer CPUs than OpenMP has threads here by default.

    The load of the last minute alone also counts programs that have just ended, and programs that run now also those of a moment.
    """
    try:
        others = os.getloadavg()[0]
    except OSError:
        return False
    if LOADAVG.exists():
        others = min(others, int(LOADAVG.read_text().split()[3].partition("/")[0]) - 1)  # less this process
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    threads = int(asked) if asked.isdecimal() else cpus_of_affinity()
    return round(others) + threads > (os.cpu_count() or 1)


def _load_torch() -> bool:
    """Imports torch, and with it OpenMP; returns whether its threads sleep while they wait.

    The environment is left as it was: children decide for themselves.
    """
    sleep = is_command() and "torch" not in sys.modules and not any(name in os.environ for name in WAITING) and others_compete()
    if sleep:
        os.environ[POLICY] = "passive"
    try:
        importlib.import_module("torch")
    finally:
        if sleep:
            del os.environ[POLICY]
    return sleep


THREADS_SLEEP = _load_torch()  # of this process, while they wait, because the machine was busy when it started
