"""Argument checks shared by all back ends: shape, dtype, device. Values are checked by the native code, on CPU tensors only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[Tensor, Tensor], Tensor]  # (tensor, first tensor of the op) -> the tensor as kernels read it

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SUM_DTYPES = (torch.float32, torch.float64)


def check_clips(clips: Tensor) -> None:
    """Checks for [N, C, T, V, M], floating point, no empty axis."""
    if clips.dim() != 5 or clips.numel() == 0:
        raise ValueError(f"clips has shape {list(clips.shape)}; give [N, C, T, V, M] with no axis empty")
    check_dtype("clips", clips, DTYPES)


def check_dtype(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Checks that a tensor has one of the given dtypes."""
    if value.dtype not in dtypes:
        *others, last = map(dtype_name, dtypes)
        raise TypeError(f"{name} is {value.dtype}; give {', '.join(others)} or {last}")


def check_tensor(
    name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, device_of: str = "clips"
) -> None:
    """Checks shape, dtype and device; `device_of` names the argument whose device is required."""
    if value.dtype != dtype:
        raise TypeError(f"{name} is {value.dtype}; give {dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {list(value.shape)}; give {list(shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, {device_of} on {device}; move it with .to('{device}')")


def check_out(out: Tensor, shape: tuple[int, ...], like: Tensor, name: str = "clips") -> None:
    """Checks an output buffer: contiguous, dtype and device of `like` (the argument `name`), not tracked by autograd."""
    check_tensor("out", out, shape, like.dtype, like.device, name)
    if not out.is_contiguous():
        raise ValueError("out is not contiguous; give a buffer from torch.empty")
    check_not_tracked("out", out)


def check_not_tracked(name: str, written: Tensor) -> None:
    """Checks that autograd does not track a tensor that is written in place: its gradient would miss the write."""
    if torch.is_grad_enabled() and written.requires_grad:
        raise ValueError(f"{name} requires a gradient; give a buffer that does not, or call under torch.no_grad()")


def check_no_overlap(name: str, written: Tensor, **read: Tensor | None) -> None:
    """Checks that the address range of a tensor that is written does not overlap those of the tensors that are read."""
    begin, end = _addresses(written)
    for other, value in read.items():
        if value is None or value.device != written.device:
            continue
        first, last = _addresses(value)
        if begin < last and first < end:
            raise ValueError(f"{name} overlaps {other} in memory; give a separate buffer")


def _addresses(x: Tensor) -> tuple[int, int]:
    """Address range [begin, end) of a non-empty tensor, in bytes."""
    begin = x.data_ptr()
    return begin, begin + (1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def check_not_negated(name: str, written: Tensor) -> None:
    """Checks for the lazy negative bit: a write to the memory would have the wrong sign."""
    if written.is_neg():
        raise ValueError(f"{name} has the lazy negative bit set; give {name}.resolve_neg()")


def new_output(out: Tensor | None, shape: tuple[int, ...], like: Tensor, name: str = "clips") -> Tensor:
    """The output buffer `out`, checked, or a new tensor with dtype and device of `like`, which is the argument `name`."""
    if out is None:
        return like.new_empty(shape)
    check_out(out, shape, like, name)
    return out


def as_given(x: Tensor, first: Tensor) -> Tensor:
    """A layout: kernels read the strides."""
    return x


def in_sum_dtype(x: Tensor, first: Tensor) -> Tensor:
    """A layout: contiguous, in the accumulation dtype of the first tensor."""
    return x.to(sum_dtype(first.dtype)).contiguous()


def in_channels_last(x: Tensor, first: Tensor) -> Tensor:
    """A layout: [N, C, T, V] in channels-last memory."""
    return x.contiguous(memory_format=torch.channels_last)


def in_rows(x: Tensor, first: Tensor) -> Tensor:
    """A layout: [N, C, T, V] with contiguous channels and evenly spaced joints; a channel slice of such a tensor is not copied."""
    return x.contiguous(memory_format=torch.channels_last) if row_stride(x) is None else x


def in_planes(clips: Tensor, first: Tensor) -> Tensor:
    """A layout: clips [..., T, V, M] with contiguous planes [T, V, M]: the input itself if it has them, else a contiguous copy."""
    if clips.is_contiguous():
        return clips
    frames, joints, people = clips.shape[-3:]
    of_frame, of_joint, of_person = clips.stride()[-3:]
    whole = (people == 1 or of_person == 1) and (joints == 1 or of_joint == people) and (frames == 1 or of_frame == joints * people)
    return clips if whole else clips.contiguous()


def row_stride(x: Tensor) -> int | None:
    """Stride in elements between the joints of [N, C, T, V] if channels are contiguous and joints evenly spaced, else None."""
    n, channels, frames, joints = x.shape
    if channels > 1 and x.stride(1) != 1:
        return None
    stride, rows = None, 1
    for size, step in ((joints, x.stride(3)), (frames, x.stride(2)), (n, x.stride(0))):
        if size == 1:  # the stride of an axis of size 1 is meaningless
            continue
        if stride is None:
            stride = step
        elif step != rows * stride:
            return None
        rows *= size
    return channels if stride is None else stride


def set_strides(coalitions: Tensor) -> tuple[int, int]:
    """Strides in elements over the sets and over the samples of coalitions [S] (shared by the batch: 0) or [S, N]."""
    return (coalitions.stride(0), 0 if coalitions.dim() == 1 else coalitions.stride(1))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The accumulation dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
