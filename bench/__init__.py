"""Benchmarks and their results; they run from a checkout, with or without an installation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


class _KernelsOfCheckout:
    """Import hook: finds `shapmix.kernels` in the kernels/ folder of the checkout if no installed package provides it."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "shapmix.kernels":
            return None
        folder = ROOT / "kernels"
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if _KernelsOfCheckout not in sys.meta_path:
    sys.meta_path.append(_KernelsOfCheckout)  # last, so that an installed package takes precedence
