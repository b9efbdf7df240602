"""Shap-Mix: mixing skeleton clips by body part and time window, guided by Shapley values of the parts."""

__version__ = "0.1.0"

from shapmix.layout import Layout, load_layout
from shapmix.mixing import MixedBatch, ShapMix

__all__ = ["Layout", "MixedBatch", "ShapMix", "__version__", "load_layout"]
