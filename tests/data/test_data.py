"""Long-tailed lists, the NW-UCLA splits and the synthetic data set."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shapmix.data.clips import Splits
from shapmix.data.longtail import buckets, list_seed, longtail_counts, longtail_list, match_list
from shapmix.data.nw_ucla import load_nw_ucla
from shapmix.data.sources.bounded import read_list
from shapmix.data.sources.nw_ucla import ACTION_NUMBERS, CLASS_NAMES
from shapmix.data.synthetic import BLOCKS, CLASSES, IDLE, MOTIONS, PARTS, make_clip, make_synthetic
from shapmix.process.errors import DataError
from shapmix.skeleton.kinematics import CHAIN, JOINT, LAYOUT, Body, pose

# --- long-tailed lists -----------------------------------------------------------------------------------------------


def test_profile_of_the_published_nw_ucla_list() -> None:
    assert longtail_counts(10, 100, 10) == [100, 77, 59, 46, 35, 27, 21, 16, 12, 10]


def test_profile_of_the_published_ntu120_list() -> None:
    counts = longtail_counts(120, 600, 100)
    assert (counts[0], counts[-1], sum(counts)) == (600, 6, 15600)


@given(st.integers(1, 200), st.integers(1, 2000), st.floats(1, 500))
def test_profile_falls_from_n_max_by_the_imbalance(num_classes: int, n_max: int, imbalance: float) -> None:
    if int(n_max * (1 / imbalance)) < 1 and num_classes > 1:
        with pytest.raises(DataError, match="lower the imbalance"):
            longtail_counts(num_classes, n_max, imbalance)
        return
    counts = longtail_counts(num_classes, n_max, imbalance)
    assert len(counts) == num_classes
    assert counts[0] == n_max
    assert counts == sorted(counts, reverse=True)
    if num_classes > 1:
        assert counts[-1] == int(n_max * (1 / imbalance))


@pytest.mark.parametrize("imbalance", [0.5, 0.0, -3.0, float("nan"), float("inf")])
def test_profile_refuses_an_imbalance_below_one(imbalance: float) -> None:
    with pytest.raises(DataError, match="at least 1"):
        longtail_counts(10, 100, imbalance)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60).map(lambda labels: [0, 1, 2, 3, *labels]), st.integers(0, 9))
def test_draw_keeps_the_counts_without_repeats(labels: list[int], seed: int) -> None:
    counts = [5, 3, 2, 1]
    kept = longtail_list([f"clip{i}" for i in range(len(labels))], labels, counts, seed)
    assert len(set(kept)) == len(kept)
    drawn, held = Counter(labels[clip] for clip in kept), Counter(labels)
    assert [drawn[label] for label in range(4)] == [min(count, held[label]) for label, count in enumerate(counts)]
    assert [labels[clip] for clip in kept] == sorted(labels[clip] for clip in kept)


def test_lists_of_one_seed_differ_between_imbalances() -> None:
    names = [f"clip{row}" for row in range(200)]
    labels = [row % 2 for row in range(200)]
    short, long = (
        set(longtail_list(names, labels, longtail_counts(2, 50, imbalance), list_seed(1, imbalance))) for imbalance in (10, 50)
    )
    assert not long < short  # by the seed alone, the list of the longer tail is a part
    assert set(longtail_list(names, labels, longtail_counts(2, 50, 50), 1)) < set(longtail_list(names, labels, [50, 5], 1))
    assert list_seed(1, 10) == list_seed(1, 10.0) != list_seed(2, 10)
    assert list_seed(0, 10) == list_seed(0, 50) == 0  # the published lists


def test_draw_names_what_is_wrong() -> None:
    with pytest.raises(DataError, match="class 1 has no clip"):
        longtail_list(["a", "b"], [0, 0], [1, 1])
    with pytest.raises(DataError, match="clip 'b' has label 7"):
        longtail_list(["a", "b"], [0, 7], [1, 1])
    with pytest.raises(DataError, match="do not match"):
        longtail_list(["a", "b"], [0], [1])


def test_buckets_split_at_100_and_20() -> None:
    many, medium, few = buckets([101, 100, 20, 19])
    assert many.tolist() == [True, False, False, False]
    assert medium.tolist() == [False, True, True, False]
    assert few.tolist() == [False, False, False, True]


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)


@settings(max_examples=50)
@given(st.lists(NAMES, min_size=1, max_size=20, unique=True), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_list_is_read_as_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], newline: str, blank: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "names.txt"
    path.write_bytes((newline * (1 + blank)).join(names).encode())
    assert read_list(path) == names


def test_list_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    with pytest.raises(DataError, match=r"train\.txt: cannot read the list"):
        read_list(path)
    path.write_text("one\n\ntwo\none\n")
    with pytest.raises(DataError, match=r"train\.txt, line 4: 'one' is already on line 1"):
        read_list(path)
    path.write_text("\n\n")
    with pytest.raises(DataError, match="the list is empty"):
        read_list(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_list(path)
    path.write_text("clip_01\nclip_20\nclop_02\n")
    with pytest.raises(DataError, match=r"line 3: unknown clip 'clop_02'; did you mean 'clip_02'\? Correct or"):
        match_list(path, ["clip_20", "clip_01", "clip_02"])


# --- NW-UCLA ---------------------------------------------------------------------------------------------------------

PERFORMANCES = 6


def clip_name(action: int, performance: int, view: int) -> str:
    return f"a{action:02d}_s01_e{performance:02d}_v{view:02d}"


def made_up_clips() -> dict[str, dict[str, Any]]:
    """All actions, six performances from three views; clips of 1 to 5 frames."""
    rng = np.random.default_rng(0)
    return {
        (name := clip_name(action, performance, view)): {
            "file_name": name,
            "skeletons": rng.normal(size=(1 + (performance + view) % 5, 20, 3)).round(6).tolist(),
            "label": label,
        }
        for label, action in enumerate(ACTION_NUMBERS, start=1)
        for performance in range(PERFORMANCES)
        for view in (1, 2, 3)
    }


def write_folder(root: Path, clips: dict[str, dict[str, Any]]) -> Path:
    (root / "all_sqe").mkdir(parents=True)
    for name, clip in clips.items():
        (root / "all_sqe" / f"{name}.json").write_text(json.dumps(clip))
    return root


def write_archive(root: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(root / "all_sqe.tar.xz", "w:xz", preset=0) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"all_sqe/{name}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root


def names_of(splits: Splits, clips: torch.Tensor) -> list[str]:
    return [splits.store.names[clip] for clip in clips.tolist()]


def test_cross_view_split_of_a_folder(tmp_path: Path) -> None:
    clips = made_up_clips()
    splits = load_nw_ucla(write_folder(tmp_path, clips), imbalance=4, n_max=8, val_per_class=3)
    assert splits.store.layout.name == "ucla20"
    assert splits.store.class_names == list(CLASS_NAMES)
    assert splits.class_counts().tolist() == longtail_counts(10, 8, 4)
    assert splits.store.class_counts(splits.val).tolist() == [3] * 10
    assert {name[-3:] for name in names_of(splits, splits.train) + names_of(splits, splits.val)} == {"v01", "v02"}
    assert sorted(names_of(splits, splits.test)) == sorted(name for name in clips if name.endswith("v03"))
    assert not set(splits.train.tolist()) & set(splits.val.tolist())
    for clip in (0, 7, len(clips) - 1):
        recorded = torch.tensor(clips[splits.store.names[clip]]["skeletons"], dtype=torch.float32)
        assert torch.equal(splits.store.clip(clip), recorded[:, None])


def test_validation_prefers_performances_that_nobody_trains_on(tmp_path: Path) -> None:
    splits = load_nw_ucla(write_folder(tmp_path, made_up_clips()), imbalance=4, n_max=8, val_per_class=2)
    trained = {name[:-4] for name in names_of(splits, splits.train)}
    val = Counter(name[:3] for name in names_of(splits, splits.val) if name[:-4] not in trained)
    unseen = {f"a{a:02d}": PERFORMANCES - sum(name.startswith(f"a{a:02d}") for name in trained) for a in ACTION_NUMBERS}
    assert all(val[action] == min(2, 2 * free) for action, free in unseen.items())
    assert sum(val.values()) > 10


def test_archive_equals_folder(tmp_path: Path) -> None:
    clips = made_up_clips()
    write_archive(tmp_path, {name: json.dumps(clip).encode() for name, clip in reversed(clips.items())})
    folder = load_nw_ucla(write_folder(tmp_path / "folder", clips), imbalance=4, n_max=8, val_per_class=1)
    for root in (tmp_path, tmp_path / "all_sqe.tar.xz"):
        archive = load_nw_ucla(root, imbalance=4, n_max=8, val_per_class=1)
        assert archive.store.names == folder.store.names
        assert torch.equal(archive.store.frames, folder.store.frames)
        assert torch.equal(archive.train, folder.train)
        assert torch.equal(archive.val, folder.val)


def test_all_clips_train_with_whole_performances_held_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, made_up_clips())
    splits = load_nw_ucla(root)
    assert splits.store.class_counts(splits.val).tolist() == [2] * 10
    assert not {n[:-4] for n in names_of(splits, splits.val)} & {n[:-4] for n in names_of(splits, splits.train)}
    everything = load_nw_ucla(root, val_per_class=0)
    assert (len(everything.train), len(everything.val)) == (10 * PERFORMANCES * 2, 0)


def test_training_list_and_its_faults(tmp_path: Path) -> None:
    root = write_folder(tmp_path, made_up_clips())
    listed = [clip_name(action, e, 1) for action in reversed(ACTION_NUMBERS) for e in (2, 0)]
    path = tmp_path / "list.txt"
    path.write_bytes("\r\n".join(listed).encode())
    splits = load_nw_ucla(root, train_list=path, val_per_class=1)
    assert names_of(splits, splits.train) == listed
    path.write_text("\n".join([*listed, "a01_s01_e00_v09"]))
    with pytest.raises(DataError, match=r"list\.txt, line 21: unknown clip 'a01_s01_e00_v09'; did you mean 'a01_s01_e00_v0"):
        load_nw_ucla(root, train_list=path)
    path.write_text(clip_name(1, 0, 3))  # test clips are not allowed
    with pytest.raises(DataError, match="line 1: unknown clip"):
        load_nw_ucla(root, train_list=path)
    path.write_text("\n".join(clip_name(a, e, v) for a in ACTION_NUMBERS for e in range(PERFORMANCES) for v in (1, 2)))
    with pytest.raises(DataError, match="leaves none to validate on"):
        load_nw_ucla(root, train_list=path)
    with pytest.raises(DataError, match="not both"):
        load_nw_ucla(root, train_list=path, imbalance=4)


def test_tables_fix_the_order(tmp_path: Path) -> None:
    clips = made_up_clips()
    root = write_folder(tmp_path, clips)
    rows = [f"{name},{len(clip['skeletons'])},{clip['label']}" for name, clip in clips.items() if not name.endswith("v03")][::-1]
    (tmp_path / "train.csv").write_text("\r\n".join(["name,length,label", *rows]))
    splits = load_nw_ucla(root, val_per_class=0)
    assert names_of(splits, splits.train) == [row.split(",")[0] for row in rows]
    (tmp_path / "train.csv").write_text("name,length,label\na01_s01_e00_v03,2,1\n")
    with pytest.raises(DataError, match=r"train\.csv, line 2: no clip 'a01_s01_e00_v03' in these views"):
        load_nw_ucla(root)
    (tmp_path / "train.csv").write_text("name,length,label\na01_s01_e00_v01,2,5\n")
    with pytest.raises(DataError, match=r"line 2: label 5 of 'a01_s01_e00_v01' contradicts label 1"):
        load_nw_ucla(root)
    (tmp_path / "train.csv").write_text("clip\na01_s01_e00_v01\n")
    with pytest.raises(DataError, match="line 1: has no column 'name'; columns are name, label"):
        load_nw_ucla(root)


def test_short_clips_are_kept_unless_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_folder(tmp_path, made_up_clips())
    kept = load_nw_ucla(root, imbalance=4, n_max=8)
    assert int(kept.store.lengths.min()) == 1
    with caplog.at_level(logging.INFO, logger="shapmix"):
        dropped = load_nw_ucla(root, imbalance=4, n_max=8, min_frames=2)
    assert int(dropped.store.lengths.min()) == 2
    assert "a01_s01_e04_v01" in caplog.text
    length = {name: len(clip["skeletons"]) for name, clip in made_up_clips().items()}
    for split in ("train", "val", "test"):  # the lists are drawn before clips are dropped
        before, after = (names_of(splits, getattr(splits, split)) for splits in (kept, dropped))
        assert after == [name for name in before if length[name] >= 2]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_nw_ucla(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither all_sqe/ nor all_sqe\.tar\.xz"):
        load_nw_ucla(tmp_path)
    (tmp_path / "all_sqe").mkdir()
    with pytest.raises(DataError, match=r"all_sqe: contains no \.json clips"):
        load_nw_ucla(tmp_path)
    (tmp_path / "broken.tar.xz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"broken\.tar\.xz: the archive cannot be read"):
        load_nw_ucla(tmp_path / "broken.tar.xz")


FAULTS = [
    pytest.param(b'{"skeletons": [[', "not valid JSON", id="cut short"),
    pytest.param(b"\xff\xfe\xfa", "not valid JSON", id="not text"),
    pytest.param(b"[1, 2]", "keys 'skeletons' and 'label'", id="not an object"),
    pytest.param(b'{"skeletons": []}', "keys 'skeletons' and 'label'", id="no label"),
    pytest.param({"skeletons": []}, "holds no frames", id="no frames"),
    pytest.param({"skeletons": [[[0, 0, 0]] * 20, [[0, 0, 0]] * 19]}, "frame 1 has 19 joints", id="lost joint"),
    pytest.param({"skeletons": [[[0, 0, 0]] * 25] * 3}, "frame 0 has 25 joints", id="other skeleton"),
    pytest.param({"skeletons": [[[0, 0]] * 20] * 3}, "three numbers", id="two coordinates"),
    pytest.param({"skeletons": [[["x", 0, 0]] * 20]}, "three numbers", id="text"),
    pytest.param({"skeletons": [[[0, 0, 0]] * 20, [[0, float("nan"), 0]] * 20]}, "frame 1, joint 0 .* not finite", id="NaN"),
    pytest.param({"skeletons": [[[0, 0, None]] * 20]}, "frame 0, joint 0 is .*not three numbers", id="null"),
    pytest.param({"label": 11}, "label 11 is out of range", id="label above"),
    pytest.param({"label": 0}, "label 0 is out of range", id="label below"),
    pytest.param({"label": "3"}, "label '3' is out of range", id="label text"),
    pytest.param({"label": [3]}, r"label \[3\] is out of range", id="label list"),
    pytest.param({"label": 3}, "label 3 contradicts the name, whose action 08 has label 7", id="label of another action"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_damaged_clips_are_named(tmp_path: Path, fault: bytes | dict[str, Any], message: str) -> None:
    name = clip_name(8, 0, 1)
    clip = {"file_name": name, "skeletons": [[[0.0, 0.0, 0.0]] * 20], "label": 7}
    content = fault if isinstance(fault, bytes) else json.dumps(clip | fault).encode()
    (tmp_path / "all_sqe").mkdir()
    (tmp_path / "all_sqe" / f"{name}.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"all_sqe/{name}\.json: .*{message}"):
        load_nw_ucla(tmp_path)
    archive = write_archive(tmp_path, {name: content}) / "all_sqe.tar.xz"
    with pytest.raises(DataError, match=rf"all_sqe\.tar\.xz: all_sqe/{name}\.json: .*{message}"):
        load_nw_ucla(archive)


def test_names_and_classes_must_be_complete(tmp_path: Path) -> None:
    clips = made_up_clips()
    without = {name: clip for name, clip in clips.items() if not (name.startswith("a09") and name.endswith("v03"))}
    with pytest.raises(DataError, match=r"class 'doffing' \(action a09\) has no clip in the test view 3"):
        load_nw_ucla(write_folder(tmp_path / "one", without))
    with pytest.raises(DataError, match=r"a07_s01_e00_v01\.json: not the name of an NW-UCLA clip"):
        load_nw_ucla(write_folder(tmp_path / "two", {**clips, "a07_s01_e00_v01": clips["a08_s01_e00_v01"]}))


@pytest.mark.parametrize("listed", [False, True])
def test_classes_without_training_clips_can_be_left_out(listed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shapmix")
    clips = {name: clip for name, clip in made_up_clips().items() if not (name.startswith("a09") and name[-1] in "12")}
    clips = {name: clip for name, clip in clips.items() if not (name.startswith("a02") and name[-1] == "3")}
    root = write_folder(tmp_path / "data", clips)
    options: dict[str, Any] = {"imbalance": 2.0, "n_max": 4}
    if listed:
        train = [name for name in clips if name[-1] in "12" and not name.startswith("a12") and "_e00_" not in name]
        (tmp_path / "list.txt").write_text("\n".join(train))
        options = {"train_list": tmp_path / "list.txt"}
    splits = load_nw_ucla(root, drop_empty_classes=True, **options)
    lost = {"doffing", "carry"} if listed else {"doffing"}
    assert splits.store.class_names == [name for name in CLASS_NAMES if name not in lost]
    for clip, label in zip(splits.store.names, splits.store.labels.tolist(), strict=True):
        assert splits.store.class_names[label] == CLASS_NAMES[ACTION_NUMBERS.index(int(clip[1:3]))]
    splits.check()
    assert f"{len(lost)} of 10 classes have no training clips and are dropped: 'doffing' (" in caplog.text


def test_published_nw_ucla_list_comes_out_bit_exactly() -> None:
    root = os.environ.get("SHAPMIX_NW_UCLA")
    if not root:
        pytest.skip("SHAPMIX_NW_UCLA is not set: no NW-UCLA recordings")
    splits = load_nw_ucla(root, imbalance=10)
    assert (len(splits.store), len(splits.test)) == (1484, 464)
    assert names_of(splits, splits.train) == read_list(Path(root) / "lt_exp_10.txt")
    assert (int(splits.store.lengths.min()), int(splits.store.lengths.max())) == (1, 201)
    # the largest class has 102 clips, of which the list uses 100
    assert splits.store.class_counts(splits.val).tolist() == [2] + [10] * 9


# --- synthetic clips -------------------------------------------------------------------------------------------------


def make_small(seed: int = 0, test_per_class: int = 2) -> Splits:
    return make_synthetic(n_max=8, imbalance=4, val_per_class=2, test_per_class=test_per_class, seed=seed)


@pytest.fixture(scope="module")
def small() -> Splits:
    return make_small()


def test_default_sizes_fill_every_bucket() -> None:
    assert [int(mask.sum()) for mask in buckets(longtail_counts(24, 150, 50))] == [3, 9, 12]


def test_sizes_follow_the_profile_but_not_the_class_ids(small: Splits) -> None:
    counts = small.class_counts().tolist()
    assert sorted(counts, reverse=True) == longtail_counts(24, 8, 4)
    assert abs(np.corrcoef(np.arange(24), counts)[0, 1]) < 0.5
    for split in (small.val, small.test):
        assert small.store.class_counts(split).tolist() == [2] * 24
    used = torch.cat([small.train, small.val, small.test])
    assert used.sort().values.tolist() == list(range(len(small.store)))


def test_equal_seeds_give_equal_clips(small: Splits) -> None:
    again, other = make_small(), make_small(seed=1)
    assert torch.equal(again.store.frames, small.store.frames)
    assert again.store.names == small.store.names
    assert not torch.equal(other.store.offsets, small.store.offsets)
    assert other.class_counts().tolist() != small.class_counts().tolist()


def test_a_clip_does_not_depend_on_how_many_are_made(small: Splits) -> None:
    more = make_small(test_per_class=3)
    index = {name: clip for clip, name in enumerate(more.store.names)}
    for clip, name in enumerate(small.store.names):
        assert torch.equal(small.store.clip(clip), more.store.clip(index[name]))


def test_form_of_the_clips(small: Splits) -> None:
    store = small.store
    assert store.frames.shape[1:] == (2, 25, 3)
    assert store.frames.dtype == torch.float32
    assert int(store.lengths.min()) >= 30
    assert int(store.lengths.max()) <= 150
    assert not store.frames[store.offsets[:-1], 0, JOINT["spine_mid"]].any()
    standing = torch.tensor([bool(store.clip(clip)[:, 1].any()) for clip in range(len(store))])
    assert 0.1 < standing.float().mean() < 0.3
    up = store.frames[:, 0, :, 1]
    standing_foot = up[:, [JOINT["left_ankle"], JOINT["right_ankle"]]].min(1).values
    height = up[:, JOINT["head"]] - standing_foot
    assert bool((height > 0.9).all())
    assert bool((height < 2.1).all())
    assert 1.4 < height.median() < 1.7


def test_bones_keep_their_length_within_a_clip(small: Splits) -> None:
    store = small.store
    child, parent = torch.tensor(LAYOUT.edges).T
    for clip in range(0, len(store), 5):
        frames = store.clip(clip)[:, 0].double()
        length = (frames[:, child] - frames[:, parent]).norm(dim=-1)
        assert (length.std(0) < 0.02).all()  # both ends have up to 1 cm of sensor error


def test_subjects_differ_between_splits_and_in_proportions(small: Splits) -> None:
    bone = (JOINT["left_knee"], JOINT["left_hip"])
    thigh: dict[str, float] = {}
    for clip, name in enumerate(small.store.names):
        frames = small.store.clip(clip)[:, 0]
        subject = name.split("_")[0] + name.split("_")[2]
        thigh.setdefault(subject, float((frames[:, bone[0]] - frames[:, bone[1]]).norm(dim=-1).mean()))
    assert len(thigh) > 30
    assert np.std(list(thigh.values())) > 0.01
    assert len({round(length, 3) for length in thigh.values()}) > len(thigh) / 2


def test_defining_parts_are_the_parts_of_the_class_name(small: Splits) -> None:
    assert small.defining_parts is not None
    for definition, parts, name in zip(CLASSES, small.defining_parts.tolist(), small.store.class_names, strict=True):
        assert {part for bit, part in enumerate(PARTS) if parts >> bit & 1} == set(definition)
        assert all(f"{part} {motion}" in name for part, motion in definition.items())


def test_every_defining_part_is_needed() -> None:
    """With one part hidden, a class of a block is indistinguishable from another class with the same parts."""
    for definition in CLASSES:
        for hidden in definition if len(definition) > 1 else ():
            rest = {part: motion for part, motion in definition.items() if part != hidden}
            alike = [c for c in CLASSES if c.keys() == definition.keys() and {p: c[p] for p in rest} == rest]
            assert len(alike) == 2
    assert not any(IDLE[kind].keys() & MOTIONS[kind].keys() for kind in MOTIONS)
    assert Counter(len(definition) for definition in CLASSES) == {2: 20, 1: 4}
    assert min(Counter(part for definition in CLASSES for part in definition).values()) >= 4


@pytest.mark.parametrize("seed", range(8))
def test_the_class_moves_only_its_defining_parts(seed: int) -> None:
    """Same random stream, different class of the block: parts with the same motion are bitwise identical."""
    body = Body.draw(np.random.default_rng(seed))
    first, *others = [definition for definition in CLASSES if definition.keys() == set(BLOCKS[-1])]
    reference = make_clip(first, body, np.random.SeedSequence(seed))
    for definition in others:
        clip = make_clip(definition, body, np.random.SeedSequence(seed))
        assert clip.shape == reference.shape
        for part, joints in LAYOUT.parts.items():
            same = np.array_equal(clip[:, :, list(joints)], reference[:, :, list(joints)])
            assert same == (definition.get(part) == first.get(part))


def test_idle_motion_is_independent_of_the_class() -> None:
    """Idle parts are bitwise identical to those of a clip without any defining part."""
    body = Body.draw(np.random.default_rng(0))
    for number, definition in enumerate(CLASSES):
        clip, idle = (make_clip(given, body, np.random.SeedSequence(number)) for given in (definition, {}))
        free = [joint for part, joints in LAYOUT.parts.items() if part not in definition for joint in joints]
        assert np.array_equal(clip[:, :, free], idle[:, :, free])


def test_class_numbers_that_cut_a_block_are_refused() -> None:
    with pytest.raises(DataError, match="one of 4, 8, 12, 13, 14, 15, 16, 20, 24"):
        make_synthetic(num_classes=10)
    with pytest.raises(DataError, match="at least 1"):
        make_synthetic(test_per_class=0)
    assert make_synthetic(num_classes=4, n_max=2, imbalance=2, val_per_class=1, test_per_class=1).store.num_classes == 4


def test_kinematics_turn_the_bone_that_ends_in_the_joint() -> None:
    body = Body.draw(np.random.default_rng(0))
    angles = np.zeros((2, LAYOUT.num_joints, 3))
    angles[1, JOINT["left_wrist"], 0] = -np.pi / 2
    still, bent = pose(body, angles)
    moved = {LAYOUT.joints[joint] for joint in np.flatnonzero(np.abs(bent - still).max(-1) > 1e-9)}
    assert moved == {"left_wrist", "left_hand", "left_hand_tip", "left_thumb"}
    assert bent[JOINT["left_wrist"], 2] > still[JOINT["left_wrist"], 2] + 0.2  # forward
    for joint, parent in CHAIN:
        assert np.linalg.norm(bent[joint] - bent[parent]) == pytest.approx(np.linalg.norm(body.bones[joint]))
