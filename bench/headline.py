"""Speed-up of a whole training step over the reference, in three minutes: `python -m bench.headline --out FILE`.

Needs torch, Triton and NumPy but no build: our step uses the Triton kernels. Each item is saved as soon as it is measured. With
`--resume FILE`, items that the file has for this version and card are skipped. The table is printed at the end, also at the time
limit or after SIGTERM or SIGINT. Without a GPU, the command runs the eager paths on a few clips.

Exit code: 0 on success; 1 if an item failed or our results differ from the reference; 2 for invalid arguments; 3 if interrupted.
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
from bench.step import PUBLISHED, WholeStep, Workload, find_host_sync
from bench.tables import in_bytes, in_units, markdown
from bench.timing import quantiles, seconds
from bench.verdicts import OPS, as_result, may_show
from shapmix.training.step import WARM_UP

SECONDS = 170.0
STARTED = time.monotonic()
PRODUCT = {"cpu": 512, "cuda": 8192}  # rows and columns of the matrices
PRODUCT_CALLS = 10
EAGER_ROUNDS = 10  # upper bound: an eager step takes long and varies little
PROFILED, KERNELS = 3, 60  # steps; kernels kept, in order of time
NO_GPU = "no CUDA device"
DONE = b"\0"
OURS, OURS_FLOAT32 = "ours, bf16", "ours, float32"
EAGER, EAGER_HALF = "reference, eager, float32", "reference, eager, bf16"
COMPILED = "reference, torch.compile, bf16"
STEPS = (OURS, EAGER, EAGER_HALF, OURS_FLOAT32, COMPILED)
HEADLINES = ((OURS, EAGER), (OURS, COMPILED), (OURS_FLOAT32, EAGER), (OURS, EAGER_HALF))
COMPILING = "torch.compile was compiling in the background"
CORRECTNESS, PROFILE, COPY, PRODUCT_NAME = "correctness", "profile", "copy", "bf16 product"


def items(workload: Workload, device: torch.device, compiling: CompilingProcess | None) -> list[Item]:
    """Items to measure, most important first; estimates are for an H100."""

    def step(name: str, estimate: float, *, eager: bool, autocast: torch.dtype | None) -> Item:
        def run(left: float) -> Content:
            disturbed = compiling is not None and compiling.compiles
            found = measure_step(workload, device, eager=eager, autocast=autocast)
            return found | {COMPILING: True} if disturbed else found

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
        # before the profile, whose hooks stay in the process and slow down the launches of an eager step
        step(EAGER_HALF, 6, eager=True, autocast=HALF),
        Item(PROFILE, 8, lambda left: measure_profile(workload, device)),
        step(OURS_FLOAT32, 10, eager=False, autocast=None),
        Item(COMPILED, 6, compiled),
    ]
    return [replace(item, run=partial(measured_alone, item.run, device)) for item in found]


def measured_alone(run: Callable[[float], Content], device: torch.device, left: float) -> Content:
    """Runs an item with empty device memory, and frees its memory afterwards."""
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
    """Throughput of a product of two square bfloat16 matrices."""
    size = PRODUCT[device.type]
    left, right = (torch.randn(size, size, device=device).to(HALF) for _ in range(2))

    def run() -> None:
        for _ in range(PRODUCT_CALLS):
            left @ right

    run()
    once = min(seconds(run, device) for _ in range(3)) / PRODUCT_CALLS
    return {"size": size, "tflop_per_s": 2 * size**3 / once / 1e12}


def measure_step(workload: Workload, device: torch.device, *, eager: bool, autocast: torch.dtype | None) -> Content:
    """Wall time of whole steps, synchronised before and after each; on a GPU also peak memory and host synchronisation."""
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
        found["host_read"] = find_host_sync(step.run)
    return found


def prepared(workload: Workload, device: torch.device, *, eager: bool, autocast: torch.dtype | None) -> WholeStep:
    """A step after warm-up: compiled, captured, memory allocated."""
    step = WholeStep(workload, device, eager=eager, autocast=autocast)
    for _ in range(WARM_UP + 2 if step.captured else 2):
        step.run()
    return step


def measure_profile(workload: Workload, device: torch.device) -> Content:
    """Profiles our bf16 step: kernels (on a CPU: ops), launches and times."""
    step = prepared(workload, device, eager=False, autocast=HALF)
    return {"of": OURS, "steps": PROFILED, **profiled(step.run, device, PROFILED)}


def profiled(run: Callable[[], object], device: torch.device, steps: int) -> Content:
    """Launches and microseconds per step, in total and of the most expensive kernels."""
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
    """Adds the verdict of the comparison with the reference to every line: green, red or unverified."""
    compared = record.items.get(CORRECTNESS, {"not run": "interrupted"})
    result = as_result(record.run)
    failed = compared.get("failed", []) + [
        f"a test or a sanitizer failed for {op}" for op in OPS if may_show(result, op, "triton") == "red"
    ]
    reason = "; ".join(failed) or compared.get("not run") or compared.get("error", "")
    word = "red" if failed else "green" if record.has(CORRECTNESS) else "unverified"
    record.run["verdict"] = {"word": word, "reason": reason}
    for name in STEPS:
        if name in record.items:
            record.items[name]["verdict"] = word
    record.write()


def table(record: Record) -> str:
    """The results table: what was measured, what was not and why, and the speed-ups."""
    found, where, verdict = record.items, record.run["machine"], record.run["verdict"]
    mark = "" if verdict["word"] == "green" else f" ({verdict['word']})"
    size, launches = record.run["workload"], found.get(PROFILE, {}).get("launches")
    head = [f"whole step, {size['clips']} NTU clips", "p50", "p20 to p80", "peak memory", "launches", "host reads"]
    body = []
    for name in STEPS:
        of = found.get(name, {"not run": "interrupted"})
        if "seconds" not in of:
            body.append([name, reason_of(of), *[""] * 4])
            continue
        times = of["seconds"]
        body.append(
            [
                name + ", one CUDA graph" * of.get("captured", False) + " *" * of.get(COMPILING, False),
                in_units(times["p50"]) + mark,
                f"{in_units(times['p20'])} to {in_units(times['p80'])}",
                in_bytes(of["bytes_at_most"]) if "bytes_at_most" in of else "",
                f"{launches:.0f}" if name == OURS and launches and where["gpu"] else "",
                (of["host_read"] or "none") if "host_read" in of else "",
            ]
        )
    of_copy, of_product = (found.get(name, {"not run": "interrupted"}) for name in (COPY, PRODUCT_NAME))
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
    if any(of.get(COMPILING) for of in found.values()):
        lines.append(f"* {COMPILING}")
    if not record.has(PROFILE):
        lines.append(f"profile: {reason_of(found.get(PROFILE, {'not run': 'interrupted'}))}")
    return "\n".join(lines)


def headline(found: dict[str, Content], ours: str, theirs: str, mark: str) -> str | None:
    """The speed-up in one line, None if one of the two was not measured."""
    if any("seconds" not in found.get(name, {}) for name in (ours, theirs)):
        return None
    own, base = (found[name]["seconds"]["p50"] for name in (ours, theirs))
    return f"{ours}, is {base / own:.1f}x faster than {theirs} ({in_units(own)}, {in_units(base)}){mark}"


def reason_of(content: Content) -> str:
    return f"failed: {content['error']}" if "error" in content else f"not run: {content['not run']}"


@contextmanager
def time_limit(deadline: float, last: Callable[[], None]) -> Iterator[None]:
    """At the deadline, or on SIGTERM or SIGINT, calls `last` and exits with code 3.

    Runs in a thread, since the main thread may be blocked by a kernel.
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
    wakes = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)  # a signal writes a byte other than DONE
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
    """Parses the options and the workload."""
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file; default: the resumed file")
    parser.add_argument("--resume", type=Path, help="results file; its items are not measured again")
    parser.add_argument("--seconds", type=float, default=SECONDS if on_gpu else math.inf, help="time limit, from the start")
    parser.add_argument("--commit", help="commit of the tree if it is not a git repository")
    parser.add_argument("--clips", type=int, default=PUBLISHED.clips if on_gpu else 3, help="N, at least 3")
    parser.add_argument("--frames", type=int, default=PUBLISHED.frames, help="T, a multiple of 4, at least 8")
    parser.add_argument("--widths", type=int, nargs="+", default=PUBLISHED.widths, help="widths of the network's layers")
    parser.add_argument("--rounds", type=int, default=PUBLISHED.rounds if on_gpu else 3)
    parser.add_argument("--compiler", default="inductor" if on_gpu else "none", help="back end of torch.compile, or none")
    options = parser.parse_args(arguments)
    if options.out is None and options.resume is None:
        parser.error("--out FILE or --resume FILE is required")
    if options.clips < 3 or options.frames < 8 or options.frames % 4 or options.rounds < 1 or min(options.widths) < 8:
        parser.error("need clips >= 3, frames >= 8 and a multiple of 4, rounds >= 1, widths >= 8")
    return options, Workload(options.clips, options.frames, tuple(options.widths), options.rounds)


