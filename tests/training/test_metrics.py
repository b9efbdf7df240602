"""Accuracy by bucket on made-up logits with known answers."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from shapmix.training import metrics

COUNTS = torch.tensor([300, 101, 100, 20, 19, 1])


def logits_for(predictions: list[int], classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def drawn(clips: int = 400, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [N, 6] of a mediocre classifier, and labels."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(6, (clips,), generator=generator)
    logits = torch.randn(clips, 6, generator=generator, dtype=torch.float64)
    logits[torch.arange(clips), labels] += 1
    return (sharpness * logits).softmax(1), labels


def error_of_calibration(probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], bins: int = 15) -> float:
    """Guo et al., ICML 2017, equation 3: bins (0, 1/15], (1/15, 2/15], ..., of the largest probability."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    inside = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    return sum(abs(right[each].sum() - confidence[each].sum()) for each in inside) / len(labels)


def test_macro_f1_and_the_worst_class_are_their_definitions() -> None:
    probabilities, labels = drawn()
    measured = metrics.accuracy(probabilities, labels, COUNTS)
    confusion = np.zeros((6, 6))
    np.add.at(confusion, (labels.numpy(), probabilities.argmax(1).numpy()), 1)
    recall, precision = np.diag(confusion) / confusion.sum(1), np.diag(confusion) / confusion.sum(0)
    assert measured.macro_f1 == pytest.approx((2 * precision * recall / (precision + recall)).mean())
    assert measured.worst_class == pytest.approx(recall.min())
    f1_score = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed").f1_score
    assert measured.macro_f1 == pytest.approx(f1_score(labels, probabilities.argmax(1), average="macro"))


def test_macro_f1_counts_classes_that_are_tested() -> None:
    """A class without test clips that is predicted lowers the precision of no class, but the recall of the true one."""
    measured = metrics.accuracy(logits_for([0, 0, 1, 2], 4), torch.tensor([0, 0, 1, 1]), torch.tensor([50, 50, 5, 5]))
    assert measured.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert measured.worst_class == pytest.approx(0.5)


def test_calibration_is_its_definition_in_each_bucket() -> None:
    probabilities, labels = drawn()
    measured = metrics.accuracy(probabilities, labels, COUNTS)
    bucket = {"ece_many": (0, 1), "ece_medium": (2, 3), "ece_few": (4, 5), "ece": range(6)}
    for name, members in bucket.items():
        chosen = np.isin(labels.numpy(), list(members))
        expected = error_of_calibration(probabilities.numpy()[chosen], labels.numpy()[chosen])
        assert getattr(measured, name) == pytest.approx(expected, abs=1e-6), name
        assert expected > 0.02
    assert metrics.accuracy(probabilities, labels, torch.full((6,), 50)).ece_few is None


def test_a_calibrated_set_has_no_error_and_a_certain_wrong_one_all() -> None:
    """Of 5 clips with a confidence of 0.6, 3 are right; of 4 with 0.75, 3."""
    first, second = [0.6, 0.3, 0.1], [0.05, 0.75, 0.2]
    probabilities = torch.tensor([first] * 5 + [second] * 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 2, 1, 1, 1, 2])
    assert metrics.accuracy(probabilities, labels, torch.full((3,), 50)).ece == pytest.approx(0, abs=1e-7)
    wrong = metrics.accuracy(logits_for([0, 0], 2), torch.tensor([1, 1]), torch.full((2,), 50))
    assert (wrong.ece, wrong.top1, wrong.macro_f1, wrong.worst_class) == (1, 0, 0, 0)


def test_the_table_shows_every_figure() -> None:
    measured = metrics.accuracy(*drawn(), COUNTS)
    heads, row, _, calibration_heads, calibration = metrics.table({"run": measured}).splitlines()
    shown = [cell for line in (row, calibration) for cell in line.split()[1:]]
    columns = (*metrics.COLUMNS, *metrics.CALIBRATION)
    assert shown == [f"{100 * measured.as_dict()[column]:.1f}%" for column in columns]
    assert set(columns) == set(metrics.HEADS) == set(get_args(metrics.Column)) == set(measured.as_dict()) - {"clips", "tau"}
    assert "macro F1" in heads
    assert "calibration error" in calibration_heads
    assert len(heads) == len(row) <= 132


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
    probabilities = torch.arange(8.0).repeat(8, 1).softmax(1)  # classes 3 to 7 are the five largest
    measured = metrics.accuracy(probabilities, torch.arange(8), torch.full((8,), 50))
    assert measured.top5 == pytest.approx(5 / 8)
    three = torch.arange(3.0).repeat(8, 1).softmax(1)
    assert metrics.accuracy(three, torch.tensor([0] * 8), torch.full((3,), 50)).top5 == 1


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
