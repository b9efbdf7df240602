"""Benchmarks and their results; they run from a checkout, with or without an installation."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
