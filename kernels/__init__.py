"""Fast implementations of the ops in `shapmix.reference`, with the same names, arguments and results.

`op` declares an op; `dispatch` selects its back end: `cpp` (C++), `cuda` (CUDA C++), `triton` or `reference`.
"""

from .branches import join_branches
from .clips import sample_clips
from .coalition import coalition_inputs, expanded
from .dispatch import BACKENDS, BackendError, unavailable
from .graph import graph_conv
from .loss import balanced_mix_loss
from .mix import mix_clips
from .norm import batch_norm
from .plan import draw_plan
from .saliency import saliency_update
from .steps import layer_steps

__all__ = [
    "BACKENDS",
    "BackendError",
    "backends",
    "balanced_mix_loss",
    "batch_norm",
    "coalition_inputs",
    "draw_plan",
    "expanded",
    "graph_conv",
    "join_branches",
    "layer_steps",
    "mix_clips",
    "saliency_update",
    "sample_clips",
    "unavailable",
]


def backends(device: str = "cpu") -> dict[str, str | None]:
    """Maps each back end to the reason why it cannot run on a device such as `cpu` or `cuda:0`, or to None if it can."""
    import torch

    return {backend: unavailable(backend, torch.device(device)) for backend in BACKENDS}
