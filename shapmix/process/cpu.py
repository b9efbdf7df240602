"""Computing on the CPU: threads and memory of the process, the load of the machine, and CPU features as listed by Linux."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from shapmix.process.memory import keep_freed_memory
from shapmix.process.openmp import cpus_of_affinity

CPUINFO = Path("/proc/cpuinfo")
SCHEDSTAT = Path("/proc/self/schedstat")  # of the main thread: nanoseconds on a CPU, nanoseconds waiting for one, time slices
OWN_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
BF16_PRODUCTS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}  # flags of x86 and of Arm
WAITED_LONG = 0.1  # share of the time: more than the start of a process on a quiet machine


class Load(NamedTuple):
    """The load of the machine in words, with what to do about it where it is high."""

    words: str
    is_high: bool


def prepare_cpu(threads: int | None = None) -> None:
    """Prepares this process for training on the CPU, as the commands do: call it once, before the first step.

    Threads are set, and freed memory is kept for reuse (`shapmix.process.memory.keep_freed_memory`).

    Args:
        threads: CPU threads of torch, and of the kernels. None leaves them as they are, but at most `usable_cpus`, unless
            OMP_NUM_THREADS is set.

    Raises:
        ValueError: fewer than one thread, or a setting of OpenMP under which several threads would wait for ever.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; give at least 1, or None to leave them as they are")
    if threads is None:
        threads = torch.get_num_threads()
        if "OMP_NUM_THREADS" not in os.environ:
            threads = min(threads, usable_cpus())
    _check_openmp(threads)
    torch.set_num_threads(threads)
    keep_freed_memory()


def _check_openmp(threads: int) -> None:
    """That OpenMP starts as many threads as torch counts on: the convolutions of oneDNN wait for each of them.

    Raises:
        ValueError: it may start fewer.
    """
    dynamic, most = os.environ.get("OMP_DYNAMIC", "").strip(), os.environ.get("OMP_THREAD_LIMIT", "").strip()
    told = ""
    if threads > 1 and dynamic.lower() == "true":
        told = f"OMP_DYNAMIC is {dynamic}"
    elif most.isdecimal() and threads > int(most):
        told = f"OMP_THREAD_LIMIT is {most}"
    if told:
        raise ValueError(
            f"{told}: OpenMP may then start fewer threads than the {threads} that torch counts on, and convolutions wait for the "
            "missing ones for ever; unset it, or use one thread"
        )


def usable_cpus() -> int:
    """CPUs that this process may use: those of its affinity, and at most the quota of its cgroups (version 2), rounded up."""
    return max(1, min([cpus_of_affinity(), *(ceil(quota) for quota in _quotas())]))


def _quotas() -> list[float]:
    """CPUs that the process's cgroup and those around it may use, of those that limit them."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return []
    own = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    found = []
    for group in (CGROUPS / own, *(CGROUPS / parent for parent in Path(own).parents)):
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except OSError:  # no controller of CPUs, or a group that is not visible from inside its container
            continue
        if quota != "max":
            found.append(int(quota) / int(period))
    return found


def machine_load() -> Load:
    """The load of the last minute against the number of CPUs, and whether it slows this process down.

    The load also counts programs that only run where a CPU is idle, and programs on CPUs that this process may not use. It is
    therefore high only if this process has waited for a CPU as well, where the system tells (Linux).
    """
    try:
        load = os.getloadavg()[0]
    except OSError:
        return Load("unknown", False)
    cpus, usable, waited = os.cpu_count() or 1, usable_cpus(), _share_waited()
    words = f"{load:.1f} on {cpus} CPU{'' if cpus == 1 else 's'}"
    if usable < cpus:
        words += f", of which this process may use {usable}"
    if load <= usable or (waited is not None and waited < WAITED_LONG):
        return Load(words, False)
    if waited is not None:
        words += f", for one of which this process waited {waited:.0%} of its time"
    return Load(f"high, {words}: other programs slow this one down; stop them, or use --threads 1", True)


def _share_waited() -> float | None:
    """The share of its time that the main thread waited for a CPU while it could have run, or None if the system does not tell."""
    try:
        ran, waited = (int(value) for value in SCHEDSTAT.read_text().split()[:2])
    except (OSError, ValueError):
        return None
    return waited / (ran + waited) if ran + waited else None


def multiplies_bf16() -> bool | None:
    """Whether the CPU has bfloat16 multiply instructions (without them products are computed in float32); None if unknown."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((value.split() for key, _, value in lines if key.strip() in ("flags", "Features")), None)
    return None if flags is None else not BF16_PRODUCTS.isdisjoint(flags)
