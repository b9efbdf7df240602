"""Pickles of the field, read without running what they hold.

A pickle is a program: it may name any function and have it called. This unpickler admits what NumPy arrays, numbers and plain
containers are made with, replaces NumPy's part by functions that take numbers and text only, and refuses everything else by name.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.clips import DataError

KINDS = "biufSU"  # of array elements; not objects and not records
CODINGS = ("latin1", "ascii", "utf-8")


class Refused(pickle.UnpicklingError):
    """What a pickle asks for is not data."""


class _ElementType:
    """Stands for `numpy.dtype` while a pickle is read."""

    def __init__(self, name: object, *_: object) -> None:
        self.dtype = np.dtype(name if isinstance(name, str) else "O")
        if self.dtype.kind not in KINDS:
            raise Refused(f"arrays of type {name!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for `numpy.ndarray` while a pickle is read: its state must be bytes of an admitted type."""

    def __setstate__(self, state: Any) -> None:
        version, shape, element, fortran, content = state
        if not isinstance(element, _ElementType) or not isinstance(content, bytes):
            raise Refused("an array of objects")
        super().__setstate__((version, shape, element.dtype, fortran, content))


def _reconstruct(*_: object) -> np.ndarray:
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _from_buffer(content: bytes, element: _ElementType, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, element.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(element: _ElementType, content: bytes) -> Any:
    return np.frombuffer(content, element.dtype)[0]


def _encode(text: str, coding: str = "latin1") -> bytes:
    """Bytes, as pickles of protocol 2 write them."""
    if coding not in CODINGS:
        raise Refused(f"text in the coding {coding!r}")
    return text.encode(coding)


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ElementType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
    **{
        (module, name): made
        for core in ("numpy.core", "numpy._core")
        for module, name, made in (
            (f"{core}.multiarray", "_reconstruct", _reconstruct),
            (f"{core}.multiarray", "scalar", _scalar),
            (f"{core}.numeric", "_frombuffer", _from_buffer),
        )
    },
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (bytes, bytearray, set, frozenset, list, dict)
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise Refused(f"{module}.{name}")
        return ADMITTED[module, name]


def load_pickle(path: Path) -> Any:
    """The numbers, text, arrays and containers of a pickle file.

    Raises:
        DataError: unreadable or truncated, or it asks for anything but data (which is named; nothing of it has run).
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Refused as error:
        raise DataError(f"{path}: asks for {error}, which is not data; nothing was run. Do not load this file elsewhere") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged stream of operations leads to
        raise DataError(f"{path}: not a whole pickle ({type(error).__name__}: {error}); fetch it again") from error