def open_record(options: argparse.Namespace, command: str, workload: Workload) -> Record:
    """Opens the results file, starting from the resumed one.

    Raises:
        ValueError: an existing file would be overwritten, or the resumed file is not a results file.
    """
    out: Path = options.out or options.resume
    if out.exists() and (options.resume is None or options.resume.resolve() != out.resolve()):
        raise ValueError(f"{out} exists: give --resume {out} to continue it, or a different --out")
    record = Record(options.resume or out, command, {**vars(workload), "widths": list(workload.widths)}, options.commit)
    record.path = out
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    options, workload = parse(arguments, device)
    deadline = STARTED + options.seconds if arguments is None else time.monotonic() + options.seconds
    try:
        record = open_record(options, "python -m bench.headline", workload)
    except ValueError as error:
        print(f"bench.headline: {error}", file=sys.stderr)
        return 2
    if device.type == "cuda":
        os.environ.setdefault("SHAPMIX_BACKEND", "triton")  # does not depend on the build, which may be in progress
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

        with time_limit(deadline, cut_off):
            walk(items(workload, device, compiling), record, deadline, after=partial(judge, record))
    judge(record)
    print(table(record))
    return int(record.run["verdict"]["word"] == "red" or any("error" in of for of in record.items.values()))


if __name__ == "__main__":
    sys.exit(main())
