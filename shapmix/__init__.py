"""Shap-Mix: mixing skeleton clips by body part and time window, guided by Shapley values of the parts."""

from importlib import metadata

import shapmix.process.openmp  # noqa: F401 (first: decides how torch's threads wait, and loads the handling of Ctrl-C)
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MixedBatch
from shapmix.process.cpu import prepare_cpu
from shapmix.skeleton.layout import Layout, load_layout


def _installed_version() -> str:
    """Version of the installed package, `0+unknown` in a checkout that is not installed."""
    try:
        return metadata.version("shapmix")
    except metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = _installed_version()

__all__ = ["Layout", "MixedBatch", "ShapMix", "__version__", "load_layout", "prepare_cpu"]
