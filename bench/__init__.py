"""What is measured, and where the results lie; runs from a checkout, installed or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


class _KernelsOfCheckout:
    """Finds `shapmix.kernels` in kernels/, where it lies in a checkout, if nothing that is installed has it."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "shapmix.kernels":
            return None
        folder = ROOT / "kernels"
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if _KernelsOfCheckout not in sys.meta_path:
    sys.meta_path.append(_KernelsOfCheckout)  # asked last
