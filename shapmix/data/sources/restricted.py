"""Safe pickle reader: loads data without executing code.

A pickle is a program for a stack machine and may call any function by name. This reader is an independent implementation of that
machine that cannot import or call anything else: it builds numbers, text, plain containers and NumPy arrays of numbers or text, and
rejects everything else by name. Memory and time are linear in the size of the file: every length is checked against the remaining
bytes before memory is allocated, data that calls rebuild is counted, and only scalars are hashed. The content of larger arrays
stays in the file, which is memory-mapped (pickles of protocol 3 or 4).
"""

from __future__ import annotations

import codecs
import gc
import math
import mmap
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
# protocol, frame, EMPTY_LIST, its place in the memo, MARK, EMPTY_DICT; or the same in text
_LIST_OF_DICTIONARIES = re.compile(rb"(\x80.)?(\x95.{8})?\](\x94|q.)?\(?\}|\(lp\d+\n\(d", re.DOTALL)
SEARCHED = 64 << 20  # bytes of a pickle, for a word: the names of a data set's lists come first

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


_INTEGER = frozenset((int,))  # not bool
_SIZED = frozenset((str, bytes, bytearray, memoryview, list, tuple))
_NOT_DATA = frozenset((_Global, _ElementType, _Later))  # these have no subclasses


def _array(content: Any, element: Any, shape: Any, fortran: bool) -> np.ndarray:
    if isinstance(content, str):  # protocols below 3, written by Python 2
        content = content.encode("latin1")
    if not isinstance(element, _ElementType) or not isinstance(content, (bytes, bytearray, memoryview)):
        raise RefusedError("an array of objects")
    if not isinstance(shape, tuple) or len(shape) > 32 or not _INTEGER.issuperset(map(type, shape)) or (shape and min(shape) < 0):
        raise ValueError(f"{show(shape)} is not the shape of an array")
    if not content or not element.dtype.itemsize:
        if content or (element.dtype.itemsize and math.prod(shape)):
            raise ValueError(f"{len(content)} bytes for an array of shape {show(shape)}")
        return np.zeros(shape, element.dtype)
    array: np.ndarray = np.ndarray(shape, element.dtype, content, order="F" if fortran else "C")
    if array.nbytes != len(content):
        raise ValueError(f"{len(content)} bytes for an array of shape {show(shape)}")
    return array


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
    if not isinstance(content, (bytes, bytearray, memoryview)) and not (
        isinstance(content, list) and all(type(one) is int for one in content)
    ):
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
        self.view = memoryview(data)
        self.stack: list[Any] = []  # the values above the last mark
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.taken = 0  # bytes and elements passed to calls

    def run(self) -> Any:
        """Runs the most frequent operations inline and the others through `OPERATIONS`.

        A tuple may hold names and element types, because it may hold the arguments of a call.
        """
        data, size, memo, below, operations, index_of = self.data, self.size, self.memo, self.below, OPERATIONS, _U4.unpack_from
        at, stack = 0, self.stack
        while at < size:
            code = data[at]
            at += 1
            if code == 0x6A:  # LONG_BINGET
                stack.append(memo[index_of(data, at)[0]])
                at += 4
            elif code == 0x94 and type(stack[-1]) is not _Later:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif code == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif code == 0x28:  # MARK
                below.append(stack)
                self.stack = stack = []
            elif 0x85 <= code <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                count = code - 0x84
                values = tuple(stack[-count:])
                if len(values) != count or _Later in map(type, values):
                    raise ValueError("a tuple of an unfinished array")
                stack[-count:] = (values,)
            elif code == 0x74:  # TUPLE
                values = tuple(self.to_mark())
                if _Later in map(type, values):
                    raise ValueError("a tuple of an unfinished array")
                stack = self.stack
                stack.append(values)
            elif code == 0x68:  # BINGET
                stack.append(memo[data[at]])
                at += 1
            elif code == STOP:
                return _data(stack.pop())
            else:
                operation = operations[code]
                if operation is None:
                    raise RefusedError(f"the operation {bytes([code])!r}")
                self.at = at
                operation(self)
                at, stack = self.at, self.stack
        raise ValueError("truncated")

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.at:
            raise ValueError(f"{count} bytes requested, {self.size - self.at} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def lend(self, count: int) -> memoryview:
        """The next bytes without a copy: the content of an array, which may be most of the file."""
        if not 0 <= count <= self.size - self.at:
            raise ValueError(f"{count} bytes requested, {self.size - self.at} left")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, code: struct.Struct) -> Any:
        at = self.at
        self.at += code.size
        return code.unpack_from(self.data, at)[0]

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
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError(f"missing {kind.__name__}")
        return value

    def to_mark(self) -> list[Any]:
        """Pops the values above the last mark."""
        if not self.below:
            raise ValueError("missing mark")
        values, self.stack = self.stack, self.below.pop()
        return values

    def drop(self) -> None:
        """Pops the top value, or a mark with nothing above it."""
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

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

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(_all_data(values))

    def insert(self, values: list[Any]) -> None:
        into, keys = self.top(dict), values[::2]
        for key in keys:
            _check_key(key)
        into.update(zip(keys, _all_data(values[1::2]), strict=True))

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        value = self.stack[-1]
        if isinstance(value, _Later):
            value.place = index
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
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or function.make is None or type(arguments) is not tuple:
            raise RefusedError("a call that does not build data")
        # A genuine pickle uses each part once. Rebuilding large objects from one small part would exhaust memory.
        for one in arguments:
            self.taken += len(one) if type(one) in _SIZED else 1
        if self.taken > 2 * self.size + 1000:
            raise ValueError("calls build more data than the file contains")
        self.stack.append(function.make(*arguments))

    def build(self) -> None:
        state, value = self.stack.pop(), self.stack.pop()
        if type(value) is _Later and type(state) is tuple:
            _, shape, element, fortran, content = state
            array = _array(content, element, shape, bool(fortran))
            if value.place is not None:
                self.memo[value.place] = array
            self.stack.append(array)
        elif type(value) is _ElementType and type(state) is tuple:
            value.set(state)
            self.stack.append(value)
        else:
            raise RefusedError("an object with custom state")


