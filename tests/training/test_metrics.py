"""Accuracy by bucket on made-up logits with known answers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from shapmix.training import metrics


def logits_for(predictions: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_accuracy_by_bucket() -> None:
    counts = torch.tensor([300, 101, 100, 20, 19, 1])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 4, 5])
    logits = logits_for([0, 0, 0, 1, 1, 0, 2, 0, 4, 0], 6)
    measured = metrics.accuracy(logits, labels, counts)
    assert measured.clips == 10
    assert measured.top1 == pytest.approx(0.6)
    assert measured.class_mean == pytest.approx((0.75 + 0.5 + 1 + 0 + 1 + 0) / 6)
    assert measured.many == pytest.approx((0.75 + 0.5) / 2)
    assert measured.medium == pytest.approx(0.5)
    assert measured.few == pytest.approx(0.5)


def test_top5_counts_the_five_largest() -> None:
    logits = torch.arange(8.0).repeat(8, 1)  # classes 3 to 7 are the five largest
    measured = metrics.accuracy(logits, torch.arange(8), torch.full((8,), 50))
    assert measured.top5 == pytest.approx(5 / 8)
    assert metrics.accuracy(logits[:, :3], torch.tensor([0] * 8), torch.full((3,), 50)).top5 == 1


def test_empty_buckets_and_untested_classes_are_not_counted() -> None:
    measured = metrics.accuracy(logits_for([0, 0], 3), torch.tensor([0, 1]), torch.tensor([50, 50, 5]))
    assert measured.many is None
    assert measured.few is None  # class 2 is few-shot, but no clip of it was tested
    assert measured.class_mean == pytest.approx(0.5)
    assert "n/a" in metrics.table({"run": measured})


def test_names_that_a_spreadsheet_would_compute_are_text(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@sum", "\tx", "'quoted", "plain", "a=b"]
    marked = ["'" + name if name not in ("plain", "a=b") else name for name in names]
    confusion = torch.eye(8, dtype=torch.int64)
    confusion[6, 0] = 2
    metrics.write_class_table(tmp_path / "classes.csv", confusion, torch.full((8,), 50), names)
    metrics.write_confusion(tmp_path / "confusion.csv", confusion, names)
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == marked
    assert rows[6]["most_taken_for"] == marked[0]
    assert [row["train_clips"] for row in rows] == ["50"] * 8
    with (tmp_path / "confusion.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["true \\ predicted", *marked]
    assert [line[0] for line in lines] == marked
    assert [[int(cell) for cell in line[1:]] for line in lines] == confusion.tolist()


def test_class_table(tmp_path: Path) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    confusion = metrics.confusion_matrix(logits_for([0, 1, 1, 1], 3), labels)
    path = tmp_path / "classes.csv"
    metrics.write_class_table(path, confusion, torch.tensor([200, 50, 3]), ['wave, "left"', "sit", "kick"])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ['wave, "left"', "sit", "kick"]
    assert [row["bucket"] for row in rows] == ["many", "medium", "few"]
    assert [row["accuracy"] for row in rows] == ["0.5000", "1.0000", "n/a"]
    assert [row["most_taken_for"] for row in rows] == ["sit", "", ""]
