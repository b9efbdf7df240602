"""Simulates an environment with only torch, Triton, NumPy and pytest: all other packages cannot be imported."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions, requires

KEPT = ("torch", "triton", "numpy", "pytest")
BUILT = ("shapmix._native", "shapmix._native_cuda")


def bare_machine() -> str:
    """Python source that blocks the other packages; must run before any import."""
    kept = needed(KEPT)
    blocked = {module for module, owners in packages_distributions().items() if not kept & {_name(owner) for owner in owners}}
    return f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(blocked - {"shapmix", "bench"})!r} or name in {BUILT!r}:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""


def needed(packages: tuple[str, ...]) -> set[str]:
    """These packages and their dependencies, without extras."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        package = _name(waiting.pop())
        if package in found:
            continue
        found.add(package)
        for requirement in requires(package) or []:
            name, _, marker = requirement.partition(";")
            if "extra ==" not in marker and not re.search(r"python_version < .3\.1[01]|win32|python_full_version <", marker):
                waiting.append(re.split(r"[\s<>=!~\[(]", name.strip())[0])
    return found


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
