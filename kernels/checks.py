"""What the ops ask of their arguments, whatever the back end. Values are checked by the native code, on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SUM_DTYPES = (torch.float32, torch.float64)


def check_clips(clips: Tensor) -> None:
    """[N, C, T, V, M] floating point, no axis empty."""
    if clips.dim() != 5 or clips.numel() == 0:
        raise ValueError(f"clips has shape {list(clips.shape)}; give [N, C, T, V, M] with no axis empty")
    check_dtype("clips", clips, DTYPES)


def check_dtype(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """One of several element types."""
    if value.dtype not in dtypes:
        *others, last = map(dtype_name, dtypes)
        raise TypeError(f"{name} is {value.dtype}; give {', '.join(others)} or {last}")


def check_tensor(
    name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, beside: str = "clips"
) -> None:
    """Shape, element type and device of an argument that goes with another one, `beside`."""
    if value.dtype != dtype:
        raise TypeError(f"{name} is {value.dtype}; give {dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {list(value.shape)}; give {list(shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, {beside} on {device}; move it with .to('{device}')")


def check_out(out: Tensor, shape: tuple[int, ...], beside: Tensor, name: str = "clips") -> None:
    """A result buffer: contiguous, like the argument it goes with, and not recorded by autograd."""
    check_tensor("out", out, shape, beside.dtype, beside.device, name)
    if not out.is_contiguous():
        raise ValueError("out is not contiguous; give a buffer from torch.empty")
    check_unrecorded("out", out)


def check_unrecorded(name: str, written: Tensor) -> None:
    """A tensor that is written in place and that autograd does not follow: no gradient would know of the writing."""
    if torch.is_grad_enabled() and written.requires_grad:
        raise ValueError(f"{name} requires a gradient; give a buffer that does not, or write it under torch.no_grad()")


def check_apart(name: str, written: Tensor, **read: Tensor | None) -> None:
    """A tensor that is written shares no memory with one that is read, nor does what lies between their elements."""
    begin, end = _addresses(written)
    for other, value in read.items():
        if value is None or value.device != written.device:
            continue
        first, last = _addresses(value)
        if begin < last and first < end:
            raise ValueError(f"{name} overlaps {other} in memory; give a buffer of its own")


def _addresses(x: Tensor) -> tuple[int, int]:
    """The first byte and the one behind the last, of a tensor that is not empty."""
    begin = x.data_ptr()
    return begin, begin + (1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def written_to(out: Tensor) -> Tensor:
    """`out`, told to autograd as written: what was saved of it for a gradient is no longer there."""
    torch.autograd.graph.increment_version(out)
    return out


def with_whole_planes(clips: Tensor) -> Tensor:
    """Clips [..., T, V, M] whose planes [T, V, M] are contiguous already, else a contiguous copy."""
    if clips.is_contiguous():
        return clips
    frames, joints, people = clips.shape[-3:]
    of_frame, of_joint, of_person = clips.stride()[-3:]
    whole = (people == 1 or of_person == 1) and (joints == 1 or of_joint == people) and (frames == 1 or of_frame == joints * people)
    return clips if whole else clips.contiguous()


def row_stride(x: Tensor) -> int | None:
    """Elements from joint to joint of [N, C, T, V] where joints lie evenly spaced and channels together, else None."""
    n, channels, frames, joints = x.shape
    if channels > 1 and x.stride(1) != 1:
        return None
    stride, rows = None, 1
    for size, step in ((joints, x.stride(3)), (frames, x.stride(2)), (n, x.stride(0))):
        if size == 1:  # its stride says nothing
            continue
        if stride is None:
            stride = step
        elif step != rows * stride:
            return None
        rows *= size
    return channels if stride is None else stride


def set_strides(coalitions: Tensor) -> tuple[int, int]:
    """Elements between the sets and between the samples of coalitions [S] (shared: 0) or [S, N]."""
    return (coalitions.stride(0), 0 if coalitions.dim() == 1 else coalitions.stride(1))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of a type's elements are taken in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
