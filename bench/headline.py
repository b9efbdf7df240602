"""How much faster a whole training step is than the reference's, in three minutes: `python -m bench.headline --out FILE`.

Needs torch, Triton and NumPy and no build: ours runs on its Triton kernels. Every item is on disk as soon as it is measured. With
`--resume FILE` what the file has of this version on this card is not measured again. A table comes last, also where the time is
over or somebody ends the command. Without a GPU the same command runs the eager paths on a few clips.

Ends with 0; with 1 where an item failed or ours does not compute what the reference computes; with 2 where the arguments are wrong;
with 3 where it was cut off.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import torch
from torch.profiler import ProfilerActivity, profile

from bench.compiled import HALF, CompilingProcess
from bench.correctness import compare
from bench.measure import COPIED, copy_bandwidth
from bench.stages import CannotRunError, Content, Item, Record, walk
from bench.step import PUBLISHED, WholeStep, Workload, without_host_reads
from bench.tables import in_bytes, in_units, markdown
from bench.timing import quantiles, seconds
from bench.verdicts import OPS, as_result, may_show
from shapmix.training.step import WARM_UP

SECONDS = 170.0
BEGUN = time.monotonic()
PRODUCT = {"cpu": 512, "cuda": 8192}  # rows and columns of the matrices
PRODUCT_CALLS = 10
EAGER_ROUNDS = 10  # at most: a step of theirs takes long, and varies little
PROFILED, KERNELS = 3, 60  # steps; kernels that are kept, those that take most time
NO_GPU = "no CUDA device"
DONE = b"\0"
OURS, OURS_FLOAT32 = "ours, bf16", "ours, float32"
EAGER, EAGER_HALF = "reference, eager, float32", "reference, eager, bf16"
COMPILED = "reference, torch.compile, bf16"
STEPS = (OURS, EAGER, EAGER_HALF, OURS_FLOAT32, COMPILED)
HEADLINES = ((OURS, EAGER), (OURS, COMPILED), (OURS_FLOAT32, EAGER), (OURS, EAGER_HALF))
BESIDE = "torch.compile compiled beside it"
CORRECTNESS, PROFILE, COPY, PRODUCT_NAME = "correctness", "profile", "copy", "bf16 product"


def items(workload: Workload, device: torch.device, compiling: CompilingProcess | None) -> list[Item]:
    """What is measured, what is worth most first; estimates are of an H100."""

    def step(name: str, estimate: float, *, eager: bool, autocast: torch.dtype | None) -> Item:
        def run(left: float) -> Content:
            beside = compiling is not None and compiling.compiles
            found = measure_step(workload, device, eager=eager, autocast=autocast)
            return found | {BESIDE: True} if beside else found

        return Item(name, estimate, run)

    def compiled(left: float) -> Content:
        if compiling is None:
            raise CannotRunError(NO_GPU if device.type == "cpu" else "--compiler none")
        return compiling.result(left)

    found = [
        Item(COPY, 4, lambda left: copy_bandwidth(device, COPIED[device.type])),
        Item(PRODUCT_NAME, 2, lambda left: measure_product(device)),
        step(OURS, 15, eager=False, autocast=HALF),
        step(EAGER, 8, eager=True, autocast=None),
        Item(CORRECTNESS, 8, lambda left: compare(workload, device)),
        # not behind the profile, whose hooks stay in the process: op by op, launches are what a step waits for
        step(EAGER_HALF, 6, eager=True, autocast=HALF),
        Item(PROFILE, 8, lambda left: measure_profile(workload, device)),
        step(OURS_FLOAT32, 10, eager=False, autocast=None),
        Item(COMPILED, 6, compiled),
    ]
    return [replace(item, run=partial(measured_alone, item.run, device)) for item in found]


def measured_alone(run: Callable[[float], Content], device: torch.device, left: float) -> Content:
    """An item's run, which finds and leaves the device's memory empty."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        return run(left)
    finally:
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def is_complete(record: Record) -> bool:
    """Whether every item was measured."""
    return all(record.has(name) for name in (COPY, PRODUCT_NAME, *STEPS, CORRECTNESS, PROFILE))


def measure_product(device: torch.device) -> Content:
    """What a product of two square bfloat16 matrices reaches."""
    size = PRODUCT[device.type]
    left, right = (torch.randn(size, size, device=device).to(HALF) for _ in range(2))

    def run() -> None:
        for _ in range(PRODUCT_CALLS):
            left @ right

    run()
    once = min(seconds(run, device) for _ in range(3)) / PRODUCT_CALLS
    return {"size": size, "tflop_per_s": 2 * size**3 / once / 1e12}


