"""Engines that train the cells of a plan: processes on this machine, SLURM jobs, or the tasks of a Ray cluster.

Whichever engine trains it, a cell is one call of `train_cell`, with its folders below the experiment's: run, log and result. An
engine that starts again trains what has no result, and resumes runs that were stopped. To add one, register a function:

    @engine("mine")
    def on_mine(cells: list[Cell], out: Path, options: EngineOptions, request: StopRequest) -> list[Cell]:
        ...  # trains every cell; returns those that failed
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import Any

import yaml
from tqdm import tqdm

from shapmix.experiments.cells import log_of, result_of, train_cell
from shapmix.experiments.plan import Cell
from shapmix.process.choices import Registry
from shapmix.process.cpu import usable_cpus
from shapmix.process.errors import RunError
from shapmix.process.files import write_whole
from shapmix.process.signals import Interruption, StopRequest, stop_requests

log = logging.getLogger("shapmix")

POLL = 1.0  # seconds between looks at the jobs of a cluster


@dataclass(frozen=True)
class EngineOptions:
    """Where the cells of an experiment are trained."""

    devices: tuple[str, ...] = ("auto",)
    """--on local: devices, each with one run at a time; `cpu cpu` runs two, with half of the cores each."""
    cluster: tuple[str, ...] = ()
    """KEY=VALUE for each cell's job. slurm: submitit's parameters, such as timeout_min=600 gpus_per_node=1 cpus_per_task=8
    slurm_partition=gpu; ray: options of a task, such as num_gpus=1 num_cpus=8, and address=HOST:PORT of the cluster."""


Engine = Callable[[list[Cell], Path, EngineOptions, StopRequest], list[Cell]]

ENGINES = Registry[Engine]("on")


def engine(name: str) -> Callable[[Engine], Engine]:
    """Registers an engine: (cells, folder of the experiment, options, stop request) -> the cells that failed."""

    def register(train: Engine) -> Engine:
        ENGINES.add(name, train)
        return train

    return register


def train_cells(cells: list[Cell], out: Path, on: str, options: EngineOptions, request: StopRequest) -> list[Cell]:
    """Trains the cells without a result on an engine; returns the failed cells.

    Raises:
        RunError: the engine cannot be used on this machine, or an option is none of its own.
        Interruption: stopped by a signal.
    """
    for folder in ("cells", "runs", "logs"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    waiting = [cell for cell in cells if not result_of(cell, out).exists()]
    log.info("%d of %d cells are done; training %d on %s", len(cells) - len(waiting), len(cells), len(waiting), on)
    return ENGINES.find(on)(waiting, out, options, request) if waiting else []


def threads_of(devices: Sequence[str]) -> int:
    """Threads of each run where one trains on each device at a time."""
    return max(1, usable_cpus() // len(devices))


@engine("local")
def on_this_machine(cells: list[Cell], out: Path, options: EngineOptions, request: StopRequest) -> list[Cell]:
    """One process at a time per device; a signal stops them with their state saved."""
    if options.cluster:
        raise RunError(f"cluster: '{options.cluster[0]}' is for --on slurm and --on ray")
    free: Queue[str] = Queue()
    for device in options.devices:
        free.put(device)
    threads = threads_of(options.devices)

    def train(cell: Cell) -> bool:
        device = free.get()
        try:
            return not request.signal and train_cell(cell, out, device, threads, request)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(options.devices)) as pool:
        done = list(tqdm(pool.map(train, cells), total=len(cells), unit="cell", disable=None))
    if request.signal and not all(done):
        raise Interruption(request.signal, f"{out}: stopped after {sum(done)} of {len(cells)} cells; the same command resumes")
    return [cell for cell, worked in zip(cells, done, strict=True) if not worked]


class CellJob:
    """A cell as a job of a cluster, in a process of its own on a node that sees the experiment's folder."""

    def __init__(self, cell: Cell, out: Path) -> None:
        self.cell, self.out = cell, out.resolve()

    def __call__(self) -> bool:
        """Trains or resumes the cell with all processors of the job, on its GPU if it has one."""
        with stop_requests() as request:
            return train_cell(self.cell, self.out, "auto", usable_cpus(), request)

    def checkpoint(self) -> Any:
        """What submitit queues again when SLURM stops the job before its end: the same cell, which resumes its run."""
        return importlib.import_module("submitit.helpers").DelayedSubmission(self)


