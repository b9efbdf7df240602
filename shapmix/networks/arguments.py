"""Argument checks of mixers and games; each error names the argument, its value, and what to give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shapmix.kernels.checks import DTYPES, check_dtype


def whole_counts(name: str, value: Tensor | Sequence[int]) -> Tensor:
    """Converts a tensor, array or list of K integers, K at least 1, to [K] int64.

    Raises:
        TypeError, ValueError: the value is none of these.
    """
    if not isinstance(value, (Tensor, list, tuple, np.ndarray)):
        raise TypeError(f"{name} is a {type(value).__name__}; give a tensor or list [K]")
    counts = torch.as_tensor(value)
    if counts.dim() != 1 or len(counts) == 0:
        raise ValueError(f"{name} has shape {list(counts.shape)}; give [K], the training clips of each class")
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise TypeError(f"{name} is {counts.dtype}; give whole numbers, as torch.int64")
    return counts.long()


def check_mean_motion(mean_motion: Tensor, num_joints: int, layout: str) -> None:
    """Checks for a finite floating point tensor [C, T, V, M] with the joints of the layout.

    Raises:
        TypeError, ValueError: a check fails.
    """
    _check_is_tensor("mean_motion", mean_motion, "[C, T, V, M]")
    if mean_motion.dim() != 4 or mean_motion.numel() == 0:
        raise ValueError(f"mean_motion has shape {list(mean_motion.shape)}; give [C, T, V, M] with no axis empty")
    check_dtype("mean_motion", mean_motion, DTYPES)
    if mean_motion.shape[2] != num_joints:
        shape = f"shape {list(mean_motion.shape)}, [C, T, V, M]"
        raise ValueError(f"mean_motion has {mean_motion.shape[2]} joints ({shape}); layout '{layout}' has {num_joints}")
    finite = mean_motion.isfinite()
    if not finite.all():
        at = torch.nonzero(~finite)[0].tolist()
        raise ValueError(f"mean_motion{at} is {float(mean_motion[tuple(at)])}; average clips with finite coordinates")


def check_clips(clips: Tensor, mean_motion: Tensor) -> None:
    """Checks for floating point clips [N, C, T, V, M] that match the mean motion [C, T, V, M], N at least 1.

    Raises:
        TypeError, ValueError: a check fails.
    """
    _check_is_tensor("clips", clips, "[N, C, T, V, M]")
    check_dtype("clips", clips, DTYPES)
    expected = mean_motion.shape
    if clips.dim() != 5 or clips.shape[1:] != expected or len(clips) == 0:
        permuted = clips.dim() == 5 and clips.shape[1:] != expected and sorted(clips.shape[1:]) == sorted(expected)
        how = ", the axes of mean_motion in a different order" if permuted else ""
        raise ValueError(f"clips has shape {list(clips.shape)}{how}; give [N, {', '.join(map(str, expected))}], as mean_motion")
    if clips.device != mean_motion.device:
        raise ValueError(f"clips is on {clips.device}, mean_motion on {mean_motion.device}; move one of them")


def check_labels(labels: Tensor, clips: Tensor, classes: int | None, *, values: bool = True) -> None:
    """Checks for int64 labels [N] of clips [N, ...], from 0 to the number of classes - 1.

    Args:
        classes: None if unknown.
        values: check the range of labels on the CPU; labels on other devices are never read, since that would synchronise with
            the host.

    Raises:
        TypeError, ValueError: a check fails.
    """
    _check_is_tensor("labels", labels, "[N]")
    if labels.shape != clips.shape[:1]:
        raise ValueError(f"labels has shape {list(labels.shape)}; give [{len(clips)}], a class index a clip")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels is {labels.dtype}; give torch.int64")
    if labels.device != clips.device:
        raise ValueError(f"labels is on {labels.device}, clips on {clips.device}; move one of them")
    if classes is None or not values or labels.device.type != "cpu":
        return
    outside = torch.nonzero((labels < 0) | (labels >= classes)).flatten()
    if len(outside):
        at = int(outside[0])
        raise ValueError(f"labels[{at}] is {int(labels[at])}; classes are 0..{classes - 1}")


def check_logits(name: str, logits: Any, rows: int, classes: int | None) -> None:
    """Checks for floating point logits [L, K]; `classes` None allows any K.

    Raises:
        TypeError, ValueError: a check fails, for example if a network returns a tuple.
    """
    wanted = f"[{rows}, {'K' if classes is None else classes}]"
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} is a {type(logits).__name__}; give logits {wanted} alone")
    if logits.dim() != 2 or len(logits) != rows or classes not in (None, logits.shape[1]):
        of_class = "a class" if classes is None else "a class of class_counts"
        raise ValueError(f"{name} has shape {list(logits.shape)}; give {wanted}, a row a clip and a column {of_class}")
    check_dtype(name, logits, DTYPES)


def _check_is_tensor(name: str, value: object, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; give a tensor {shape}")
