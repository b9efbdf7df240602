"""Safe pickle reader: loads data without executing code.

A pickle is a program for a stack machine and may call any function by name. This reader is an independent implementation of that
machine that cannot import or call anything else: it builds numbers, text, plain containers and NumPy arrays of numbers or text, and
rejects everything else by name. Memory and time are linear in the size of the file: every length is checked against the remaining
bytes before memory is allocated, data that calls rebuild is counted, and only scalars are hashed.
"""

from __future__ import annotations

import codecs
import math
import mmap
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shapmix.data.sources.bounded import show
from shapmix.process.errors import DataError

KINDS = "biufSU"  # permitted kinds of array elements; no objects, no records
CODINGS = ("latin1", "ascii", "utf-8")
SCALARS = (
    str,
    bytes,
    int,
    float,
    type(None),
)  # permitted keys and set elements; hashing a tuple walks its tree
LONGEST_NUMBER = 100  # digits or bytes; no label, size or coordinate is that long
LONGEST_LINE = 1 << 20

# Libraries whose objects are data, and what to save instead.
LIBRARIES = {
    "torch": "torch tensors; save NumPy arrays: x.numpy()",
    "pandas": "pandas tables; save NumPy arrays: x.to_numpy()",
    "jax": "JAX arrays; save NumPy arrays: numpy.asarray(x)",
    "jaxlib": "JAX arrays; save NumPy arrays: numpy.asarray(x)",
    "tensorflow": "TensorFlow tensors; save NumPy arrays: x.numpy()",
}


class RefusedError(ValueError):
    """A pickle requests something that is not data."""


class OtherLibraryError(ValueError):
    """A pickle contains data as objects of another library."""


class _Global:
    """A name that the pickle requests, and the function that replaces it; None for a name that is only used as an argument."""

    def __init__(self, make: Callable[..., Any] | None) -> None:
        self.make = make


