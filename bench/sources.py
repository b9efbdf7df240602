"""Speed of reading large data sets, beside straightforward Python readers: `python -m bench.sources --out FILE`.

Uses synthetic files of realistic size: clips of Kinetics-400 (poses without identity), of Kinetics-skeleton and NTU RGB+D as
arrays, and of PKU-MMD as text; and a table of contents of Kinetics-400 with 260,000 clips, which is opened in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.data import rates
from bench.machine import commit, machine
from shapmix.data.sources import Source
from shapmix.data.sources.kinetics import Kinetics
from shapmix.data.sources.pku_mmd import PkuMmd
from shapmix.data.sources.stgcn import Stgcn

CLIPS = 200
FRAMES = 250
RECORDING_FRAMES = 3000  # of PKU-MMD; the real recordings have about 5,000
TABLE_CLIPS, TABLE_POSES, TABLE_FILES = 260_000, 500, 400


def walkers(generator: np.random.Generator, frames: int, people: int, joints: int) -> np.ndarray:
    """[T, M, V, 2] of people who move slowly, some apart from each other."""
    body = generator.uniform(0, 60, size=(people, joints, 2)) + 90 * np.arange(people)[:, None, None]
    return (
        body + np.cumsum(generator.normal(size=(frames, people, 1, 2)), axis=0) + generator.normal(size=(frames, people, joints, 2))
    )


def read_all(source: Source) -> int:
    """Reads every clip; returns the number of frames."""
    return sum(len(source.read(index).joints) for index in range(len(source.names)))


def kinetics(folder: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    (folder / "kpfiles").mkdir()
    poses, annotations = {}, []
    for number in range(CLIPS):
        people = 1 + number % 3
        clip = walkers(generator, FRAMES, people, 17)
        order = np.argsort(generator.random((FRAMES, people)), axis=1)
        clip = np.take_along_axis(clip, order[..., None, None], axis=1).reshape(-1, 17, 2)
        score = generator.uniform(0.3, 1, size=(len(clip), 17, 1))
        name = f"video_{number:05d}"
        poses[name] = {"keypoint": np.concatenate([clip, score], axis=2).astype(np.float16)}
        annotations.append(
            {
                "frame_dir": name, "label": number % 400, "img_shape": (340, 456), "total_frames": FRAMES,
                "frame_inds": np.repeat(np.arange(FRAMES), people).astype(np.int16),
                "box_score": np.full(len(clip), 0.9, np.float16), "valid": {0.5: FRAMES}, "raw_file": "kpfiles/part.pkl",
            }
        )  # fmt: skip
    (folder / "kpfiles" / "part.pkl").write_bytes(pickle.dumps(poses, protocol=4))
    (folder / "k400_hrnet.pkl").write_bytes(pickle.dumps({"split": {}, "annotations": annotations}, protocol=4))

    def straightforward(linked: bool = False) -> None:
        """Puts one pose after the other in its frame: in the order of the file, or at the place of the nearest pose before."""
        table = pickle.loads((folder / "k400_hrnet.pkl").read_bytes())["annotations"]
        content = pickle.loads((folder / "kpfiles" / "part.pkl").read_bytes())
        for entry in table:
            frames = {frame: place for place, frame in enumerate(sorted(set(entry["frame_inds"].tolist())))}
            found = np.zeros((len(frames), 20, 17, 3), np.float32)
            count = [0] * len(frames)
            height, width = entry["img_shape"]
            for frame, pose in zip(entry["frame_inds"], content[entry["frame_dir"]]["keypoint"].astype(np.float32), strict=True):
                place = frames[int(frame)]
                person = count[place]
                if linked and place:
                    person = _nearest(found[place - 1], found[place], pose)
                found[place, person] = pose
                count[place] += 1
            found[..., 0] = (found[..., 0] - width / 2) / (width / 2)
            found[..., 1] = (found[..., 1] - height / 2) / (height / 2)
            found[found[..., 2] == 0] = 0
            np.take_along_axis(found, np.argsort(-found[..., 2].sum((0, 2)))[None, :2, None, None], axis=1)

    calls: dict[str, Callable[[], Any]] = {"shapmix": lambda: read_all(Kinetics(folder)), "straightforward": straightforward}
    found = rates(calls | {"straightforward, people linked": partial(straightforward, linked=True)}, CLIPS, rounds=5)
    return {"unit": "clips/s of 250 frames with 1 to 3 people, opening included", "rates": found}


def _nearest(before: np.ndarray, now: np.ndarray, pose: np.ndarray) -> int:
    """The free place whose pose in the frame before is nearest, or the first one that was empty."""
    best, least = -1, np.inf
    for person in range(len(before)):
        if now[person].any():
            continue
        if not before[person].any():
            return person if best < 0 else best
        distance = np.linalg.norm(before[person, :, :2] - pose[:, :2], axis=1).mean()
        if distance < least:
            best, least = person, distance
    return best


def arrays(folder: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for kind, joints, options in (("Kinetics-skeleton", 18, {"layout": "openpose18", "scores": True}), ("NTU RGB+D", 25, {})):
        inner = folder / kind
        inner.mkdir()
        rows = np.zeros((CLIPS, 3, 300, joints, 2), np.float32)
        for number in range(CLIPS):
            clip = walkers(generator, FRAMES, 2, joints) / 400
            score = np.sort(generator.uniform(0.3, 1, size=(FRAMES, 2)), axis=1)[:, ::-1]
            rows[number, :2, :FRAMES] = clip.transpose(3, 0, 2, 1)
            rows[number, 2, :FRAMES] = score[:, None]
        np.save(inner / "train_data.npy", rows)
        (inner / "train_label.pkl").write_bytes(pickle.dumps(([f"{number}" for number in range(CLIPS)], [0] * CLIPS)))

        def straightforward(inner: Path = inner, linked: bool = False) -> None:
            """Loads the array whole and cuts every clip after its last frame with a body; swaps people who are nearer swapped."""
            for row in np.load(inner / "train_data.npy"):
                stands = [frame for frame in range(row.shape[1]) if row[:, frame].sum() != 0]
                clip = row[:, : stands[-1] + 1].transpose(1, 3, 2, 0).copy()
                for frame in range(1, len(clip) if linked else 0):
                    kept = np.linalg.norm(clip[frame, ..., :2] - clip[frame - 1, ..., :2], axis=-1).mean()
                    swapped = np.linalg.norm(clip[frame, ::-1, :, :2] - clip[frame - 1, ..., :2], axis=-1).mean()
                    if swapped < kept:
                        clip[frame] = clip[frame, ::-1].copy()

        def ours(inner: Path = inner, options: dict[str, Any] = options) -> int:
            return read_all(Stgcn(inner, **options))

        calls: dict[str, Callable[[], Any]] = {"shapmix": ours, "straightforward": straightforward}
        if options:
            calls["straightforward, people linked"] = partial(straightforward, linked=True)
        found[kind] = rates(calls, CLIPS, rounds=5)
    return {"unit": "clips/s of 300 frames, opening included", "rates": found}


def pku_mmd(folder: Path) -> dict[str, Any]:
    """Two recordings with 20 actions each."""
    generator = np.random.default_rng(0)
    for name in ("skeleton", "label"):
        (folder / name).mkdir()
    for video in ("0002-L", "0002-M"):
        np.savetxt(folder / "skeleton" / f"{video}.txt", generator.normal(size=(RECORDING_FRAMES, 150)), fmt="%.6f")
        length = RECORDING_FRAMES // 20
        rows = [f"{1 + number},{length * number},{length * (number + 1) - length // 4},2" for number in range(20)]
        (folder / "label" / f"{video}.txt").write_text("\n".join(rows) + "\n")

    def straightforward() -> None:
        """Loads the recording for each of its clips."""
        for path in sorted((folder / "label").iterdir()):
            for row in np.loadtxt(path, delimiter=","):
                whole = np.loadtxt(folder / "skeleton" / path.name)
                whole[int(row[1]) : int(row[2])].reshape(-1, 2, 25, 3).astype(np.float32)

    found = rates({"shapmix": lambda: read_all(PkuMmd(folder)), "straightforward": straightforward}, 40, rounds=3)
    return {"unit": "clips/s of 113 frames, opening included", "rates": found}


def table(folder: Path) -> dict[str, Any]:
    """Opens a table of contents; the files of poses are empty but for one, whose first clips are read."""
    generator = np.random.default_rng(0)
    (folder / "kpfiles").mkdir()
    lengths = np.clip(generator.normal(TABLE_POSES, TABLE_POSES / 2, TABLE_CLIPS).astype(int), 20, None).tolist()
    annotations = [
        {
            "frame_dir": f"video_{number:011d}", "label": number % 400, "img_shape": (340, 456), "total_frames": 300,
            "frame_inds": np.sort(generator.integers(0, 300, length)).astype(np.int16),
            "box_score": generator.random(length, dtype=np.float32).astype(np.float16),
            "valid": {0.5: 300, 0.6: 290, 0.7: 280, 0.8: 250, 0.9: 200}, "raw_file": f"kpfiles/part_{number % TABLE_FILES:03d}.pkl",
        }
        for number, length in enumerate(lengths)
    ]  # fmt: skip
    names = [str(entry["frame_dir"]) for entry in annotations]
    path = folder / "k400_hrnet.pkl"
    with path.open("wb") as file:
        pickle.dump({"split": {"train": names[:240_000], "val": names[240_000:]}, "annotations": annotations}, file, protocol=4)
    for part in range(TABLE_FILES):
        (folder / "kpfiles" / f"part_{part:03d}.pkl").write_bytes(b"")
    content = {
        names[number]: {"keypoint": generator.random((lengths[number], 17, 3), dtype=np.float32).astype(np.float16)}
        for number in range(0, TABLE_CLIPS, TABLE_FILES)
    }
    (folder / "kpfiles" / "part_000.pkl").write_bytes(pickle.dumps(content, protocol=4))
    del annotations, names, content
    found = {kind: json.loads(_opened(code, path)) for kind, code in (("shapmix", OURS), ("pickle.load", PLAIN))}
    return {"unit": "opening 260,000 clips", "table MB": round(path.stat().st_size / 1e6), **found}


STATUS = """
import json, sys, time
def memory(key):
    return next(int(line.split()[1]) // 1000 for line in open("/proc/self/status") if line.startswith(key))
"""
OURS = f"""{STATUS}
from pathlib import Path
from shapmix.data.sources.kinetics import Kinetics
before, begin, cpu = memory("RssAnon"), time.perf_counter(), time.process_time()
source = Kinetics(Path(sys.argv[1]))
opened = round(time.perf_counter() - begin, 1), round(time.process_time() - cpu, 1), memory("RssAnon") - before
for index in range(int(sys.argv[2])):
    source.read(index)
print(json.dumps({{"seconds": opened[0], "CPU seconds": opened[1], "MB kept": opened[2],
                   "MB after 100 clips": memory("RssAnon") - before, "clips": len(source.names)}}))
"""
PLAIN = f"""{STATUS}
import pickle
before, begin, cpu = memory("RssAnon"), time.perf_counter(), time.process_time()
content = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps({{"seconds": round(time.perf_counter() - begin, 1), "CPU seconds": round(time.process_time() - cpu, 1),
                   "MB kept": memory("RssAnon") - before}}))
"""


def _opened(code: str, path: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, str(path), str(min(100, TABLE_CLIPS // TABLE_FILES))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": "python -m bench.sources", "commit": commit(), "machine": machine()}
    measures: tuple[Callable[[Path], dict[str, Any]], ...] = (kinetics, arrays, pku_mmd, table)
    for measure in measures:
        with tempfile.TemporaryDirectory() as folder:
            found = result[measure.__name__] = measure(Path(folder))
        named = found.get("rates", {})
        for what, rate in (named if "shapmix" not in named else {measure.__name__: named}).items():
            ratios = [f"{rate['shapmix']['p50'] / other['p50']:.1f}x {name}" for name, other in rate.items() if name != "shapmix"]
            print(f"{what}: {rate['shapmix']['p50']:,.0f} {found['unit']}; {', '.join(ratios)}", flush=True)

    print(f"table: {json.dumps(result['table'])}")
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
