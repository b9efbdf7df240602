"""Throughput of reading and sampling data sets: `python -m bench.data --out FILE`.

Uses synthetic files of realistic size: the parser of raw NTU RGB+D against plain Python readers and against only counting the
lines of the same bytes; opening and sampling a store as large as the training split of NTU RGB+D 60; and the conversion of a
large npz against a copy of it, with peak memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.machine import commit, machine
from bench.timing import interleaved, quantiles
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.data.sampling import ClipSampler
from shapmix.data.sources.ntu_raw import read_skeletons
from shapmix.data.store import FRAMES, INDEX, LAYOUT, NUMBERS, VERSION, open_store
from shapmix.skeleton.layout import layout_text

CPU = torch.device("cpu")
ROUNDS = 7
CLIPS, MEAN_FRAMES = 40_091, 82
NPZ_ROWS = 20_000


def rates(calls: dict[str, Callable[[], Any]], work: float, rounds: int = ROUNDS) -> dict[str, Any]:
    """Work per second of each call, interleaved: 20%, 50% and 80% quantiles."""
    found = {}
    for name, times in interleaved(calls, CPU, budget=0.0, least=rounds, most=rounds).items():
        slow = quantiles(times)
        found[name] = {"p20": work / slow["p80"], "p50": work / slow["p50"], "p80": work / slow["p20"]}
    return {name: {at: round(rate, 1) for at, rate in rates.items()} for name, rates in found.items()}


def skeleton_text(frames: int = 100, people: int = 2) -> bytes:
    """A recording with as many digits as real ones."""
    generator = np.random.default_rng(0)
    lines = [str(frames)]
    for _ in range(frames):
        lines.append(str(people))
        for person in range(people):
            lines += [f"{72057594037937185 + person} 0 1 1 1 1 0 0.0210162 0.2050023 2", "25"]
            for row in generator.normal(size=(25, 11)):
                lines.append(" ".join(f"{value:.7g}" for value in row) + " 2")
    return "\r\n".join(lines).encode()


def field_reader(path: Path) -> list[np.ndarray]:
    """Reads like the scripts commonly used: all lines, then two arrays per joint, its position and its image coordinates."""
    lines = path.read_text().splitlines()
    found, at = [], 1
    for _ in range(int(lines[0])):
        bodies = int(lines[at])
        at += 1
        for _ in range(bodies):
            joints, colours = np.zeros((25, 3), np.float32), np.zeros((25, 2), np.float32)
            at += 2
            for joint in range(25):
                fields = lines[at].split()
                joints[joint] = np.array(fields[:3], dtype=np.float32)
                colours[joint] = np.array(fields[5:7], dtype=np.float32)
                at += 1
            found.append(joints)
    return found


def lean_reader(path: Path) -> list[np.ndarray]:
    """A fast line-by-line reader: one array per body, positions only."""
    found = []
    with path.open() as file:
        for _ in range(int(file.readline())):
            for _ in range(int(file.readline())):
                file.readline()
                joints = [file.readline().split()[:3] for _ in range(int(file.readline()))]
                found.append(np.array(joints, dtype=np.float32))
    return found


def parsing(folder: Path) -> dict[str, Any]:
    path = folder / "S001C001P001R001A001.skeleton"
    path.write_bytes(skeleton_text())
    size = path.stat().st_size / 1e6
    assert np.array_equal(read_skeletons(path.read_bytes(), "file").joints, np.stack(field_reader(path)))
    assert np.array_equal(np.stack(lean_reader(path)), np.stack(field_reader(path)))
    found = rates(
        {
            "the field's Python reader": lambda: field_reader(path),
            "a lean Python reader": lambda: lean_reader(path),
            "shapmix": lambda: read_skeletons(path.read_bytes(), "file"),
            "the bytes and their lines only": lambda: path.read_bytes().count(b"\n"),
            "NumPy's reader of numbers": lambda: np.fromstring(path.read_bytes().decode(), sep=" "),
        },
        size,
        rounds=21,
    )
    return {"unit": "MB/s on one core", "file MB": round(size, 2), "rates": found}


def made_up_store(folder: Path) -> None:
    """Writes the files of a store as `prepare` does, with random values."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.normal(MEAN_FRAMES, 30, CLIPS).astype(int), 20, 300)
    block = generator.normal(size=(1 << 14, 2, 25, 3)).astype(np.float32)
    frames = np.lib.format.open_memmap(folder / FRAMES, "w+", np.float32, (int(lengths.sum()), 2, 25, 3))
    for begin in range(0, len(frames), len(block)):
        frames[begin : begin + len(block)] = block[: len(frames) - begin]
    frames.flush()
    names = [f"S{row // 3000:03d}C001P{row % 40:03d}R{row // 40:05d}A{row % 60 + 1:03d}" for row in range(CLIPS)]
    columns = {"name": names, "label": [row % 60 for row in range(CLIPS)], "length": lengths.tolist(), "crc32": [0] * CLIPS}
    index = {
        "version": VERSION,
        "dtype": "float32",
        "scores": False,
        "class_names": [str(label) for label in range(60)],
        "splits": {},
        "source": {},
        "clips": columns | {number: [1] * CLIPS for number in NUMBERS},
    }
    (folder / INDEX).write_text(json.dumps(index))
    (folder / LAYOUT).write_text(layout_text("ntu25"))


