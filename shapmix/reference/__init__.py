"""The specification: every operation of Shap-Mix as one plain eager function.

The kernels have the same names and signatures; tests and benchmarks compare them with these.
"""

from shapmix.reference.clips import CropPlan, FramePlan, Stream, sample_clips, sample_frames, to_stream
from shapmix.reference.coalition import coalition_inputs
from shapmix.reference.loss import balanced_mix_loss, log_class_prior
from shapmix.reference.mix import MixPlan, mix_clips
from shapmix.reference.saliency import expected_marginals, label_probability, marginals, update_saliency

__all__ = [
    "CropPlan",
    "FramePlan",
    "MixPlan",
    "Stream",
    "balanced_mix_loss",
    "coalition_inputs",
    "expected_marginals",
    "label_probability",
    "log_class_prior",
    "marginals",
    "mix_clips",
    "sample_clips",
    "sample_frames",
    "to_stream",
    "update_saliency",
]