def measure_step(workload: Workload, device: torch.device, *, eager: bool, autocast: torch.dtype | None) -> Content:
    """Wall time of whole steps, the device idle before and after each; on a GPU also memory, and what the host waited for."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    step = prepared(workload, device, eager=eager, autocast=autocast)
    times = [seconds(step.run, device) for _ in range(min(workload.rounds, EAGER_ROUNDS) if eager else workload.rounds)]
    found: Content = {
        "seconds": quantiles(times),
        "rounds": len(times),
        "captured": step.captured,
        "precision": "float32" if autocast is None else "bf16",
        "losses": step.check_losses(),
    }
    if on_gpu:
        found["bytes_at_most"] = torch.cuda.max_memory_allocated(device) - before
        found["host_read"] = without_host_reads(step.run)
    return found


def prepared(workload: Workload, device: torch.device, *, eager: bool, autocast: torch.dtype | None) -> WholeStep:
    """A step behind its first runs: compiled, captured, its memory taken."""
    step = WholeStep(workload, device, eager=eager, autocast=autocast)
    for _ in range(WARM_UP + 2 if step.captured else 2):
        step.run()
    return step


def measure_profile(workload: Workload, device: torch.device) -> Content:
    """Which kernels our step in bf16 launches, how often, and how long they take; on a CPU, which ops."""
    step = prepared(workload, device, eager=False, autocast=HALF)
    return {"of": OURS, "steps": PROFILED, **profiled(step.run, device, PROFILED)}


def profiled(run: Callable[[], object], device: torch.device, steps: int) -> Content:
    """Launches and microseconds a step, all together and of the kernels that take most."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            run()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows = [
        {
            "kernel": row.key,
            "launches": row.count / steps,
            "us": round((row.self_device_time_total if on_gpu else row.self_cpu_time_total) / steps, 2),
        }
        for row in found.key_averages()
        if row.device_type.name == ("CUDA" if on_gpu else "CPU")
    ]
    rows.sort(key=lambda row: -row["us"])
    if not rows:
        raise RuntimeError("the profiler saw no kernel")
    return {
        "launches": sum(row["launches"] for row in rows),
        "us": round(sum(row["us"] for row in rows), 1),
        "kernels": rows[:KERNELS],
    }


def judge(record: Record) -> None:
    """Marks every line of the file by what the comparison with the reference found: green, red or unproved."""
    compared = record.items.get(CORRECTNESS, {"not run": "it was cut off"})
    result = as_result(record.run)
    failed = compared.get("failed", []) + [
        f"a test or a sanitizer speaks against {op}" for op in OPS if may_show(result, op, "triton") == "red"
    ]
    reason = "; ".join(failed) or compared.get("not run") or compared.get("error", "")
    word = "red" if failed else "green" if record.has(CORRECTNESS) else "unproved"
    record.run["verdict"] = {"word": word, "reason": reason}
    for name in STEPS:
        if name in record.items:
            record.items[name]["verdict"] = word
    record.write()


def table(record: Record) -> str:
    """What was measured, what was not and why, and the headlines."""
    found, where, verdict = record.items, record.run["machine"], record.run["verdict"]
    mark = "" if verdict["word"] == "green" else f" ({verdict['word']})"
    size, launches = record.run["workload"], found.get(PROFILE, {}).get("launches")
    head = [f"whole step, {size['clips']} NTU clips", "p50", "p20 to p80", "memory at most", "launches", "host reads"]
    body = []
    for name in STEPS:
        of = found.get(name, {"not run": "cut off"})
        if "seconds" not in of:
            body.append([name, reason_of(of), *[""] * 4])
            continue
        times = of["seconds"]
        body.append(
            [
                name + ", one CUDA graph" * of.get("captured", False) + " *" * of.get(BESIDE, False),
                in_units(times["p50"]) + mark,
                f"{in_units(times['p20'])} to {in_units(times['p80'])}",
                in_bytes(of["bytes_at_most"]) if "bytes_at_most" in of else "",
                f"{launches:.0f}" if name == OURS and launches and where["gpu"] else "",
                (of["host_read"] or "none") if "host_read" in of else "",
            ]
        )
    of_copy, of_product = (found.get(name, {"not run": "cut off"}) for name in (COPY, PRODUCT_NAME))
    copy = f"{of_copy['gb_per_s']:.0f} GB/s" if "gb_per_s" in of_copy else reason_of(of_copy)
    product = f"{of_product['tflop_per_s']:.3g} TFLOP/s" if "tflop_per_s" in of_product else reason_of(of_product)
    lines = [
        f"{record.run['card']}, driver {where['driver']}, torch {where['torch']}, Triton {where['triton']}, "
        f"commit {record.run['commit']}, sources {record.run['tree']}",
        f"a copy: {copy}; a product of bf16: {product}",
        "",
        markdown([head, *body]),
        "",
        *(line for pair in HEADLINES if (line := headline(found, *pair, mark))),
        f"ours against the reference in float64: {verdict['word']}{': ' * bool(verdict['reason'])}{verdict['reason']}",
    ]
    if any(of.get(BESIDE) for of in found.values()):
        lines.append(f"* {BESIDE}")
    if not record.has(PROFILE):
        lines.append(f"profile: {reason_of(found.get(PROFILE, {'not run': 'cut off'}))}")
    return "\n".join(lines)


