"""Validation of names, with suggestions for misspelled ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?`, or an empty string if no known word is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks that `value` is one of `choices`.

    Raises:
        ValueError: it is not; the message suggests the closest choice.
    """
    if value in choices:
        return
    hint = nearest(value, choices) if isinstance(value, str) else ""
    raise ValueError(f"{name} is {value!r}{hint + ' Give' if hint else '; give'} one of {', '.join(choices)}")
