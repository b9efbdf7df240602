"""Classes without training clips, single-class data, empty splits, and the lists of a store."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import evaluate, predict, prepare, train
from shapmix.data.clips import ClipStore, join_clips
from shapmix.data.pools import SplitOptions
from shapmix.data.splits import store_splits
from shapmix.data.store import NUMBERS, Prepared, open_store
from shapmix.process.errors import DataError
from shapmix.skeleton.layout import load_layout
from shapmix.training.checkpoint import read_checkpoint

LAYOUT = load_layout("ucla20")
OPTIONS = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "4", "--epochs", "1", "--mix", "none", "--threads", "1"]
OPTIONS += ["--device", "cpu"]

pytestmark = pytest.mark.usefixtures("no_pictures")


def clips_of(labels: list[int], class_names: list[str]) -> ClipStore:
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(3 + number % 5, 1, 20, 3, generator=generator) for number in range(len(labels))]
    return join_clips(clips, labels, [f"clip{number:02d}" for number in range(len(labels))], LAYOUT, class_names)


def prepared(rows: list[tuple[int, str]], class_names: list[str]) -> Prepared:
    """A store of clips (label, list)."""
    lists = sorted({name for _, name in rows})
    splits = {one: torch.tensor([row for row, (_, name) in enumerate(rows) if name == one]) for one in lists}
    numbers = {number: torch.zeros(len(rows), dtype=torch.int64) for number in NUMBERS}
    return Prepared(clips_of([label for label, _ in rows], class_names), numbers, splits, {})


def write_plain(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """A folder of clips (label, list) in the plain format."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    table = ["name,label,split"]
    for number, (label, split) in enumerate(rows):
        np.save(folder / f"clip{number:02d}.npy", generator.normal(size=(4 + number % 9, 20, 3)).astype(np.float32))
        table.append(f"clip{number:02d},{label},{split}")
    (folder / "labels.csv").write_text("\n".join(table))
    return folder


def make_store(folder: Path, rows: list[tuple[str, str]]) -> Path:
    assert prepare.main([str(write_plain(folder / "raw", rows)), str(folder / "store"), "--layout", "ucla20"]) == 0
    return folder / "store"


def train_on(store: Path, run: Path, *options: str) -> int:
    return train.main(["--dataset", "store", "--data-root", str(store), "--run-dir", str(run), *OPTIONS, *options])


GAPS = [(label, split) for label in (1, 3, 4) for split in ["train"] * 4 + ["val", "test"]] + [(2, "test"), (2, "val"), (5, "test")]


def test_every_class_without_training_clips_is_named() -> None:
    with pytest.raises(
        DataError, match=r"3 of 6 classes have no training clip: 0 \('a'\), 2 \('c'\), 5 \('f'\); .*--drop-empty-classes"
    ):
        store_splits(prepared(GAPS, list("abcdef")))
    with pytest.raises(DataError, match=r"labels start at 1: use --label-offset 1 of .*--drop-empty-classes"):
        store_splits(prepared([(label, name) for label, name in GAPS if label], [str(number) for number in range(6)]))
    with pytest.raises(DataError, match=r"only the test clips have 'c d', 'f', which --drop-classes 'c d' f drops"):
        store_splits(prepared(GAPS, ["a", "b", "c d", "d", "e", "f"]))
    ordinary = [(label, split) for label in (0, 2) for split in ["train"] * 3 + ["test"]]
    with pytest.raises(DataError, match=r"class 1 \('1'\) has no training clip"):
        store_splits(prepared(ordinary, ["0", "1", "2"]))


