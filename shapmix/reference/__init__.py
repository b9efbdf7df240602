"""Reference implementation: every operation of Shap-Mix as a plain eager function.

Those that have kernels share name and arguments with them; the kernels are tested and benchmarked against these functions.
"""

from shapmix.draws.plans import AugmentPlan, CropPlan, FramePlan, MixPlan
from shapmix.reference.branches import join_branches
from shapmix.reference.clips import Stream, pick_frames, sample_clips, sample_frames, to_stream
from shapmix.reference.coalition import coalition_inputs
from shapmix.reference.graph import graph_conv, graph_conv_backward
from shapmix.reference.loss import balanced_mix_loss, balanced_mix_loss_backward, log_class_prior
from shapmix.reference.mix import mix_clips
from shapmix.reference.norm import batch_norm, batch_norm_backward
from shapmix.reference.plan import draw_plan
from shapmix.reference.saliency import average_in, expected_marginals, label_probability, marginals, saliency_update

__all__ = [
    "AugmentPlan",
    "CropPlan",
    "FramePlan",
    "MixPlan",
    "Stream",
    "average_in",
    "balanced_mix_loss",
    "balanced_mix_loss_backward",
    "batch_norm",
    "batch_norm_backward",
    "coalition_inputs",
    "draw_plan",
    "expected_marginals",
    "graph_conv",
    "graph_conv_backward",
    "join_branches",
    "label_probability",
    "log_class_prior",
    "marginals",
    "mix_clips",
    "pick_frames",
    "saliency_update",
    "sample_clips",
    "sample_frames",
    "to_stream",
]
