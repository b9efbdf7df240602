"""Registries of named choices, and validation of names with suggestions for misspelled ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TypeVar

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """The named choices of an option; `--help`, error messages and tests list every registered choice.

    Args:
        option: name of the option.
    """

    def __init__(self, option: str) -> None:
        super().__init__()
        self.option = option

    def add(self, name: str, entry: Entry) -> None:
        """Registers a choice.

        Raises:
            ValueError: the name is already registered, or is not valid on the command line.
        """
        if not name.replace("-", "_").isidentifier():
            raise ValueError(f"{self.option} '{name}' cannot be registered: use letters, digits and _")
        if name in self:
            raise ValueError(f"{self.option} '{name}' is already registered; choose another name")
        self[name] = entry

    def find(self, name: str) -> Entry:
        """The choice with that name.

        Raises:
            ValueError: an unknown name; the message suggests the closest one.
        """
        check_choice(self.option, name, self)
        return self[name]


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?`, or an empty string if no known word is close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Checks that `value` is one of `choices`.

    Raises:
        ValueError: it is not; the message suggests the closest choice.
    """
    if isinstance(value, str) and value in choices:
        return
    hint = nearest(value, choices) if isinstance(value, str) else ""
    raise ValueError(f"{name} is {value!r}{hint + ' Give' if hint else '; give'} one of {', '.join(choices)}")