class _ElementType:
    """Replaces `numpy.dtype`."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z]\d{1,9}", name) or name[0] not in KINDS:
            raise RefusedError(f"an array of type {show(name)}")
        self.dtype = np.dtype(name)

    def set(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Later:
    """Placeholder of an array until its content is read; allowed only on top of the stack and in one slot of the memo."""

    def __init__(self, *_: object) -> None:
        self.place: int | None = None


class _Mark:
    """Marks the start of a list of operands on the stack."""


_MARK = _Mark()
_NOT_DATA = (_Global, _ElementType, _Later, _Mark)


def _array(content: Any, element: Any, shape: Any, fortran: bool) -> np.ndarray:
    if isinstance(content, str):  # protocols below 3, written by Python 2
        content = content.encode("latin1")
    if not isinstance(element, _ElementType) or not isinstance(content, (bytes, bytearray)):
        raise RefusedError("an array of objects")
    if not isinstance(shape, tuple) or len(shape) > 32 or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"{show(shape)} is not the shape of an array")
    if not content or not element.dtype.itemsize:
        if content or (element.dtype.itemsize and math.prod(shape)):
            raise ValueError(f"{len(content)} bytes for an array of shape {show(shape)}")
        return np.zeros(shape, element.dtype)
    return np.frombuffer(content, element.dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(content: Any, element: Any, shape: Any, order: Any) -> np.ndarray:
    return _array(content, element, shape, order == "F")


def _scalar(element: Any, content: Any) -> Any:
    return _array(content, element, (1,), False)[0]


def _encode(text: Any, coding: Any = "latin1") -> bytes:
    """Bytes, as encoded by pickles of protocol 2."""
    if coding not in CODINGS or not isinstance(text, str):
        raise RefusedError(f"text in the encoding {show(coding)}")
    return text.encode(coding)


def _bytes(content: Any = b"", coding: Any = "latin1") -> bytes:
    if isinstance(content, str):
        return _encode(content, coding)
    if not isinstance(content, (bytes, bytearray)) and not (isinstance(content, list) and all(type(one) is int for one in content)):
        raise RefusedError("bytes built from another type")
    return bytes(content)


def _listed(values: Any = ()) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise RefusedError("a container built from another type")
    return list(values)


def _set(values: Any = ()) -> set[Any]:
    listed = _listed(values)
    for value in listed:
        _check_key(value)
    return set(listed)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in _listed(pairs):
        key, value = _listed(pair)
        _check_key(key)
        made[key] = value
    return made


def _check_key(key: object) -> None:
    if not isinstance(key, SCALARS):
        raise ValueError(f"a {type(key).__name__} as a key; only text and numbers are allowed")


ADMITTED: dict[tuple[str, str], _Global] = {
    ("numpy", "ndarray"): _Global(None),
    ("numpy", "dtype"): _Global(_ElementType),
    ("_codecs", "encode"): _Global(_encode),
    ("collections", "OrderedDict"): _Global(_dict),
    **{
        (module, name): _Global(make)
        for core in ("numpy.core", "numpy._core")
        for module, name, make in (
            (f"{core}.multiarray", "_reconstruct", _Later),
            (f"{core}.multiarray", "scalar", _scalar),
            (f"{core}.numeric", "_frombuffer", _from_buffer),
        )
    },
    **{
        (module, name): _Global(make)
        for module in ("builtins", "__builtin__")
        for name, make in (
            ("bytes", _bytes),
            ("bytearray", lambda *given: bytearray(_bytes(*given))),
            ("set", _set),
            ("frozenset", lambda *given: frozenset(_set(*given))),
            ("list", _listed),
            ("dict", _dict),
        )
    },
}


class _Machine:
    """Runs the operations of one pickle; memory and time are linear in its size."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data, self.size, self.at = data, len(data), 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.taken = 0  # bytes and elements passed to calls

    def run(self) -> Any:
        data, operations = self.data, OPERATIONS
        while self.at < self.size:
            code = data[self.at]
            self.at += 1
            if code == STOP:
                return _data(self.pop())
            operation = operations.get(code)
            if operation is None:
                raise RefusedError(f"the operation {bytes([code])!r}")
            operation(self)
        raise ValueError("truncated")

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.at:
            raise ValueError(f"{count} bytes requested, {self.size - self.at} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: struct.Struct) -> Any:
        return code.unpack(self.take(code.size))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + LONGEST_LINE)
        if end < 0:
            raise ValueError("unterminated line")
        return self.take(end + 1 - self.at)[:-1]

    def whole(self) -> int:
        text = self.line().rstrip(b"L")
        if len(text) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("missing value")
        return value

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError(f"missing {kind.__name__}")
        return value

    def to_mark(self) -> list[Any]:
        """Pops the values above the last mark; because they are removed, each value is visited only once."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("missing mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def push_integer(self) -> None:
        content = self.line()
        if content in (b"00", b"01"):
            self.push(content == b"01")
        elif len(content) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(content)} digits")
        else:
            self.push(int(content))

    def push_long(self, count: int) -> None:
        if count > LONGEST_NUMBER:
            raise ValueError(f"a number of {count} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def push_quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise ValueError("text without quotation marks")
        self.push(str(codecs.escape_decode(text[1:-1])[0], "latin1"))

    def push_text(self, count: int) -> None:
        self.push(str(self.take(count), "utf-8", "surrogatepass"))

    def push_tuple(self, count: int) -> None:
        values = self.stack[-count:]
        if len(values) != count:
            raise ValueError("too few values for a tuple")
        del self.stack[-count:]
        self.push(_operands(values))

    def extend(self, values: list[Any]) -> None:
        into = self.top(list)
        for value in values:
            _data(value)
        into.extend(values)

    def insert(self, values: list[Any]) -> None:
        into = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            _check_key(key)
            into[key] = _data(value)

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if isinstance(value, _Later):
            value.place = index
        elif value is _MARK:
            raise ValueError("missing value")
        self.memo[index] = value

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        library = LIBRARIES.get(module.partition(".")[0])
        if library is not None:
            raise OtherLibraryError(library)
        if (module, name) not in ADMITTED:
            raise RefusedError(f"{module}.{name}"[:200])
        self.push(ADMITTED[module, name])

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or function.make is None or not isinstance(arguments, tuple):
            raise RefusedError("a call that does not build data")
        # A genuine pickle uses each part once. Rebuilding large objects from one small part would exhaust memory.
        self.taken += sum(len(one) if isinstance(one, (str, bytes, bytearray, list, tuple)) else 1 for one in arguments)
        if self.taken > 2 * self.size + 1000:
            raise ValueError("calls build more data than the file contains")
        self.push(function.make(*arguments))

    def build(self) -> None:
        state, value = self.pop(), self.pop()
        if isinstance(value, _ElementType) and isinstance(state, tuple):
            value.set(state)
            self.push(value)
        elif isinstance(value, _Later) and isinstance(state, tuple):
            _, shape, element, fortran, content = state
            array = _array(content, element, shape, bool(fortran))
            if value.place is not None:
                self.memo[value.place] = array
            self.push(array)
        else:
            raise RefusedError("an object with custom state")


def _data(value: Any) -> Any:
    if isinstance(value, _NOT_DATA):
        raise RefusedError("a container of something that is not data")
    return value


def _operands(values: list[Any]) -> tuple[Any, ...]:
    """A tuple; it may contain names and element types, because calls take them as arguments."""
    if any(isinstance(value, (_Later, _Mark)) for value in values):
        raise ValueError("a tuple of an unfinished array")
    return tuple(values)


_U1, _U2, _U4, _U8, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<I", "<Q", "<i", ">d"))
STOP = ord(".")
OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # protocol version
    0x95: lambda m: m.take(8),  # frame length, not needed here
    ord("("): lambda m: m.push(_MARK),
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): lambda m: m.to_mark(),
    ord("2"): lambda m: m.push(_data(m.stack[-1])),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): lambda m: m.push_integer(),
    ord("L"): lambda m: m.push(m.whole()),
    ord("J"): lambda m: m.push(m.number(_I4)),
    ord("K"): lambda m: m.push(m.number(_U1)),
    ord("M"): lambda m: m.push(m.number(_U2)),
    0x8A: lambda m: m.push_long(m.number(_U1)),
    0x8B: lambda m: m.push_long(m.number(_I4)),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("G"): lambda m: m.push(m.number(_F8)),
    ord("S"): lambda m: m.push_quoted(),
    ord("T"): lambda m: m.push(str(m.take(m.number(_I4)), "latin1")),
    ord("U"): lambda m: m.push(str(m.take(m.number(_U1)), "latin1")),
    ord("V"): lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    ord("X"): lambda m: m.push_text(m.number(_U4)),
    0x8C: lambda m: m.push_text(m.number(_U1)),
    0x8D: lambda m: m.push_text(m.number(_U8)),
    ord("B"): lambda m: m.push(m.take(m.number(_U4))),
    ord("C"): lambda m: m.push(m.take(m.number(_U1))),
    0x8E: lambda m: m.push(m.take(m.number(_U8))),
    0x96: lambda m: m.push(bytearray(m.take(m.number(_U8)))),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(list(map(_data, m.to_mark()))),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.to_mark()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(_operands(m.to_mark())),
    0x85: lambda m: m.push_tuple(1),
    0x86: lambda m: m.push_tuple(2),
    0x87: lambda m: m.push_tuple(3),
    ord("}"): lambda m: m.push({}),
    ord("d"): lambda m: _push_dict(m, m.to_mark()),
    ord("s"): lambda m: m.insert([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.insert(m.to_mark()),
    0x8F: lambda m: m.push(set()),
    0x90: lambda m: _add(m, m.to_mark()),
    0x91: lambda m: m.push(frozenset(_set(m.to_mark()))),
    ord("g"): lambda m: m.get(m.whole()),
    ord("h"): lambda m: m.get(m.number(_U1)),
    ord("j"): lambda m: m.get(m.number(_U4)),
    ord("p"): lambda m: m.put(m.whole()),
    ord("q"): lambda m: m.put(m.number(_U1)),
    ord("r"): lambda m: m.put(m.number(_U4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("c"): lambda m: m.name(m.line().decode(), m.line().decode()),
    0x93: lambda m: m.name(*[m.pop(), m.pop()][::-1]),
    ord("R"): lambda m: m.call(),
    ord("b"): lambda m: m.build(),
    ord("P"): lambda m: _persistent(m),
    ord("Q"): lambda m: _persistent(m),
}


def _push_dict(machine: _Machine, values: list[Any]) -> None:
    machine.push({})
    machine.insert(values)


def _add(machine: _Machine, values: list[Any]) -> None:
    machine.top(set).update(_set(values))


def _persistent(_: _Machine) -> None:
    raise RefusedError("a persistent object outside of the file")


def load_pickle(path: Path) -> Any:
    """Loads numbers, text, arrays and containers from a pickle file. Arrays are read-only.

    Raises:
        DataError: unreadable or truncated, or it requests anything but data (the message names it; nothing is executed).
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise OtherLibraryError("the output of torch.save or numpy.savez; save NumPy arrays with pickle.dump")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Machine(content).run()
    except RefusedError as error:
        raise DataError(
            f"{path}: requests {error}, which is not data; nothing was executed. Do not load it with other tools"
        ) from error
    except OtherLibraryError as error:
        raise DataError(f"{path}: contains {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can raise any error
        raise DataError(f"{path}: not a valid pickle ({type(error).__name__}: {error}); download it again") from error
