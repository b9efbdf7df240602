"""Errors that a command reports in one line: what was wrong, where, and what to do."""

from __future__ import annotations


class ShapmixError(Exception):
    """Base of all errors that a user can cause and fix; a command prints the message and exits with code 2."""


class DataError(ShapmixError, ValueError):
    """Invalid data; the message names the file or clip, the problem and the remedy."""


class RunError(ShapmixError, RuntimeError):
    """A run cannot start or continue; the message says why and what to do."""
