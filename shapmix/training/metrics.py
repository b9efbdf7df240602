"""Accuracy of a long-tailed classifier: over clips, over classes, and over many-, medium- and few-shot classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from shapmix.data.longtail import buckets
from shapmix.process.files import write_whole

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # prefixes that a spreadsheet may interpret as a formula, and the escape
COLUMNS = ("top1", "top5", "class_mean", "many", "medium", "few")


@dataclass(frozen=True)
class Accuracy:
    """Accuracies between 0 and 1; None if a bucket has no tested class.

    many, medium and few are means over classes with more than 100, 20 to 100, and fewer than 20 training clips.
    """

    clips: int
    top1: float
    top5: float
    class_mean: float
    many: float | None
    medium: float | None
    few: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """[K, K] int64: rows are true classes, columns predictions. logits [N, K], labels [N]."""
    return multiclass_confusion_matrix(logits, labels, num_classes=logits.shape[1])


def class_accuracy(confusion: Tensor) -> Tensor:
    """[K, K] -> [K] recall of each class; NaN for a class without clips."""
    return confusion.diag().double() / confusion.sum(1)


def accuracy(logits: Tensor, labels: Tensor, class_counts: Tensor) -> Accuracy:
    """Accuracy of logits [N, K] for labels [N]; class_counts [K] are those of the training set."""
    num_classes = logits.shape[1]
    by_class = class_accuracy(confusion_matrix(logits, labels))
    tested = ~by_class.isnan()

    def mean(members: Tensor) -> float | None:
        chosen = members & tested
        return float(by_class[chosen].mean()) if chosen.any() else None

    def top(k: int) -> float:
        return float(multiclass_accuracy(logits, labels, num_classes=num_classes, average="micro", top_k=min(k, num_classes)))

    return Accuracy(
        clips=len(labels),
        top1=top(1),
        top5=top(5),
        class_mean=float(by_class[tested].mean()),
        **{name: mean(members) for name, members in buckets(class_counts)._asdict().items()},
    )


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
    """Aligned text table: one row per name, columns in percent, n/a if a bucket has no tested class."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{column.replace('_', ' '):>12}" for column in COLUMNS)]
    for name, row in rows.items():
        values = (row.as_dict()[column] for column in COLUMNS)
        lines.append(f"{name:<{width}}" + "".join(f"{'n/a' if value is None else f'{100 * value:.1f}%':>12}" for value in values))
    return "\n".join(lines)