def _data(value: Any) -> Any:
    return _all_data([value])[0]


def _all_data(values: list[Any]) -> list[Any]:
    kinds = set(map(type, values))
    if not _NOT_DATA.isdisjoint(kinds):
        raise RefusedError("a container of something that is not data")
    return [bytes(value) if type(value) is memoryview else value for value in values] if memoryview in kinds else values


_U1, _U2, _U4, _U8, _I4, _F8 = map(struct.Struct, ("<B", "<H", "<I", "<Q", "<i", ">d"))
STOP = 0x2E
_BY_CODE: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # the protocol
    0x95: lambda m: m.take(8),  # a frame's length, for those who read in pieces
    ord("0"): _Machine.drop,
    ord("1"): lambda m: m.to_mark(),
    ord("2"): lambda m: m.push(_data(m.stack[-1])),
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("I"): lambda m: m.push_integer(),
    ord("L"): lambda m: m.push(m.whole()),
    ord("J"): lambda m: m.push(m.number(_I4)),
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
    ord("B"): lambda m: m.push(m.lend(m.number(_U4))),
    ord("C"): lambda m: m.push(m.take(m.number(_U1))),
    0x8E: lambda m: m.push(m.lend(m.number(_U8))),
    0x96: lambda m: m.push(bytearray(m.take(m.number(_U8)))),
    ord("]"): lambda m: m.stack.append([]),
    ord("l"): lambda m: m.push(_all_data(m.to_mark())),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.to_mark()),
    ord(")"): lambda m: m.stack.append(()),
    ord("}"): lambda m: m.stack.append({}),
    ord("d"): lambda m: _push_dict(m, m.to_mark()),
    ord("s"): lambda m: m.insert([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.insert(m.to_mark()),
    0x8F: lambda m: m.stack.append(set()),
    0x90: lambda m: _add(m, m.to_mark()),
    0x91: lambda m: m.push(frozenset(_set(m.to_mark()))),
    ord("g"): lambda m: m.get(m.whole()),
    ord("p"): lambda m: m.put(m.whole()),
    ord("q"): lambda m: m.put(m.number(_U1)),
    ord("r"): lambda m: m.put(m.number(_U4)),
    0x94: lambda m: m.put(len(m.memo)),
    ord("c"): lambda m: m.name(m.line().decode(), m.line().decode()),
    0x93: lambda m: m.name(*[m.pop(), m.pop()][::-1]),
    ord("R"): _Machine.call,
    ord("b"): _Machine.build,
    ord("P"): lambda m: _persistent(m),
    ord("Q"): lambda m: _persistent(m),
}
OPERATIONS = [_BY_CODE.get(code) for code in range(256)]


def _push_dict(machine: _Machine, values: list[Any]) -> None:
    machine.push({})
    machine.insert(values)


def _add(machine: _Machine, values: list[Any]) -> None:
    machine.top(set).update(_set(values))


def _persistent(_: _Machine) -> None:
    raise RefusedError("a persistent object outside of the file")


def begins_with_dictionaries(path: Path) -> bool:
    """Whether a pickle builds a list of dictionaries, judged by its first operations; False for unreadable files."""
    try:
        with path.open("rb") as file:
            return _LIST_OF_DICTIONARIES.match(file.read(64)) is not None
    except OSError:
        return False


def mentions(path: Path, word: str) -> bool:
    """Whether the first `SEARCHED` bytes of a file contain an ASCII word; False for unreadable files."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(word.encode("ascii"), 0, SEARCHED) >= 0
    except (OSError, ValueError):  # ValueError: an empty file
        return False


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the garbage collector, which would scan the new objects, and those of torch, again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def load_pickle(path: Path) -> Any:
    """Loads numbers, text, arrays and containers from a pickle file. Arrays are read-only.

    Raises:
        DataError: unreadable or truncated, or it requests anything but data (the message names it; nothing is executed).
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise OtherLibraryError("the output of torch.save or numpy.savez; save NumPy arrays with pickle.dump")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last array that refers to it
            with _uncollected():
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