@engine("slurm")
def on_slurm(cells: list[Cell], out: Path, options: EngineOptions, request: StopRequest) -> list[Cell]:
    """One job a cell, as one job array. The jobs outlive this command; the same command waits for them again."""
    submitit, jobs = needed("submitit", "slurm"), {}
    folder = out / "jobs"
    folder.mkdir(exist_ok=True)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        executor.update_parameters(**{"name": "shapmix", **values_of(options.cluster)})
    except (RuntimeError, NameError, TypeError) as error:  # no SLURM, an unknown parameter, a value of the wrong type
        raise RunError(f"on: slurm: {error}") from error
    for cell in cells:
        if (folder / cell.name).exists():
            job = submitit.SlurmJob(folder=folder, job_id=(folder / cell.name).read_text())
            if not job.done():
                jobs[cell.name] = job
    new = [cell for cell in cells if cell.name not in jobs]
    if new:
        with executor.batch():
            submitted = [executor.submit(CellJob(cell, out)) for cell in new]
        for cell, job in zip(new, submitted, strict=True):
            write_whole(folder / cell.name, job.job_id)
            jobs[cell.name] = job
    log.info("%d jobs submitted, %d are queued or running from before; see %s", len(new), len(cells) - len(new), folder)
    left = wait_for(cells, lambda cell: bool(jobs[cell.name].done()), request)
    if left:
        ids = " ".join(jobs[cell.name].job_id for cell in left)
        message = f"{len(left)} jobs go on; the same command waits for them again, `scancel {ids}` stops them"
        raise Interruption(request.signal, f"{out}: {message}")
    return failed(cells, out)


@engine("ray")
def on_ray(cells: list[Cell], out: Path, options: EngineOptions, request: StopRequest) -> list[Cell]:
    """One task a cell on a Ray cluster whose nodes see the experiment's folder; a signal stops the tasks with their state saved."""
    ray = needed("ray", "ray")
    given = {"num_cpus": 1, "max_retries": 2, **values_of(options.cluster)}
    address = given.pop("address", os.environ.get("RAY_ADDRESS", "auto"))
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
        task = ray.remote(CellJob.__call__).options(**given)
    except (ConnectionError, ValueError, TypeError) as error:
        raise RunError(
            f"on: ray: {error}; `ray start --head` starts a cluster, --cluster address=local one of this machine"
        ) from error
    try:
        references = {cell.name: task.remote(CellJob(cell, out)) for cell in cells}
        left = wait_for(cells, lambda cell: bool(ray.wait([references[cell.name]], timeout=0)[0]), request)
        for cell in left:
            ray.cancel(references[cell.name], force=False)  # an interrupt of the task, which stops its run
        if left:
            ray.wait([references[cell.name] for cell in left], num_returns=len(left), timeout=300)
            message = f"stopped after {len(cells) - len(left)} of {len(cells)} cells; the same command resumes"
            raise Interruption(request.signal, f"{out}: {message}")
    finally:
        ray.shutdown()
    return failed(cells, out)


def wait_for(cells: list[Cell], done: Callable[[Cell], bool], request: StopRequest) -> list[Cell]:
    """Waits until all cells are done, with a progress bar, or until a signal; returns those that are not."""
    left = list(cells)
    with tqdm(total=len(cells), unit="cell", disable=None) as bar:
        while left and not request.signal:
            left = [cell for cell in left if not done(cell)]
            bar.update(len(cells) - len(left) - bar.n)
            if left:
                time.sleep(POLL)
    return left


def failed(cells: list[Cell], out: Path) -> list[Cell]:
    """The cells without a result, after their jobs have ended; logs where each says why."""
    found = [cell for cell in cells if not result_of(cell, out).exists()]
    for cell in found:
        log.warning("%s failed; see %s and the logs of its job", cell.name, log_of(cell, out))
    return found


def needed(package: str, on: str) -> ModuleType:
    """The package that talks to a cluster.

    Raises:
        RunError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RunError(f"on: {on} needs the package {package}: pip install {package} ({error})") from error


def values_of(options: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE options as a dictionary; values are read as YAML.

    Raises:
        RunError: an option without a value.
    """
    values = {}
    for option in options:
        key, sign, value = option.partition("=")
        if not key or not sign:
            raise RunError(f"cluster: '{option}' is no KEY=VALUE, such as timeout_min=600")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RunError(f"cluster: the value of '{option}' is no YAML: {error}") from error
    return values
