"""Errors that a command shows as one line: what was wrong, where, and what to do."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names the file or clip, what is wrong with it, and what to do."""


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""

    exit_code = 1


class RunRefusedError(RunError):
    """A run that would do what it is told, but hardly what is meant; --force insists."""

    exit_code = 2
