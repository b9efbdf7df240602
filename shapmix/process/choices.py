"""A name out of several: refused with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?`, or nothing where no known word is close."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of several names.

    Raises:
        ValueError: any other, with the nearest one.
    """
    if value in choices:
        return
    hint = nearest(value, choices) if isinstance(value, str) else ""
    raise ValueError(f"{name} is {value!r}{hint + ' Give' if hint else '; give'} one of {', '.join(choices)}")