@pytest.mark.parametrize("choice", ["all", "imbalance", "list"])
def test_empty_classes_are_left_out_and_named(choice: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = prepared(GAPS, list("abcdef"))
    listed = [name for row, name in enumerate(found.clips.names) if GAPS[row][1] == "train" and GAPS[row][0] != 4]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    options = {"all": {}, "imbalance": {"imbalance": 2.0, "n_max": 4}, "list": {"train_list": tmp_path / "list.txt"}}[choice]
    caplog.set_level(logging.INFO, "shapmix")
    splits = store_splits(found, drop_empty_classes=True, **options)
    kept = {"b": 1, "d": 3, "e": 4} if choice != "list" else {"b": 1, "d": 3}
    assert splits.store.class_names == list(kept)
    assert splits.class_counts().tolist() == {"all": [4, 4, 4], "imbalance": [4, 2, 2], "list": [4, 4]}[choice]
    for clips in (splits.train, splits.val, splits.test):
        assert len(clips)
        for clip in clips.tolist():
            before = found.clips.names.index(splits.store.names[clip])
            assert kept[splits.store.class_names[int(splits.store.labels[clip])]] == GAPS[before][0]
            assert torch.equal(splits.store.clip(clip), found.clips.clip(before))
    assert f"{6 - len(kept)} of 6 classes have no training clips and are dropped" in caplog.text
    assert "'c' (1 validation, 1 test clips)" in caplog.text
    assert "'f' (0 validation, 1 test clips)" in caplog.text
    assert "'a'" not in caplog.text


def test_nothing_is_copied_where_no_clip_is_left_out() -> None:
    found = prepared([(label + 1, split) for label in range(2) for split in ["train"] * 3 + ["test"]], list("abc"))
    splits = store_splits(found, drop_empty_classes=True)
    assert splits.store.class_names == ["b", "c"]
    assert splits.store.frames.data_ptr() == found.clips.frames.data_ptr()


def test_named_classes_are_dropped_with_their_clips(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shapmix")
    splits = store_splits(prepared(GAPS, list("abcdef")), drop_classes=("a", "c", "f", "e"))
    assert splits.store.class_names == ["b", "d"]
    assert splits.class_counts().tolist() == [4, 4]
    assert "dropped classes: 'c' (1 validation, 1 test clips), 'e' (4 training, 1 validation, 1 test clips)" in caplog.text
    with pytest.raises(DataError, match="drop_classes: there is no class 'kikc'; did you mean 'kick'"):
        store_splits(prepared(GAPS, ["kick", *"bcdef"]), drop_classes=("kikc",))


def test_a_run_without_empty_classes_is_one_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, store, run = (
        write_plain(tmp_path / "raw", [(str(label), split) for label, split in GAPS]),
        tmp_path / "store",
        tmp_path / "run",
    )
    prepared_so = [str(raw), str(store), "--layout", "ucla20"]
    assert prepare.main(prepared_so) == 2
    assert "labels start at 1: use --label-offset 1, so that class '1' is the first" in capsys.readouterr().err
    assert prepare.main([*prepared_so, "--label-offset", "0"]) == 0
    assert train_on(store, run) == 2
    assert "labels start at 1" in capsys.readouterr().err
    assert not run.exists()
    assert train_on(store, run, "--drop-empty-classes") == 0
    assert "drop_empty_classes: true" in (run / "config.yaml").read_text()
    assert read_checkpoint(run / "checkpoints" / "last.pt")["class_names"] == ["1", "3", "4"]
    assert evaluate.main([str(run), "--device", "cpu"]) == 0
    assert json.loads((run / "evaluation" / "result.json").read_text())["clips"] == 3
    capsys.readouterr()
    assert predict.main([str(run), str(tmp_path / "raw" / "clip00.npy"), "--json", "--no-parts"]) == 0
    assert sorted(name for name, _ in json.loads(capsys.readouterr().out)["classes"]) == ["1", "3", "4"]


def test_one_class_is_told_when_it_is_prepared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_store(tmp_path, [("a", "train"), ("a", "test")] * 2)
    assert "all recordings are of class 'a'; training needs at least two classes" in caplog.text


def test_labels_from_1_are_shifted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(str(label), split) for label in (1, 2) for split in ["train"] * 4 + ["val", "test"]]
    raw = write_plain(tmp_path / "raw", rows)
    assert prepare.main([str(raw), str(tmp_path / "store"), "--layout", "ucla20", "--label-offset", "1"]) == 0
    clips = open_store(tmp_path / "store").clips
    assert clips.class_names == ["1", "2"]
    assert clips.labels.tolist() == [0] * 6 + [1] * 6
    assert train_on(tmp_path / "store", tmp_path / "run") == 0
    named = write_plain(tmp_path / "named", [(f"class {label}", split) for label, split in rows])
    for folder, offset, message in (
        (raw, "2", "--label-offset 2 contradicts the label of 'clip00', which is 1"),
        (named, "1", "--label-offset is for numbered classes, but class 0 is 'class 1'"),
    ):
        assert prepare.main([str(folder), str(tmp_path / "no"), "--layout", "ucla20", "--label-offset", offset]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a", split) for split in ["train"] * 6 + ["val", "test"]], [], "one class, 'a'; a classifier needs at least two"),
        ([("a", "train"), ("a", "test"), ("b", "test")] * 4, ["--drop-empty-classes"], "one class, 'a'"),
        ([("a", "train"), ("b", "train"), ("a", "test")], [], "no validation clips"),
        (
            [("a", "train"), ("b", "train")] * 4,
            [],
            "the data has the list train but no test list; choose the test clips: this data supports --split random; --fold 1/5",
        ),
        ([("a", "train"), ("b", "train"), ("a", "test")] * 4, ["--min-frames", "100"], "no training clips of at least 100 frames"),
    ],
)
def test_what_cannot_train_is_refused_before_there_is_a_run(
    rows: list[tuple[str, str]], options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_on(make_store(tmp_path, rows), tmp_path / "run", *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_any_two_lists_train_and_test() -> None:
    rows = [(label, split) for label in (0, 1) for split in ["train"] * 5 + ["val"] * 2 + ["other"]]
    found = prepared(rows, ["a", "b"])
    for training, testing in ((None, "val"), ("train", "val"), ("train", "other"), ("other", "train")):
        options = SplitOptions() if training is None else SplitOptions(train_split=training, test_split=testing)
        splits = store_splits(found, options)
        assert {rows[clip][1] for clip in splits.test.tolist()} == {testing}
        assert {rows[clip][1] for clip in [*splits.train.tolist(), *splits.val.tolist()]} == {training or "train"}
        assert len(splits.val) or training == "other"  # one clip a class leaves none
    for training, testing, message in (
        ("train", "tset", r"test_split: the data has no list 'tset'; its lists are other, train, val"),
        ("trian", "val", r"train_split: the data has no list 'trian'; did you mean 'train'\? its lists are"),
        ("train", "train", "train_split and test_split are both 'train'; give two lists"),
        ("train", None, "train_split and test_split belong together"),
    ):
        with pytest.raises(DataError, match=message):
            store_splits(found, SplitOptions(train_split=training, test_split=testing))


def test_a_store_with_its_own_validation_list_uses_it_by_name_too() -> None:
    rows = [(label, split) for label in (0, 1) for split in ["train"] * 5 + ["val"] * 2 + ["test"]]
    found = prepared(rows, ["a", "b"])
    for options in (SplitOptions(), SplitOptions(train_split="train", test_split="test")):
        assert {rows[clip][1] for clip in store_splits(found, options).val.tolist()} == {"val"}


def test_lists_that_share_clips_are_refused() -> None:
    found = prepared([(label, split) for label in (0, 1) for split in ["train"] * 5 + ["val", "test"]], ["a", "b"])
    both = {**found.splits, "test": torch.cat([found.splits["test"], found.splits["train"][:2]])}
    with pytest.raises(DataError, match=r"2 training clips are also test clips, such as 'clip00'"):
        store_splits(Prepared(found.clips, found.numbers, both, {}))
    both = {**found.splits, "test": found.splits["val"]}
    with pytest.raises(DataError, match=r"2 validation clips are also test clips, .*--train-split train --test-split val"):
        store_splits(Prepared(found.clips, found.numbers, both, {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 2, 1])}, r"clip 'y' has label 2; the 2 classes are 0 to 1"),
        ({"labels": torch.tensor([0, -1, 1])}, r"clip 'y' has label -1"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, r"labels must be \[n\] int64, not \[3\] float32"),
        ({"labels": torch.tensor([[0], [1], [1]])}, r"labels must be \[n\] int64, not \[3, 1\] int64"),
        ({"class_names": []}, r"the data has no classes"),
        ({"class_names": ["a", "a"]}, r"two classes are named 'a'"),
        ({"names": ["x", "y", "x"]}, r"two clips are named 'x'"),
        ({"names": ["x", "y"]}, "2 names, 3 labels and 3 clips do not match"),
        ({"frames": torch.zeros(6, 1, 20, 3, dtype=torch.int64)}, "frames must be floating point, not int64"),
        ({"frames": torch.zeros(6, 0, 20, 3)}, r"frames must be .*, not \[6, 0, 20, 3\]"),
        ({"frames": torch.zeros(6, 1, 20, 0)}, r"frames must be .*, not \[6, 1, 20, 0\]"),
        ({"frames": torch.zeros(6, 1, 20, 1), "scores": True}, "one coordinate, which cannot be a score alone"),
        ({"offsets": torch.tensor([0.0, 2.0, 4.0, 6.0])}, r"offsets must be \[n \+ 1\] int64"),
        ({"offsets": torch.zeros(0, dtype=torch.int64)}, r"offsets must be \[n \+ 1\] int64"),
        ({"offsets": torch.tensor([0, 4, 2, 6])}, "clip 'y' has no frames"),
        ({"offsets": torch.tensor([0, 2, 4, 5])}, "offsets run from 0 to 5, expected 0 to 6"),
        ({"frames": torch.full((6, 1, 20, 3), torch.nan)}, "clip 'x' has a non-finite coordinate: frame 0, person 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_store_is_checked_when_it_is_made(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "frames": torch.zeros(6, 1, 20, 3),
        "offsets": torch.tensor([0, 2, 4, 6]),
        "labels": torch.tensor([0, 1, 1]),
        "names": ["x", "y", "z"],
        "layout": LAYOUT,
        "class_names": ["a", "b"],
    }
    assert len(ClipStore(**good)) == 3
    with pytest.raises(DataError, match=message):
        ClipStore(**{**good, **change})
