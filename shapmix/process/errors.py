"""The errors that a command shows as one line: what was wrong, where, and what to do."""

from __future__ import annotations


class ShapmixError(Exception):
    """Base of every error that a user can cause and correct; a command prints its message and exits with code 2."""


class DataError(ShapmixError, ValueError):
    """Data that cannot be used; the message names the file or clip, what is wrong with it, and what to do."""


class RunError(ShapmixError, RuntimeError):
    """A run that cannot start or continue; the message says why and what to do."""
