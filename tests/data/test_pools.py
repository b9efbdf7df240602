"""Which clips train and which test: random, in folds, by a column, by published protocols; and what is said otherwise."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from shapmix import prepare, train
from shapmix.data.clips import join_clips
from shapmix.data.pools import SplitOptions, find_pools
from shapmix.data.store import NUMBERS, Prepared, open_store
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import load_layout

LAYOUT = load_layout("ucla20")
LABELS = [0] * 40 + [1] * 11 + [2] * 5 + [3] * 2 + [4]


def prepared(
    labels: list[int] = LABELS, columns: dict[str, list[str]] | None = None, names: list[str] | None = None, **numbers: list[int]
) -> Prepared:
    names = names or [f"clip{row:02d}" for row in range(len(labels))]
    clips = join_clips([torch.ones(2, 1, 20, 3)] * len(labels), labels, names, LAYOUT, [f"c{k}" for k in range(max(labels) + 1)])
    zeros = [0] * len(labels)
    return Prepared(clips, {one: torch.tensor(numbers.get(one, zeros)) for one in NUMBERS}, {}, {}, columns or {})


def clips_that_test(found: Prepared, **options: object) -> list[int]:
    pools = find_pools(found, SplitOptions(**options))  # type: ignore[arg-type]
    assert sorted([*pools.train.tolist(), *pools.test.tolist()]) == list(range(len(found.clips)))
    assert not len(pools.val)
    return pools.test.tolist()


def test_a_random_split_is_stratified_and_repeats() -> None:
    found = prepared()
    tests = clips_that_test(found, split="random", test_share=0.2)
    assert Counter(LABELS[row] for row in tests) == {0: 8, 1: 2, 2: 1, 3: 1}  # a class of one clip trains
    assert tests == clips_that_test(found, split="random") == clips_that_test(found, test_share=0.2)
    assert tests != clips_that_test(found, split="random", split_seed=1)


@pytest.mark.parametrize("parts", [2, 5])
def test_every_clip_tests_in_one_fold(parts: int) -> None:
    found = prepared()
    folds = [clips_that_test(found, fold=f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(row for fold in folds for row in fold) == [row for row, label in enumerate(LABELS) if label < 4]
    assert max(map(len, folds)) - min(map(len, folds)) <= 1
    for label, size in Counter(LABELS).items():
        per_fold = [sum(LABELS[row] == label for row in fold) for fold in folds]
        assert max(per_fold) - min(per_fold) <= 1, (label, size)
    assert folds[0] == clips_that_test(found, split="random", fold=f"1/{parts}")


def test_a_fold_of_a_list_leaves_the_other_clips_alone() -> None:
    found = prepared()
    listed = torch.arange(0, len(LABELS), 2)
    found.splits.update(train=listed, test=torch.arange(1, len(LABELS), 2))
    folds = [find_pools(found, SplitOptions(train_split="train", fold=f"{part}/2")) for part in (1, 2)]
    for pools in folds:
        assert sorted([*pools.train.tolist(), *pools.test.tolist()]) == listed.tolist()
        assert not len(pools.val)
        assert Counter(LABELS[row] for row in pools.train.tolist())[0] == 10
    both = sorted([*folds[0].test.tolist(), *folds[1].test.tolist()])
    assert both == [row for row in listed.tolist() if LABELS[row] < 3]  # classes 3 and 4 have one clip in the list, which trains


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_split": "trian"}, r"train_split: the data has no list 'trian'; did you mean 'train'\? its lists are train"),
        ({"train_split": "train", "split": "random"}, "split and train_split both say which clips are divided; give one"),
        ({"train_split": "train", "test_split": "train"}, "fold: train_split and test_split already divide the clips"),
        ({"train_split": "train", "test_share": 0.2}, "test_share and fold all say which clips test; give one"),
        (
            {"test_split": "train"},
            "train_split and test_split belong together; give both, or --fold to divide the list train_split",
        ),
    ],
)
def test_a_fold_of_a_list_takes_one_list(options: dict[str, Any], message: str) -> None:
    found = prepared()
    found.splits.update(train=torch.arange(len(LABELS)))
    with pytest.raises(DataError, match=message):
        find_pools(found, SplitOptions(fold="1/2", **options))


def test_the_cameras_of_a_performance_stay_together() -> None:
    labels = [row // 3 % 2 for row in range(60)]
    found = prepared(labels, subject=[1 + row // 6 for row in range(60)], camera=[1 + row % 3 for row in range(60)])
    for options in ({"split": "random"}, {"fold": "1/4"}):
        tests = clips_that_test(found, **options)
        assert tests
        assert {row // 3 for row in tests} & {row // 3 for row in range(60) if row not in tests} == set()


def test_a_setup_with_a_replication_is_a_performance() -> None:
    """As of PKU-MMD, whose recordings name no subject."""
    numbers = {"setup": [1 + row // 6 for row in range(60)], "replication": [1 + row // 3 % 2 for row in range(60)]}
    tests = clips_that_test(prepared([row // 3 % 2 for row in range(60)], **numbers), split="random")
    assert tests
    assert not {row // 3 for row in tests} & {row // 3 for row in range(60) if row not in tests}


def test_a_protocol_of_three_lists_validates_on_its_own() -> None:
    found, rows = prepared(), torch.arange(59)
    found.splits.update(cv1_train=rows[:30], cv1_val=rows[30:40], cv1_test=rows[40:], cv2_train=rows[:30], cv2_val=rows[30:])
    pools = find_pools(found, SplitOptions(split="cv1"))
    assert [len(part) for part in pools] == [30, 10, 19]
    pools = find_pools(found, SplitOptions(split="cv2"))  # a list of validation alone tests
    assert [len(part) for part in pools] == [30, 0, 29]


def test_clips_of_one_person_are_different_performances() -> None:
    """A table with subjects alone does not say which clips show the same performance."""
    for options in ({"split": "random"}, {"fold": "1/5"}):
        assert clips_that_test(prepared(subject=[1] * 59), **options) == clips_that_test(prepared(), **options)


def test_a_column_leaves_one_value_out() -> None:
    subjects = [1 + row % 10 for row in range(59)]
    found = prepared(subject=subjects, columns={"session": [f"s{row % 3}" for row in range(59)]})
    for value in (1, 10):
        left_out = [row for row, subject in enumerate(subjects) if subject == value]
        assert clips_that_test(found, split="subject", test_values=(str(value),)) == left_out
        assert clips_that_test(found, split="subject", fold=f"{value}/10") == left_out
    assert clips_that_test(found, split="subject", fold="2/3") == [
        row for row, subject in enumerate(subjects) if subject in (2, 5, 8)
    ]
    assert clips_that_test(found, split="session", test_values=("s0", "s2")) == [row for row in range(59) if row % 3 != 1]
    drawn = {subjects[row] for row in clips_that_test(found, split="subject", test_share=0.3)}
    assert len(drawn) == 3
    assert drawn == {subjects[row] for row in clips_that_test(found, split="subject", test_share=0.3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "subject"}, "say which clips test: --test-values of 1, 2, 3; --fold 1/3; or --test-share 0.2"),
        ({"split": "subject", "test_values": ("4",)}, "no clip has the subject '4'; the values are 1, 2, 3"),
        ({"split": "subject", "fold": "1/4"}, "4 parts of 3 values of subject; give at most --fold 1/3"),
        ({"split": "camera"}, r"'camera'; this data supports --split random; --split subject \(with --test-values of 1, 2, 3, or"),
        ({"split": "sesion"}, "unknown split 'sesion'; did you mean 'session'"),
        ({"split": "session", "fold": "1/2"}, "the session of 'clip01' is unknown"),
        ({"split": "xsub"}, "'xsub' is a protocol of NTU RGB.D, whose recordings are not named 'clip00'"),
        ({"split": "cross-view"}, "'cross-view' is a protocol of NW-UCLA"),
        ({}, "the data has no lists, but none named train; choose the test clips: this data supports --split random"),
        ({"fold": "0/5"}, "fold: i/k such as 1/5"),
        ({"fold": "1/1"}, "fold: i/k such as 1/5"),
        ({"fold": "a"}, "fold: i/k such as 1/5"),
        ({"test_share": 1.0}, "test_share: a fraction"),
        ({"fold": "1/5", "test_share": 0.2}, "test_share and fold all say which clips test; give one"),
        ({"test_values": ("1",)}, "give --split COLUMN"),
        ({"train_split": "a", "test_split": "b", "split": "random"}, "split: train_split and test_split already divide"),
    ],
)  # fmt: skip
def test_what_the_data_does_not_have_is_refused_with_what_it_has(options: dict[str, object], message: str) -> None:
    found = prepared([0] * 6 + [1] * 6, subject=[1, 2, 3] * 4, camera=[0, 1] * 6, columns={"session": ["a", "", "b"] * 4})
    with pytest.raises(DataError, match=message):
        find_pools(found, SplitOptions(**options))  # type: ignore[arg-type]


def test_a_foreign_data_set_is_never_offered_the_subjects_of_ntu() -> None:
    with pytest.raises(DataError) as caught:
        find_pools(prepared([0, 1] * 6, subject=[1, 2, 3] * 4, camera=[1, 2] * 6, setup=[1, 2] * 6), SplitOptions(split="none"))
    for name in ("xsub", "xview", "xset", "cross-view"):
        assert name not in str(caught.value)
    names = [f"S001C001P{row:03d}R001A001" for row in range(1, 13)]
    with pytest.raises(DataError, match="--split xsub; --split random; --split subject"):
        find_pools(prepared([0, 1] * 6, names=names, subject=list(range(1, 13))), SplitOptions(split="none"))
    with pytest.raises(
        DataError, match=r"split 'xview' needs the camera, which is unknown for 'S001.*; this data supports --split xsub"
    ):
        find_pools(prepared([0, 1] * 6, names=names, subject=list(range(1, 13))), SplitOptions(split="xview"))
    with pytest.raises(DataError, match="fold: split 'xsub' already says which clips test; remove --fold"):
        find_pools(prepared([0, 1] * 6, names=names, subject=list(range(1, 13))), SplitOptions(split="xsub", fold="1/2"))


def test_a_run_records_its_split_and_evaluates_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = ["name,label,session"]
    for row in range(24):
        np.save(raw / f"c{row}.npy", np.random.default_rng(row).normal(size=(5, 20, 3)).astype(np.float32))
        rows.append(f"c{row},{'ab'[row % 2]},{'xyz'[row // 2 % 3]}")
    (raw / "labels.csv").write_text("\n".join(rows))
    assert prepare.main([str(raw), str(tmp_path / "store"), "--layout", "ucla20"]) == 0
    assert open_store(tmp_path / "store").columns == {"session": [*"xxyyzz"] * 4}
    small = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "4", "--epochs", "1", "--mix", "none", "--threads", "1"]
    command = ["--dataset", "store", "--data-root", str(tmp_path / "store"), "--device", "cpu", *small]
    assert train.main([*command, "--run-dir", str(tmp_path / "none")]) == 2
    assert "--split session (with --test-values of x, y, z, or --fold 1/3)" in capsys.readouterr().err
    assert train.main([*command, "--run-dir", str(tmp_path / "run"), "--split", "session", "--test-values", "y"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["split"], config["test_values"], config["split_seed"]) == ("session", ["y"], 0)
    assert train.main(["--resume", str(tmp_path / "run"), "--test-values", "z"]) == 2
    assert "test_values: the run was started with ['y']" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["synthetic", "nw-ucla"])
def test_fixed_splits_are_not_chosen(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--data-root", str(tmp_path)] if dataset != "synthetic" else []
    for option, given in (("fold", "1/5"), ("drop_classes", "a"), ("split", "xsub")):
        assert train.main(["--dataset", dataset, *root, f"--{option.replace('_', '-')}", given]) == 2
        assert re.search(f"{option}: dataset '{dataset}' has fixed classes and a fixed split", capsys.readouterr().err)
