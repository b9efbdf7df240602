"""Readers by name: valid seed files, and a function that reads arbitrary bytes in their place.

Readers raise `DataError` or `LayoutError`, or return data; any other exception is a bug.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from shapmix.data.sources import Source
from shapmix.data.sources.bounded import read_list
from shapmix.data.sources.find import find_source
from shapmix.data.sources.ntu_raw import actors, read_skeletons
from shapmix.data.sources.nw_ucla import parse_clip
from shapmix.data.sources.plain import read_array
from shapmix.data.sources.registry import SourceOptions
from shapmix.data.store import FRAMES, INDEX, damaged_clips, open_store
from shapmix.data.store_writer import prepare
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import LayoutError, layout_text, parse_layout
from tests import set_files
from tests.data.pose_files import BUILDERS

NAME = "S001C001P001R001A003"
POSES = {  # format of a pose tool -> name of a file with one clip or frame
    "openpose": "a_1_keypoints.json",
    "alphapose": "a.json",
    "mmpose": "a.json",
    "coco_results": "a.json",
    "ultralytics": "a_1.txt",
    "mediapipe": "a.json",
    "bvh": "a.bvh",
}
UCLA = "a08_s01_e00_v01"
# Files of the large data sets: format, builder, the file that is replaced, options.
NONE, OPENPOSE = SourceOptions(), SourceOptions(layout="openpose18", scores=True)
SETS: dict[str, tuple[str, Callable[[Path], object], str, SourceOptions]] = {
    "babel classes": ("babel", set_files.babel, "action_label_2_idx.json", NONE),
    "babel labels": ("babel", set_files.babel, "val_label_60.pkl", NONE),
    "kinetics poses": ("kinetics", set_files.kinetics, "kpfiles/part_0.pkl", NONE),
    "kinetics table": ("kinetics", set_files.kinetics, "k400_hrnet.pkl", SourceOptions(box_threshold=0.5)),
    "mmaction": ("mmaction", set_files.mmaction, "ntu60_xsub_val.pkl", NONE),
    "pku label": ("pku_mmd", set_files.pku_mmd, "Label/Train_Label_PKU_final/0002-L.txt", NONE),
    "pku skeleton": ("pku_mmd", set_files.pku_mmd, "Data/PKU_Skeleton_Renew/0002-L.txt", NONE),
    "pku split": ("pku_mmd", set_files.pku_mmd, "Split/cross-view.txt", NONE),
    "smarthome": ("smarthome", set_files.smarthome, "Drink.Fromcup_p02_r00_v01_c01_pose3d.json", NONE),
    "stgcn labels": ("stgcn", set_files.stgcn, "val_label.pkl", OPENPOSE),
    "stgcn rows": ("stgcn", set_files.stgcn, "val_data.npy", OPENPOSE),
    "uav": ("uav_human", set_files.uav_human, "P000S01G10B10H10UC022000LC021000A001R0_08241716.txt", NONE),
}
MOST_READ = 50  # recordings per source

# Tokens of the formats, which mutations insert.
TOKENS = (
    b"\x00", b"\xff\xff\xff\x7f", b"\xff" * 8, b"-1", b"1e999", b"nan", b"true", b"null", b"[", b"{}", b'"', b"\n", b",",
    b"9" * 401, b"h\x00", b"r\xff\xff\xff\x7f", b"q\x00", b"\x94", b"\x86", b"\x87", b"(", b"t", b"R", b"b", b"]", b"}", b"u",
    b"\x8f", b"\x90", b"2", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c__builtin__\nbytes\n", b"c_codecs\nencode\n",
    b"X\x02\x00\x00\x00f4", b"K\x01", b"0.5 ", b"size=", b"'shape': (", b"<f8", b"\xef\xbb\xbf", b"PK\x03\x04", b"PK\x01\x02",
)  # fmt: skip


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Applies one to eight mutations: changed bytes, cuts, repeats, moves and inserted tokens."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        at, end = sorted(generator.randint(0, len(changed)) for _ in range(2))
        end = min(end, at + generator.choice((1, 4, 16, 200)))
        kind = generator.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] = generator.randrange(256)
        elif kind == 1:
            del changed[at:end]
        elif kind == 2:
            changed[at:at] = changed[at:end] * generator.choice((1, 2, 50))
        elif kind == 3:
            changed[at:at] = generator.choice(TOKENS)
        elif kind == 4:
            changed[at:end] = generator.choice(TOKENS)
        elif generator.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def _read_all(source: Source) -> None:
    for index in range(min(len(source.names), MOST_READ)):
        with contextlib.suppress(DataError):
            source.read(index)


class Readers:
    """The readers, with a folder for their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = np.random.default_rng(0)
        self._clip = generator.normal(size=(3, 1, 20, 3)).astype(np.float32)
        self._plain = folder / "plain"
        self._plain.mkdir()
        (self._plain / "layout.toml").write_text(layout_text("ucla20"))
        (self._plain / "labels.csv").write_text("name,label,split\na,0,train\nb,1,test\n")
        for name in "ab":
            np.save(self._plain / f"{name}.npy", self._clip)
        self._table = folder / "table"
        self._table.mkdir()
        for file in self._plain.iterdir():
            (self._table / file.name).write_bytes(file.read_bytes())
        prepare(find_source(self._plain), folder / "store")
        self._store = folder / "store"
        self._msg3d = folder / "msg3d"
        self._msg3d.mkdir()
        np.save(self._msg3d / "train_data_joint.npy", generator.normal(size=(2, 3, 5, 25, 2)).astype(np.float32))
        self._labels = pickle.dumps(([f"{NAME}.skeleton", "b.skeleton"], [2, 0]), protocol=2)
        (self._msg3d / "train_label.pkl").write_bytes(self._labels)
        self._ucla = folder / "ucla"
        (self._ucla / "all_sqe").mkdir(parents=True)
        (self._ucla / "all_sqe" / f"{UCLA}.json").write_bytes(_json_clip())
        self.read: dict[str, Callable[[bytes], None]] = {
            "pickle": lambda content: self._source(content, "a.pkl"),
            "labels": self._read_labels,
            "rows": self._read_rows,
            "json": lambda content: _nothing(parse_clip(f"{UCLA}.json", content)),
            "ucla archive": lambda content: self._source(content, "a.tar", "nw_ucla"),
            "ucla table": self._read_ucla_table,
            "ntu tar": lambda content: self._source(content, "a.tar", "ntu_raw"),
            "ntu zip": lambda content: self._source(content, "a.zip", "ntu_raw"),
            "any": lambda content: self._source(content, "a.pkl"),
            "skeleton": lambda content: _nothing(actors(read_skeletons(content, "a"), "a")),
            "npy": lambda content: _nothing(read_array(self._file(content, "a.npy"))),
            "npz": lambda content: _nothing(read_array(self._file(content, "a.npz"))),
            "ntu npz": lambda content: self._source(content, "a.npz", "ntu_npz"),
            "table": self._read_table,
            "list": lambda content: _nothing(read_list(self._file(content, "list.txt"))),
            "layout": lambda content: _nothing(parse_layout(content.decode("utf-8", "replace"))),
            "index": lambda content: self._read_store(content, INDEX),
            "frames": lambda content: self._read_store(content, FRAMES),
        }
        for name, (format, build, path, options) in SETS.items():
            build(folder / name)
            self.read[name] = partial(self._read_in_place, folder / name, path, format, options)
        self.read |= {format: partial(self._source, name=name, format=format) for format, name in POSES.items()}
        self.seeds: dict[str, list[bytes]] = self._seeds(generator) | {format: self._pose_files(format) for format in POSES}
        self.seeds |= {name: [(folder / name / path).read_bytes()] for name, (_, _, path, _) in SETS.items()}

    def check(self, name: str, content: bytes) -> None:
        """Reads the content; unexpected errors propagate."""
        with contextlib.suppress(DataError, LayoutError):
            self.read[name](content)

    def _file(self, content: bytes, name: str) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def _source(self, content: bytes, name: str, format: str = "auto") -> None:
        _read_all(find_source(self._file(content, name), format))  # type: ignore[arg-type] # names of formats

    def _pose_files(self, format: str) -> list[bytes]:
        """A file of the made-up data set."""
        folder = self.folder / format
        folder.mkdir()
        BUILDERS[format](folder)
        ending = POSES[format].removeprefix("a").removeprefix("_1")
        files = [file for file in sorted(folder.rglob(f"*{ending}")) if file.name != "images.json"]
        return [files[0].read_bytes()]

    def _read_in_place(self, folder: Path, name: str, format: str, options: SourceOptions, content: bytes) -> None:
        """Reads a data set with one of its files replaced."""
        whole = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(content)
            _read_all(find_source(folder, format, options))
        finally:
            (folder / name).write_bytes(whole)

    def _read_labels(self, content: bytes) -> None:
        (self._msg3d / "train_label.pkl").write_bytes(content)
        _read_all(find_source(self._msg3d))

    def _read_rows(self, content: bytes) -> None:
        (self._msg3d / "train_label.pkl").write_bytes(self._labels)
        whole = (self._msg3d / "train_data_joint.npy").read_bytes()
        try:
            (self._msg3d / "train_data_joint.npy").write_bytes(content)
            _read_all(find_source(self._msg3d))
        finally:
            (self._msg3d / "train_data_joint.npy").write_bytes(whole)

    def _read_ucla_table(self, content: bytes) -> None:
        (self._ucla / "train.csv").write_bytes(content)
        _read_all(find_source(self._ucla, "nw_ucla"))

    def _read_table(self, content: bytes) -> None:
        (self._table / "labels.csv").write_bytes(content)
        _read_all(find_source(self._table))

    def _read_store(self, content: bytes, name: str) -> None:
        whole = (self._store / name).read_bytes()
        try:
            (self._store / name).write_bytes(content)
            open_store(self._store)
            list(damaged_clips(self._store))
        finally:
            (self._store / name).write_bytes(whole)

    def _seeds(self, generator: np.random.Generator) -> dict[str, list[bytes]]:
        poses = generator.uniform(1, 99, size=(6, 17, 3)).astype(np.float16)
        joints = generator.normal(size=(2, 3, 25, 3))
        entries = [
            {"frame_dir": NAME, "label": 2, "total_frames": 3, "keypoint": joints},
            {"frame_dir": "v", "label": 3, "img_shape": (100, 100), "keypoint": poses, "frame_inds": np.array([0, 0, 1, 1, 2, 5])},
            {
                "frame_dir": "w", "label": np.int64(1), "img_shape": (100, 100), "total_frames": 3,
                "keypoint": joints[:, :, :17, :2], "keypoint_score": np.ones((2, 3, 17), np.float32),
            },
        ]  # fmt: skip
        pickles = [
            pickle.dumps({"split": {"train": [str(entry["frame_dir"])]}, "annotations": [entry]}, protocol=protocol)
            for entry in entries
            for protocol in range(2, 6)
        ]
        x, y = np.zeros((2, 4, 150), np.float32), np.eye(60)[[0, 5]]
        x[:, :3] = generator.normal(size=(2, 3, 150))
        skeleton = _skeleton()
        return {
            "pickle": pickles,
            "labels": [self._labels, pickle.dumps((("a", "b"), np.array([1, 0])), protocol=4)],
            "rows": [(self._msg3d / "train_data_joint.npy").read_bytes()],
            "json": [_json_clip()],
            "ucla archive": [_tar({f"all_sqe/{UCLA}.json": _json_clip()}, mode) for mode in ("w:", "w:gz", "w:xz")],
            "ucla table": [f"name,label\n{UCLA},7\n".encode()],
            "ntu tar": [_tar({f"{NAME}.skeleton": skeleton}, mode) for mode in ("w:", "w:bz2")],
            "ntu zip": [_zip({f"{NAME}.skeleton": skeleton})],
            "any": [pickles[0], _tar({"a": b"b"}, "w:"), _zip({"a": b"b"}), skeleton],
            "skeleton": [skeleton, b"\xef\xbb\xbf" + skeleton.replace(b"\n", b"\r\n")],
            "npy": [_npy(self._clip), _npy(np.asfortranarray(self._clip[:, 0]).astype(np.float16))],
            "npz": [_zip({"joints.npy": _npy(self._clip)}, zipfile.ZIP_STORED), _zip({"joints.npy": _npy(self._clip)})],
            "ntu npz": [
                _zip(
                    {f"{axis}_{part}.npy": _npy(array) for part in ("train", "test") for axis, array in (("x", x), ("y", y))},
                    packing,
                )
                for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            ],
            "table": [b"name,label,split,subject\na,wave,train,1\nb,clap,test,2\n", b"\xef\xbb\xbfname,label\r\na,0\r\nb,1\r\n"],
            "list": [b"a\nb\r\n\nc\n"],
            "layout": [layout_text(name).encode() for name in ("ucla20", "coco17")],
            "index": [(self._store / INDEX).read_bytes()],
            "frames": [(self._store / FRAMES).read_bytes()],
        }


def _nothing(_: object) -> None:
    """Discards what the reader returns."""


def _json_clip() -> bytes:
    return json.dumps({"file_name": UCLA, "skeletons": [[[0.1, -0.2, 3e-5]] * 20] * 2, "label": 7}).encode()


def _skeleton() -> bytes:
    body = ["72057594037937185 0 1 1 1 1 0 0.1 -0.2 2", "25", *["0.5 0.25 2 1 2 3 4 0 0 0 1 2"] * 25]
    other = [body[0].replace("7205", "7206", 1), *body[1:]]
    return "\n".join(["14", "0", *["2", *body, *other] * 12, "1", *body, ""]).encode()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _zip(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _tar(members: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload] # one of several modes
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()