def feeding(folder: Path) -> dict[str, Any]:
    made_up_store(folder)
    opened = interleaved({"open": lambda: open_store(folder)}, CPU, budget=0.0, least=ROUNDS, most=ROUNDS)["open"]
    store = open_store(folder).clips
    sampler = ClipSampler(store, "crop", "joint", 64)
    batches = list(epoch_batches(epoch_order(torch.arange(CLIPS), 0, 0), 64))
    for step, chosen in enumerate(batches):  # warms the page cache
        sampler.training(chosen, step)

    def epoch() -> None:
        for step, chosen in enumerate(batches):
            sampler.training(chosen, step)

    out = sampler.training(batches[0], 0)
    mean = float(store.lengths.float().mean())
    copied = torch.empty(int(64 * mean) * 150 + out.numel())
    other = torch.empty_like(copied)

    def copies() -> None:
        for _ in batches:
            other.copy_(copied)

    found = rates({"shapmix": epoch, "a copy of as many bytes, in cache": copies}, len(batches) * 64)
    return {
        "unit": "clips/s of 64 frames from NTU RGB+D clips, batches of 64",
        "threads": torch.get_num_threads(),
        "store GB": round(store.frames.nbytes / 1e9, 2),
        "rates": found,
        "seconds to open": round(median(opened), 3),
    }


def converting(folder: Path) -> dict[str, Any]:
    """Converts an npz in the common format, uncompressed."""
    generator = np.random.default_rng(0)
    x = np.zeros((NPZ_ROWS, 300, 150), np.float32)
    for row, length in enumerate(np.clip(generator.normal(MEAN_FRAMES, 30, NPZ_ROWS).astype(int), 20, 300)):
        x[row, :length] = generator.normal(size=150)
    one_hot = np.eye(60)[np.arange(NPZ_ROWS) % 60]
    path = folder / "ntu.npz"
    np.savez(path, x_train=x[:-600], y_train=one_hot[:-600], x_test=x[-600:], y_test=one_hot[-600:])
    del x
    size = path.stat().st_size / 1e6
    code = (
        "import sys; from shapmix import prepare\n"
        "code = prepare.main(sys.argv[1:])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
        "sys.exit(code)"
    )
    peaks = []

    def prepared() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        command = [sys.executable, "-c", code, str(path), str(folder / "store")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1e3)

    found = rates(
        {"shapmix, start-up included": prepared, "a copy of the file": lambda: shutil.copy(path, folder / "copy")}, size, 3
    )
    return {"unit": "MB/s of the npz", "file MB": round(size), "rates": found, "peak resident MB": round(max(peaks))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": "python -m bench.data", "commit": commit(), "machine": machine()}
    for name, measure in (("parsing", parsing), ("feeding", feeding), ("converting", converting)):
        with tempfile.TemporaryDirectory() as folder:
            result[name] = measure(Path(folder))
        for what, rate in result[name]["rates"].items():
            print(f"{name}: {what}: {rate['p50']:,.0f} {result[name]['unit']}", flush=True)
    print(f"a store of {result['feeding']['store GB']} GB opens in {result['feeding']['seconds to open']} s")
    print(f"conversion: peak memory {result['converting']['peak resident MB']} MB")
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
