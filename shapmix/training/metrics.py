"""Accuracy and calibration of a long-tailed classifier: over clips, over classes, over many-, medium- and few-shot classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from shapmix.data.longtail import buckets
from shapmix.process.files import write_whole

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # prefixes that a spreadsheet may interpret as a formula, and the escape
COLUMNS = ("top1", "top5", "class_mean", "many", "medium", "few", "macro_f1", "worst_class")
Column = Literal[
    "top1", "top5", "class_mean", "many", "medium", "few", "macro_f1", "worst_class", "ece", "ece_many", "ece_medium", "ece_few"
]  # fmt: skip
CALIBRATION = ("ece", "ece_many", "ece_medium", "ece_few")
CALIBRATION_BINS = 15
HEADS = {
    **{name: name.replace("_", " ") for name in COLUMNS},
    **{"top1": "top-1", "top5": "top-5", "macro_f1": "macro F1"},
    **{name: name.replace("_", " ").replace("ece", "ECE") for name in CALIBRATION},
}


@dataclass(frozen=True)
class Accuracy:
    """Accuracies and calibration errors between 0 and 1; None if a bucket has no tested class.

    many, medium and few are means over classes with more than 100, 20 to 100, and fewer than 20 training clips. macro_f1 is the
    mean over the tested classes of the harmonic mean of precision and recall, worst_class the lowest accuracy of a tested class.
    ece is the expected calibration error (Guo et al., ICML 2017, equation 3, 15 bins): the mean absolute difference of confidence
    and accuracy, over all clips and over those whose class is in a bucket.
    """

    clips: int
    top1: float
    top5: float
    class_mean: float
    many: float | None
    medium: float | None
    few: float | None
    macro_f1: float
    worst_class: float
    ece: float | None
    ece_many: float | None
    ece_medium: float | None
    ece_few: float | None
    tau: float | None = None
    """Of post-hoc logit adjustment, None without it."""

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """[K, K] int64: rows are true classes, columns predictions. logits [N, K], labels [N]."""
    return multiclass_confusion_matrix(logits, labels, num_classes=logits.shape[1])


def class_accuracy(confusion: Tensor) -> Tensor:
    """[K, K] -> [K] recall of each class; NaN for a class without clips."""
    return confusion.diag().double() / confusion.sum(1)


def class_f1(confusion: Tensor) -> Tensor:
    """[K, K] -> [K] harmonic mean of precision and recall of each class; NaN for a class without clips."""
    f1 = 2 * confusion.diag().double() / (confusion.sum(0) + confusion.sum(1))
    return f1.where(confusion.sum(1) > 0, torch.nan)


def accuracy(probabilities: Tensor, labels: Tensor, class_counts: Tensor) -> Accuracy:
    """Accuracy of probabilities [N, K] for labels [N]; class_counts [K] are those of the training set."""
    num_classes = probabilities.shape[1]
    confusion = confusion_matrix(probabilities, labels)
    by_class = class_accuracy(confusion)
    tested = ~by_class.isnan()

    def mean(members: Tensor) -> float | None:
        chosen = members & tested
        return float(by_class[chosen].mean()) if chosen.any() else None

    def top(k: int) -> float:
        k = min(k, num_classes)
        return float(multiclass_accuracy(probabilities, labels, num_classes=num_classes, average="micro", top_k=k))

    members = buckets(class_counts)._asdict()
    return Accuracy(
        clips=len(labels),
        top1=top(1),
        top5=top(5),
        class_mean=float(by_class[tested].mean()),
        **{name: mean(each) for name, each in members.items()},
        macro_f1=float(class_f1(confusion)[tested].mean()),
        worst_class=float(by_class[tested].min()),
        ece=calibration_error(probabilities, labels),
        **{f"ece_{name}": calibration_error(probabilities, labels, each) for name, each in members.items()},
    )


def calibration_error(probabilities: Tensor, labels: Tensor, members: Tensor | None = None) -> float | None:
    """Expected calibration error of probabilities [N, K], of the clips whose class is in `members` [K] bool; None without clips."""
    if members is not None:
        chosen = members[labels]
        probabilities, labels = probabilities[chosen], labels[chosen]
    if not len(labels):
        return None
    return float(multiclass_calibration_error(probabilities, labels, num_classes=probabilities.shape[1], n_bins=CALIBRATION_BINS))


def write_class_table(path: Path, confusion: Tensor, class_counts: Tensor, class_names: list[str]) -> None:
    """CSV with one row per class: name, training clips, bucket, test clips, accuracy, and the most frequent wrong prediction."""
    by_class = class_accuracy(confusion)
    bucket_of = {
        label: name for name, members in buckets(class_counts)._asdict().items() for label in members.nonzero().flatten().tolist()
    }
    wrong = confusion.clone().fill_diagonal_(0)
    rows: list[list[str | int]] = [["class", "name", "train_clips", "bucket", "test_clips", "accuracy", "most_taken_for"]]
    for label, name in enumerate(class_names):
        tested = int(confusion[label].sum())
        share = f"{float(by_class[label]):.4f}" if tested else "n/a"
        mistaken = class_names[int(wrong[label].argmax())] if wrong[label].any() else ""
        rows.append([label, name, int(class_counts[label]), bucket_of[label], tested, share, mistaken])
    write_csv(path, rows)


def write_confusion(path: Path, confusion: Tensor, class_names: list[str]) -> None:
    """CSV with one row per true class and one column per predicted class."""
    rows = [[name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True)]
    write_csv(path, [["true \\ predicted", *class_names], *rows])


def write_csv(path: Path, rows: Iterable[Sequence[str | int | float]]) -> None:
    """Writes CSV; names that a spreadsheet may interpret as a formula (= + - @, tab or carriage return first) are prefixed with '.

    Names that start with ' are also prefixed, so that the escape is reversible. Numbers are not changed.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(
        [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row] for row in rows
    )
    write_whole(path, text.getvalue())


def table(rows: dict[str, Accuracy]) -> str:
    """Aligned text: accuracies, and below them calibration errors; one row per name, in percent, n/a without a tested class."""
    accuracies = _aligned("", rows, COLUMNS)
    return f"{accuracies}\n\n{_aligned(f'calibration error, {CALIBRATION_BINS} bins', rows, CALIBRATION)}"


def _aligned(title: str, rows: dict[str, Accuracy], columns: Sequence[str]) -> str:
    width = max(len(title), *(len(name) for name in rows))
    lines = [f"{title:<{width}}" + "".join(f"{HEADS[column]:>12}" for column in columns)]
    for name, row in rows.items():
        values = (row.as_dict()[column] for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{'n/a' if value is None else f'{100 * value:.1f}%':>12}" for value in values))
    return "\n".join(lines)
