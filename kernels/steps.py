"""The steps of CTR-GCN's fused layers, on the back ends that have them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import Tensor

from .dispatch import choose


def layer_steps(x: Tensor) -> ModuleType | None:
    """The functions of `shapmix.reference.layer` on the back end that runs on x; None if that one works op by op.

    Raises:
        BackendError: SHAPMIX_BACKEND requests a back end that cannot run on x.
    """
    return import_module(".triton_unit", __package__) if choose("graph_conv", x, None) == "triton" else None
