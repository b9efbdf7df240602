"""The steps of CTR-GCN's fused layers, on the back ends that have them."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .dispatch import choose

SHARED_OF_DOUBLE = 102 << 10  # bytes of shared memory that the fused layers take in float64; consumer cards have 99 KB


def layer_steps(x: Tensor) -> ModuleType | None:
    """The functions of `shapmix.reference.layer` on the back end that runs on x; None if that one works op by op.

    Raises:
        BackendError: SHAPMIX_BACKEND requests a back end that cannot run on x.
    """
    if choose("graph_conv", x, None) != "triton":
        return None
    if x.dtype == torch.float64 and x.is_cuda and _shared_memory(x.device) < SHARED_OF_DOUBLE:
        return None
    return import_module(".triton_unit", __package__)


def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may take."""
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def tile_of_joints(joints: int) -> str:
    """How the fused layers of a GPU hold the joints of a skeleton: in one tile, or in several, which is slower."""
    if find_spec("triton") is None:
        return "not available: triton is not installed, so CTR-GCN runs op by op"
    unit = import_module(".triton_unit_graph", __package__)
    if _gradient_launches(joints, torch.bfloat16) == 1:
        found = f"{joints} joints fit one tile"
        return found if _gradient_launches(joints, torch.float32) == 1 else f"{found} in bf16, but not in fp32, which is slower"
    size = unit.BACKWARD[torch.bfloat16].u
    return f"slower path: {joints} joints do not fit one tile of {size}, so graphs and features take a backward kernel each"


def _gradient_launches(joints: int, dtype: torch.dtype) -> int:
    """Kernels of the graph unit's backward pass, counted on tensors without memory."""
    launches = import_module(".triton_launch", __package__)
    unit = import_module(".triton_unit_graph", __package__)
    narrow, wide = (partial(torch.empty, dtype=kind, device="meta") for kind in (dtype, torch.float32))
    y, factors = narrow(1, 16, joints, 64), narrow(1, 3, joints, joints, 8)
    weights = (narrow(3, 64, 64), wide(3, 64), narrow(3, 64, 8), wide(3, 64), wide(1), wide(3, joints, joints))
    with launches.record_launches() as recorded:
        unit.graph_unit_backward(y, y, wide(6, 64), wide(2, 64), y, factors, *weights)
    return len(recorded)
