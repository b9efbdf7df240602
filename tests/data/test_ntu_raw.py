"""Raw NTU RGB+D: the parser against a reference parser, the selection of actors against the recorded npz, and damaged files."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.data.protocols import NTU_SUBJECTS
from shapmix.data.sources.names import ntu_classes
from shapmix.data.sources.ntu_raw import NtuRaw, actors, read_skeletons
from shapmix.process.errors import DataError
from tests.data.ntu_files import made, text_of

NAME = "S001C002P003R001A007"


def plainly(content: bytes) -> dict[int, list[tuple[int, np.ndarray]]]:
    """Reference parser: body id -> (frame, joints)."""
    lines = iter(content.decode().splitlines())
    found: dict[int, list[tuple[int, np.ndarray]]] = {}
    at = -1
    for _ in range(int(next(lines))):
        bodies = int(next(lines))
        at += bodies > 0
        for _ in range(bodies):
            body = int(next(lines).split()[0])
            joints = [next(lines).split()[:3] for _ in range(int(next(lines)))]
            found.setdefault(body, []).append((at, np.array(joints, dtype=np.float32)))
    return found


@settings(max_examples=40)
@given(
    st.lists(st.sets(st.integers(0, 2**63 - 1), max_size=3), min_size=1, max_size=6).filter(any),
    st.sampled_from(["\n", "\r\n"]),
    st.data(),
)
def test_the_parser_reads_what_a_plain_reader_reads(ids: list[set[int]], end: str, data: st.DataObject) -> None:
    number = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.decimals(-9, 9, places=7).map(float)
    frames = [
        [(body, np.resize(data.draw(st.lists(number, min_size=1, max_size=9)), (25, 3))) for body in sorted(of)] for of in ids
    ]
    content = text_of(frames, end)
    found, expected = read_skeletons(content, "file"), plainly(content)
    for body, rows in expected.items():
        mine = found.body == np.uint64(body)
        assert found.frame_of[mine].tolist() == [frame for frame, _ in rows]
        np.testing.assert_array_equal(found.joints[mine].view(np.uint32), np.stack([joints for _, joints in rows]).view(np.uint32))


@pytest.mark.parametrize(
    "number",
    ["0", "-0.0", "1e-7", "-1.5E+2", "123456789012345678901234567890e-25", "9007199254740993", "0.1", "1e-400", "3.4028234e38"],
)
def test_numbers_are_rounded_as_python_rounds_them(number: str) -> None:
    content = text_of(made(1, 1)).split(b"\n")
    content[4] = f"{number} 0 0 1 2 3 4 5 6 7 8 9".encode()
    found = read_skeletons(b"\n".join(content), "file").joints[0, 0, 0]
    assert found.tobytes() == np.float32(float(number)).tobytes()


def recorded_folder() -> Path:
    folder = os.environ.get("SHAPMIX_GOLDEN")
    if not folder:
        pytest.skip("SHAPMIX_GOLDEN is not set: no recorded behaviour to compare with")
    return Path(folder) / "ntu_raw"


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["tar", "folder", "zip"])
def test_actors_are_those_of_the_recorded_files(kind: str, tmp_path: Path) -> None:
    path = recorded_folder() / "skeleton.tar.xz"
    if kind != "tar":
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "raw", filter="data")
        path = tmp_path / "raw"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path.rglob("*.skeleton")):
                archive.write(file, file.name)
        path = tmp_path / "raw.zip"
    source = NtuRaw(path)
    read = {name: source.read(index) for index, name in enumerate(source.names)}
    assert all(recording.label == int(name[-3:]) - 1 for name, recording in read.items())
    for file, number, trains in (("NTU60_CS", "subject", NTU_SUBJECTS), ("NTU60_CV", "camera", (2, 3))):
        with np.load(recorded_folder() / f"{file}.npz") as recorded:
            for part in ("train", "test"):
                keys = [(getattr(recording, number), name) for name, recording in read.items()]
                names = [name for value, name in sorted(keys) if (value in trains) == (part == "train")]
                rows = recorded[f"x_{part}"]
                assert len(rows) == len(names)
                for name, row, one_hot in zip(names, rows, recorded[f"y_{part}"], strict=True):
                    padded = np.zeros((len(row), 2, 25, 3), np.float32)
                    padded[: len(read[name].joints)] = read[name].joints
                    np.testing.assert_array_equal(padded.reshape(len(row), -1).view(np.uint32), row.view(np.uint32))
                    assert one_hot.argmax() == read[name].label


def test_one_frame_is_a_recording() -> None:
    joints = actors(read_skeletons(text_of(made(1, 1)), "file"))
    assert joints.shape == (1, 2, 25, 3)
    assert not joints[:, 1].any()
    assert not joints[0, 0, 1].any()  # the spine is the origin


def test_frames_without_bodies_are_left_out() -> None:
    frames = made(1, 5)
    joints = actors(read_skeletons(text_of([[], *frames[:2], [], *frames[2:], []]), "file"))
    np.testing.assert_array_equal(joints, actors(read_skeletons(text_of(frames), "file")))


def test_of_three_people_the_two_with_the_largest_variance_act() -> None:
    frames = made(3, 30)
    still = 0.3 * frames[0][1][1]
    frames = [[one, (two, still + 0.001 * at), three] for at, (one, (two, _), three) in enumerate(frames)]
    joints = actors(read_skeletons(text_of(frames), "file"))
    both = actors(read_skeletons(text_of([[one, three] for one, _, three in frames]), "file"))
    np.testing.assert_array_equal(joints, both)
    assert joints.any((0, 2, 3)).all()


def test_a_short_body_and_a_wide_one_are_noise() -> None:
    frames = made(1, 30)
    chair = np.tile([[1.0, 0.1, 0.0]], (25, 1)) * np.linspace(-1, 1, 25)[:, None]
    noisy = [[*bodies, (7, chair + 0.01 * at), *([(9, chair)] if at < 11 else [])] for at, bodies in enumerate(frames)]
    np.testing.assert_array_equal(actors(read_skeletons(text_of(noisy), "file")), actors(read_skeletons(text_of(frames), "file")))


def changed(line: int, text: str) -> bytes:
    lines = text_of(made(1, 2)).decode().split("\n")
    lines[line - 1] = text
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 0: the file ends behind this line, where the number of frames should follow"),
        (b"\x00\xff\x13binary", "line 1: the number of frames is '"),
        (changed(1, "1000000000"), "line 1: 1000000000 frames, more than the remaining 2500 bytes can hold"),
        (changed(1, "-1"), "line 1: -1 frames; give 0 or more"),
        (changed(1, "3"), "the file ends behind this line, where the number of bodies should follow"),
        (changed(1, "1"), "line 30: text behind the last frame, '1'; line 1 gives 1 frames"),
        (changed(2, "1000000000"), "line 2: 1000000000 bodies, more than the remaining 2498 bytes can hold"),
        (changed(2, "99999999999999999999"), "line 2: the number of bodies is '99999999999999999999', not a whole number"),
        (changed(2, "2 2"), "line 2: text behind the number of bodies, '2'"),
        (changed(3, "-5 0 1 1 1 1 0 0.11 -0.01 2"), "line 3: the id of the body is '-5', not a whole number"),
        (changed(3, "5 0 1 1"), "line 3: 4 fields, a body has 10"),
        (changed(4, "1000000000"), "line 4: 1000000000 joints, a body has 25"),
        (changed(4, "24"), "line 4: 24 joints, a body has 25"),
        (changed(5, "0 nan 0 1 2 3 4 5 6 7 8 9"), "line 5: y is 'nan', not a finite number"),
        (changed(5, "0 0 inf 1 2 3 4 5 6 7 8 9"), "line 5: z is 'inf', not a finite number"),
        (changed(5, "1e39 0 0 1 2 3 4 5 6 7 8 9"), "line 5: x is '1e39', not a finite number"),
        (changed(5, "1e999 0 0 1 2 3 4 5 6 7 8 9"), "line 5: x is '1e999', not a finite number"),
        (changed(5, "0,5 0 0 1 2 3 4 5 6 7 8 9"), "line 5: x is '0,5', not a number"),
        (changed(5, "0 0 0 1 2 3"), "line 5: 6 fields, a joint has 12"),
        (changed(6, ""), "line 6: x is '', not a number"),
        (text_of([[(5, np.zeros((25, 3)))] * 2]), "body 5 comes twice in one frame"),
        (text_of([[], []]), "no frame holds a body"),
        (b"0\n", "no frame holds a body"),
    ],
)
def test_damage_is_told_with_its_line(content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_skeletons(content, "some.skeleton")
    assert str(caught.value).startswith("some.skeleton")
    assert message in str(caught.value)


def test_a_file_cut_off_anywhere_is_an_error() -> None:
    content = text_of(made(1, 2))
    whole = read_skeletons(content, "file").joints
    last = content.rstrip().rfind(b" ")
    for stop in range(len(content)):
        try:
            found = read_skeletons(content[:stop], "file")
        except DataError:
            continue
        assert stop > last  # truncation inside the very last field is undetectable
        np.testing.assert_array_equal(found.joints, whole)


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.text("0123456789 .-\r\n", max_size=200).map(str.encode))
def test_noise_is_an_error_or_a_recording(content: bytes) -> None:
    try:
        assert len(read_skeletons(content, "file").body)
    except DataError as error:
        assert str(error).startswith("file")  # noqa: PT017 (either is right)


def test_a_body_without_place_is_an_error() -> None:
    with pytest.raises(DataError, match="main actor: no frame holds a body, all coordinates are zero"):
        actors(read_skeletons(text_of([[(5, np.zeros((25, 3)))]]), "file"))


def test_too_short_bodies_are_an_error() -> None:
    with pytest.raises(DataError, match="no body lasts 12 frames"):
        actors(read_skeletons(text_of(made(2, 5)), "file"))


def links_a_fuzzer(clang: str) -> bool:
    """Whether a compiler is installed with the library of -fsanitize=fuzzer, which is a package of its own."""
    if shutil.which(clang) is None:
        return False
    command = [clang, "-fsanitize=fuzzer,address,undefined", "-x", "c++", "-", "-o", os.devnull]
    program = 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


@pytest.mark.slow
def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    clang = next(filter(links_a_fuzzer, ("clang++", *(f"clang++-{version}" for version in range(30, 13, -1)))), None)
    if clang is None:
        pytest.skip("no clang++ with libFuzzer was found: no coverage-guided fuzzing")
    root, fuzz = Path(__file__).parents[2], Path(__file__).parent / "fuzz"
    target, corpus = tmp_path / "fuzz", tmp_path / "corpus"
    corpus.mkdir()
    sources = [root / "csrc" / "ntu_skeleton.cpp", fuzz / "ntu_skeleton_fuzz.cpp"]
    sanitizers = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([clang, "-std=c++17", "-O1", *sanitizers, f"-I{root / 'csrc'}", *sources, "-o", target], check=True)
    subprocess.run([sys.executable, fuzz / "seeds.py", corpus], check=True)
    # one allocation may have 256 MB; what AddressSanitizer keeps of freed memory adds up to more, and is no fault of the reader
    limits = ["-max_total_time=60", "-max_len=20000", "-malloc_limit_mb=256", "-rss_limit_mb=0"]
    environment = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=16"}
    done = subprocess.run([target, *limits, corpus], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


# Archives


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_an_archive_is_read_in_any_order(tmp_path: Path) -> None:
    contents = {f"S001C001P001R001A{action:03d}": text_of(made(1, 3, action)) for action in (9, 2, 5, 7)}
    source = NtuRaw(tar_of(tmp_path / "raw.tar.xz", {f"raw/{name}.skeleton": content for name, content in contents.items()}))
    assert source.names == list(contents)
    for index in (2, 0, 3, 1, 1):
        expected = actors(read_skeletons(contents[source.names[index]], "file"))
        np.testing.assert_array_equal(source.read(index).joints, expected)


def test_names_outside_an_archive_touch_no_file(tmp_path: Path) -> None:
    content = text_of(made(1, 3))
    path = tar_of(tmp_path / "raw.tar.xz", {f"../../{NAME}.skeleton": content})
    before = sorted(tmp_path.rglob("*"))
    assert NtuRaw(path).read(0).label == 6
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bomb_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shapmix.data.sources.ntu_raw.LARGEST_FILE", 1 << 20)
    path, content = tmp_path / f"raw.{kind}", bytes(2 << 20)
    if kind == "tar":
        tar_of(path, {f"{NAME}.skeleton": content})
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{NAME}.skeleton", content)
    with pytest.raises(DataError, match=r"unpacks to 2097152 bytes; the limit is 1048576"):
        NtuRaw(path)


def test_bad_names_and_repeats_are_named(tmp_path: Path) -> None:
    content = text_of(made(1, 3))
    with pytest.raises(DataError, match=r"the name of 'walk\.skeleton' is not of the form"):
        NtuRaw(tar_of(tmp_path / "a.tar.xz", {"walk.skeleton": content}))
    with pytest.raises(DataError, match="are the same recording"):
        NtuRaw(tar_of(tmp_path / "b.tar.xz", {f"a/{NAME}.skeleton": content, f"b/{NAME}.skeleton": content}))
    with pytest.raises(DataError, match=r"contains no \.skeleton files"):
        NtuRaw(tar_of(tmp_path / "c.tar.xz", {"readme.txt": b""}))
    damaged = tmp_path / "d.tar.xz"
    whole = tar_of(tmp_path / "e.tar.xz", {f"{NAME}.skeleton": content}).read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="the archive cannot be read"):
        NtuRaw(damaged)


def test_actions_have_their_number_and_name() -> None:
    assert [len(ntu_classes(labels)) for labels in (3, 60, 61, 120)] == [60, 60, 120, 120]
    names = ntu_classes(120)
    assert len({name.split(" ", 1)[1] for name in names}) == 120
    # samples from both ends and the middle of the data set's list
    expected = {1: "drink water", 9: "stand up", 43: "fall", 58: "shake hands", 60: "walk apart", 61: "put on headphones"}
    expected |= {76: "cut paper", 100: "kick backward", 112: "high-five", 120: "rock paper scissors"}
    assert {action: names[action - 1] for action in expected} == {
        action: f"A{action:03d} {name}" for action, name in expected.items()
    }
