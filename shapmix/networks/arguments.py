"""What the classes of this package ask of their arguments: one sentence that names the argument, what it is, and what to give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shapmix.kernels.checks import DTYPES, check_dtype


def whole_counts(name: str, value: Tensor | Sequence[int]) -> Tensor:
    """[K] int64 of a tensor, an array or a list of whole numbers, K at least 1.

    Raises:
        TypeError, ValueError: anything else.
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
    """[C, T, V, M] floating point, finite, of a layout's joints.

    Raises:
        TypeError, ValueError: anything else.
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
        raise ValueError(f"mean_motion{at} is {float(mean_motion[tuple(at)])}; take the mean of clips that are finite")


def check_clips(clips: Tensor, mean_motion: Tensor) -> None:
    """[N, C, T, V, M] floating point beside the mean motion [C, T, V, M], N at least 1.

    Raises:
        TypeError, ValueError: anything else.
    """
    _check_is_tensor("clips", clips, "[N, C, T, V, M]")
    check_dtype("clips", clips, DTYPES)
    expected = mean_motion.shape
    if clips.dim() != 5 or clips.shape[1:] != expected or len(clips) == 0:
        turned = clips.dim() == 5 and clips.shape[1:] != expected and sorted(clips.shape[1:]) == sorted(expected)
        how = ", the axes of mean_motion in another order" if turned else ""
        raise ValueError(f"clips has shape {list(clips.shape)}{how}; give [N, {', '.join(map(str, expected))}], as mean_motion")
    if clips.device != mean_motion.device:
        raise ValueError(f"clips is on {clips.device}, mean_motion on {mean_motion.device}; move one of them")


def check_labels(labels: Tensor, clips: Tensor, classes: int | None, *, values: bool = True) -> None:
    """[N] int64 beside clips [N, ...], from 0 to the number of classes less 1.

    Args:
        classes: None where it is not known.
        values: whether they are read where they lie on the CPU; elsewhere they never are, as the host would wait for them.

    Raises:
        TypeError, ValueError: anything else.
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
    """[L, K] floating point; `classes` is None where any number will do.

    Raises:
        TypeError, ValueError: anything else, such as a tuple that a network returned.
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