def headline(found: dict[str, Content], ours: str, theirs: str, mark: str) -> str | None:
    """How many times faster, None where one of the two was not measured."""
    if any("seconds" not in found.get(name, {}) for name in (ours, theirs)):
        return None
    own, base = (found[name]["seconds"]["p50"] for name in (ours, theirs))
    return f"{ours}, is {base / own:.1f}x as fast as {theirs} ({in_units(own)}, {in_units(base)}){mark}"


def reason_of(content: Content) -> str:
    return f"failed: {content['error']}" if "error" in content else f"not run: {content['not run']}"


@contextmanager
def ended_at(deadline: float, last: Callable[[], None]) -> Iterator[None]:
    """Where the time is over, or SIGTERM or SIGINT come, calls `last` and ends the process with 3, whatever a kernel does.

    From a thread, as this one may wait for a kernel that does not end.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def watch() -> None:
        left = None if math.isinf(deadline) else max(deadline - time.monotonic(), 0)
        ready, _, _ = select.select([reading], [], [], left)
        if not ready or reading.recv(1) != DONE:
            last()
            os._exit(3)

    handlers = {number: signal.signal(number, lambda number, frame: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakes = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)  # a signal is a byte there, never DONE
    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakes)
        writing.send(DONE)
        watcher.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


def parse(arguments: Sequence[str] | None, device: torch.device) -> tuple[argparse.Namespace, Workload]:
    """Options, and the workload that they make."""
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file; by default the one that is resumed")
    parser.add_argument("--resume", type=Path, help="results file whose items are not measured again")
    parser.add_argument("--seconds", type=float, default=SECONDS if on_gpu else math.inf, help="from the start of the command")
    parser.add_argument("--commit", help="of the tree, where it is not a git repository")
    parser.add_argument("--clips", type=int, default=PUBLISHED.clips if on_gpu else 3, help="N, 3 or more")
    parser.add_argument("--frames", type=int, default=PUBLISHED.frames, help="T, a multiple of 4 from 8 on")
    parser.add_argument("--widths", type=int, nargs="+", default=PUBLISHED.widths, help="of the network's layers")
    parser.add_argument("--rounds", type=int, default=PUBLISHED.rounds if on_gpu else 3)
    parser.add_argument("--compiler", default="inductor" if on_gpu else "none", help="back end of torch.compile, or none")
    options = parser.parse_args(arguments)
    if options.out is None and options.resume is None:
        parser.error("--out FILE or --resume FILE is needed")
    if options.clips < 3 or options.frames < 8 or options.frames % 4 or options.rounds < 1 or min(options.widths) < 8:
        parser.error("clips are 3 or more, frames a multiple of 4 from 8 on, rounds 1 or more, widths 8 or more")
    return options, Workload(options.clips, options.frames, tuple(options.widths), options.rounds)


def open_record(options: argparse.Namespace, command: str, workload: Workload) -> Record:
    """The file that is written, which begins as the one that is resumed.

    Raises:
        ValueError: a file that would be overwritten, or that holds something else.
    """
    out: Path = options.out or options.resume
    if out.exists() and (options.resume is None or options.resume.resolve() != out.resolve()):
        raise ValueError(f"{out} exists: give --resume {out} to go on with it, or another --out")
    record = Record(options.resume or out, command, {**vars(workload), "widths": list(workload.widths)}, options.commit)
    record.path = out
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    options, workload = parse(arguments, device)
    deadline = BEGUN + options.seconds if arguments is None else time.monotonic() + options.seconds
    try:
        record = open_record(options, "python -m bench.headline", workload)
    except ValueError as error:
        print(f"bench.headline: {error}", file=sys.stderr)
        return 2
    if device.type == "cuda":
        os.environ.setdefault("SHAPMIX_BACKEND", "triton")  # whatever has been built, or is being built beside it
    record.write()
    with ExitStack() as stack:
        compiling = None
        if options.compiler != "none" and not record.has(COMPILED):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            compiling = CompilingProcess(workload, options.compiler, folder)
            stack.callback(compiling.process.end)

        def cut_off() -> None:
            print(table(record), flush=True)
            if compiling is not None:
                compiling.process.end()

        with ended_at(deadline, cut_off):
            walk(items(workload, device, compiling), record, deadline, after=partial(judge, record))
    judge(record)
    print(table(record))
    return int(record.run["verdict"]["word"] == "red" or any("error" in of for of in record.items.values()))


if __name__ == "__main__":
    sys.exit(main())
