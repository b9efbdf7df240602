"""What the ops ask of their arguments, whatever the back end. Values are checked by the native code, on CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_clips(clips: Tensor) -> None:
    """[N, C, T, V, M] floating point, no axis empty."""
    if clips.dim() != 5 or clips.numel() == 0:
        raise ValueError(f"clips has shape {list(clips.shape)}; give [N, C, T, V, M] with no axis empty")
    if clips.dtype not in DTYPES:
        raise TypeError(f"clips is {clips.dtype}; give float32, float64, float16 or bfloat16")


def check_tensor(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Shape, element type and device of an argument that goes with the clips."""
    if value.dtype != dtype:
        raise TypeError(f"{name} is {value.dtype}; give {dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} has shape {list(value.shape)}; give {list(shape)}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, clips on {device}; move it with .to('{device}')")


def check_out(out: Tensor, shape: tuple[int, ...], clips: Tensor) -> None:
    """A result buffer: contiguous, and no part of the clips."""
    check_tensor("out", out, shape, clips.dtype, clips.device)
    if not out.is_contiguous():
        raise ValueError("out is not contiguous; give a buffer from torch.empty")
    if out.untyped_storage().data_ptr() == clips.untyped_storage().data_ptr():
        raise ValueError("out shares its storage with clips; give a buffer of its own")


def with_whole_planes(clips: Tensor) -> Tensor:
    """Clips [..., T, V, M] whose planes [T, V, M] are contiguous already, else a contiguous copy."""
    if clips.is_contiguous():
        return clips
    frames, joints, people = clips.shape[-3:]
    of_frame, of_joint, of_person = clips.stride()[-3:]
    whole = (people == 1 or of_person == 1) and (joints == 1 or of_joint == people) and (frames == 1 or of_frame == joints * people)
    return clips if whole else clips.contiguous()


def set_strides(coalitions: Tensor) -> tuple[int, int]:
    """Elements between the sets and between the samples of coalitions [S] (shared: 0) or [S, N]."""
    return (coalitions.stride(0), 0 if coalitions.dim() == 1 else coalitions.stride(1))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")
