"""Machine instructions that a program of a kernel issues for sm_90, counted in the disassembly without a GPU.

The instructions are those of `nvdisasm -c`. One thread is followed through the branches: what decides a branch is integer
arithmetic on arguments, program ids and constants, so only the instructions that branches depend on are computed, and all are
counted. Values that are loaded from memory are unknown; a branch on one is an error.

The first thread of the first program stands for all. A loop whose length depends on the program, and code of a few threads, are
counted as that thread runs them.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

WORD = 0xFFFFFFFF
PARAMETERS = 0x210  # where a kernel's arguments begin in bank 0 of the constants
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*$")
LABEL = re.compile(r"^(\.L_x_\d+):")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
REGISTER = re.compile(r"^(U?R|L)(\d+)$")  # L: words of the thread's stack, where registers are spilled
PREDICATE = re.compile(r"^U?P(\d|T)$")
STACK = re.compile(r"^\[R1(?:\+0x([0-9a-f]+))?\]$")
CONSTANT = re.compile(r"^c\[0x0\]\[0x([0-9a-f]+)\]$")
NO_RESULT: tuple[str, ...] = (
    "ST",
    "BAR",
    "BRA",
    "EXIT",
    "BSSY",
    "BSYNC",
    "BREAK",
    "NOP",
    "WARPSYNC",
    "DEPBAR",
    "LDGDEPBAR",
    "CALL",
    "RET",
    "RED.",
)
NO_RESULT += ("LDGSTS", "MEMBAR", "FENCE", "WARPGROUP", "CCTL", "ERRBAR", "YIELD", "BPT", "UTMA", "NANOSLEEP")
LONGEST = 50_000_000  # instructions of one thread

Value = int | None  # None is unknown


class Instruction(NamedTuple):
    """One line of a disassembly."""

    guard: str | None
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]

    @property
    def results(self) -> int:
        """How many of the operands are written."""
        if self.name in ("R2P", "R2UP", "STL"):
            return 1
        if self.name.startswith(NO_RESULT) or not self.operands:
            return 0
        if self.name in ("ISETP", "UISETP", "FSETP", "DSETP", "HSETP2", "PLOP3", "UPLOP3", "PSETP"):
            return 2
        if PREDICATE.match(self.operands[0]):
            has_register = len(self.operands) > 1 and re.match(r"U?R(\d+|Z)$", self.operands[1])
            return 2 if has_register else 1
        count = 1
        while count < len(self.operands) and PREDICATE.match(self.operands[count]) and self.name not in ("SEL", "USEL", "FSEL"):
            count += 1
        return count

    @property
    def width(self) -> int:
        """Registers of the result."""
        if self.name in ("HGMMA", "QGMMA", "IGMMA"):  # 64xNxK, by 128 threads
            return int(self.modifiers[0].split("x")[1]) // 2
        if "128" in self.modifiers or "4" in self.modifiers or "HMMA" in self.name or "IMMA" in self.name:
            return 4
        is_pair = "64" in self.modifiers or "WIDE" in self.modifiers or "2" in self.modifiers
        is_pair |= self.name in ("DADD", "DMUL", "DFMA", "DMMA") or (self.name == "CS2R" and "32" not in self.modifiers)
        return 2 if is_pair else 1

    @property
    def written(self) -> set[str]:
        """Names of the registers that it writes."""
        names: set[str] = set()
        for operand in self.operands[: self.results]:
            names |= registers(operand, self.width)
        return names

    @property
    def read(self) -> set[str]:
        """Names of the registers that it reads; of pairs both."""
        pair = max(self.width, 2 if {"WIDE", "HI"} & set(self.modifiers) else 1) if self.width <= 4 else 1
        names = registers(self.guard or "", 1)
        for operand in self.operands[self.results :]:
            names |= registers(plain(operand), pair)
        return names


def plain(operand: str) -> str:
    """An operand without its sign."""
    return operand.strip("-~!|")


def on_stack(operand: str) -> str:
    """An address on the stack as the name of its word, anything else as it is."""
    match = STACK.match(operand)
    return operand if match is None else f"L{int(match[1] or '0', 16) // 4}"


def registers(operand: str, width: int) -> set[str]:
    """Names of the registers that begin at an operand."""
    operand = plain(operand)
    if operand in ("PR", "UPR"):
        return {f"{operand[:-1]}{index}" for index in range(7)}
    if match := REGISTER.match(operand):
        return {f"{match[1]}{int(match[2]) + index}" for index in range(width)}
    return {operand} if PREDICATE.match(operand) and not operand.endswith("T") else set()


class Listing(NamedTuple):
    """Instructions of a kernel, and where its labels are."""

    instructions: list[Instruction]
    labels: dict[str, int]

    @staticmethod
    def read(text: str) -> Listing:
        """Reads the output of `nvdisasm -c` for a file with one kernel."""
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in text.splitlines():
            if match := LABEL.match(line):
                labels[match[1]] = len(instructions)
            elif match := LINE.match(line):
                name, *modifiers = match[3].split(".")
                operands = [on_stack(operand.strip().removesuffix(".reuse")) for operand in match[4].split(",")] if match[4] else []
                instructions.append(Instruction(match[2], name, tuple(modifiers), tuple(operands)))
        if not instructions:
            raise ValueError("no instructions in the disassembly")
        return Listing(instructions, labels)


class Thread:
    """The thread that is followed.

    Args:
        listing: the kernel.
        constants: words of bank 0 by their offset: the arguments, and the sizes of program and grid.
    """

    def __init__(self, listing: Listing, constants: Mapping[int, int]) -> None:
        self.listing, self.constants = listing, constants
        self.values: dict[str, Value] = {}
        self.visits: Counter[int] = Counter()  # changes of the number of visits from an instruction on

    @cached_property
    def decisive(self) -> list[bool]:
        """Whether a branch may depend on an instruction."""
        code = self.listing.instructions
        needed: set[str] = set()
        for instruction in code:
            if instruction.name in ("BRA", "EXIT"):
                needed |= instruction.read
        writers = [instruction.written for instruction in code]
        chosen = [False] * len(code)
        changed = True
        while changed:
            changed = False
            for index, instruction in enumerate(code):
                if not chosen[index] and writers[index] & needed:
                    chosen[index] = changed = True
                    needed |= instruction.read
        return chosen

    def run(self) -> list[int]:
        """Runs to the end. Returns how often each instruction is issued."""
        code, labels = self.listing.instructions, self.listing.labels
        stops = [decisive or code[index].name in ("BRA", "EXIT", "CALL", "RET") for index, decisive in enumerate(self.decisive)]
        following = [0] * len(code)
        after = len(code)
        for index in reversed(range(len(code))):
            after = index if stops[index] else after
            following[index] = after
        at, issued, calls = 0, 0, list[int]()
        while True:
            stop = following[at] if at < len(code) else len(code)
            if stop == len(code):
                raise ValueError("the kernel has no end")
            self.visits[at] += 1
            self.visits[stop + 1] -= 1
            issued += stop + 1 - at
            if issued > LONGEST:
                raise ValueError(f"a thread issues more than {LONGEST} instructions")
            instruction, at = code[stop], stop + 1
            if instruction.name not in ("BRA", "EXIT", "CALL", "RET"):
                self.compute(instruction)
            elif self.taken(instruction, stop):
                if instruction.name == "EXIT":
                    break
                if instruction.name == "RET":
                    at = calls.pop()
                    continue
                if instruction.name == "CALL":
                    calls.append(at)
                (target,) = TARGET.findall(instruction.operands[-1])
                at = labels[target]
        total, counts = 0, []
        for index in range(len(code)):
            total += self.visits[index]
            counts.append(total)
        return counts

    def taken(self, instruction: Instruction, at: int) -> bool:
        """Whether a branch is taken."""
        if "DIV" in instruction.modifiers:  # taken where the threads of a warp differ
            return False
        guards = [] if instruction.guard is None else [instruction.guard]
        guards += [operand for operand in instruction.operands if PREDICATE.match(plain(operand))]
        values = [self.value(guard) for guard in guards]
        if None in values:
            raise ValueError(f"instruction {at}, {instruction}, depends on a value that is not known ahead of time")
        return all(values)

    def value(self, operand: str) -> Value:
        """An operand: a register, a predicate, a constant or a number."""
        sign, name = operand[0] if operand[0] in "-~!|" else "", plain(operand)
        value: Value
        if match := CONSTANT.match(name):
            value = self.constants.get(int(match[1], 16))
        elif name in ("RZ", "URZ", "SRZ"):
            value = 0
        elif name in ("PT", "UPT"):
            value = 1
        elif REGISTER.match(name) or PREDICATE.match(name):
            value = self.values.get(name, 0)  # bits of a register that is never written as a whole are set one by one
        else:
            value = number(name)
        if value is None:
            return None
        if sign == "!":
            return 1 - value
        if sign == "~":
            return ~value & WORD
        if sign == "|":
            return abs(signed(value)) & WORD
        return -value if sign == "-" else value

    def pair(self, operand: str) -> Value:
        """A 64-bit operand that begins at a register."""
        if match := REGISTER.match(operand):
            low, high = self.value(operand), self.value(f"{match[1]}{int(match[2]) + 1}")
            return None if low is None or high is None else low | high << 32
        return self.value(operand)

    def compute(self, instruction: Instruction) -> None:
        """Sets the results of an instruction; unknown ones where the instruction, or what it reads, is not known."""
        if instruction.guard is not None:
            guard = self.value(instruction.guard)
            if guard == 0:
                return
        results, sources = instruction.operands[: instruction.results], instruction.operands[instruction.results :]
        found: Sequence[Value] | None = None
        operation = OPERATIONS.get(instruction.name.removeprefix("U") if instruction.name[0] == "U" else instruction.name)
        if operation is not None and (instruction.guard is None or guard is not None):
            try:
                found = operation(self, instruction, sources)
            except TypeError:  # arithmetic on an unknown value
                found = None
        for name in instruction.written:
            self.values[name] = None
        if found is None:
            return
        for result, value in zip(results, found, strict=False):
            names = sorted(registers(result, instruction.width), key=lambda name: int(name.lstrip("URPL")))
            for index, name in enumerate(names):
                self.values[name] = None if value is None else value >> 32 * index & WORD


def number(text: str) -> int | None:
    """An integer as nvdisasm writes it, or the bits of a float."""
    try:
        return int(text, 16) if text.startswith("0x") else struct.unpack("<I", struct.pack("<f", float(text)))[0]
    except ValueError:
        return None


def signed(value: int) -> int:
    """A word as a signed number."""
    return (value & WORD) - ((value & 0x80000000) << 1)


def as_float(bits: int) -> float:
    """The float of some bits."""
    return struct.unpack("<f", struct.pack("<I", bits & WORD))[0]


def as_bits(value: float) -> int:
    """The bits of a float."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


Operation = Callable[[Thread, Instruction, tuple[str, ...]], Sequence[Value]]
# The operations take None for an unknown value, on which arithmetic raises TypeError.
# mypy: disable-error-code="operator,arg-type,misc"


def add(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """IADD3 and VIADD: sum, with carries out, or with carries in (X)."""
    carries = [thread.value(operand) for operand in sources[3:]]
    total = 0
    for operand in sources[:3]:
        value = thread.value(operand)
        is_negated = REGISTER.match(plain(operand)) and operand[0] == "-"
        total += (1 << 32) + value if is_negated else value & WORD  # x - y carries unless y > x
    total += sum(carries) if "X" in instruction.modifiers else 0
    carry = total >> 32
    return [total & WORD, int(carry >= 1), int(carry >= 2)]


def multiply(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """IMAD: a b + c, of 32 or 64 bits, or the high word of 64."""
    is_unsigned = "U32" in instruction.modifiers
    a, b = (thread.value(operand) for operand in sources[:2])
    if {"WIDE", "HI"} & set(instruction.modifiers):
        a, b = (a & WORD, b & WORD) if is_unsigned else (signed(a), signed(b))
        total = a * b + thread.pair(sources[2])
        return [total >> 32 & WORD if "HI" in instruction.modifiers else total & (1 << 64) - 1, int(total >> 64 != 0)]
    carry = thread.value(sources[3]) if "X" in instruction.modifiers and len(sources) > 3 else 0
    return [a * b + thread.value(sources[2]) + carry & WORD]


def shift_add(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """LEA: (a << shift) + b, or its high word with carry in."""
    a, b = thread.value(sources[0]), thread.value(sources[1])
    if "HI" not in instruction.modifiers:
        total = ((a & WORD) << thread.value(sources[2]) & WORD) + (b & WORD)
        return [total & WORD, total >> 32]
    if "SX32" in instruction.modifiers:
        whole, rest = signed(a), sources[2:]
    else:
        whole, rest = a & WORD | (thread.value(sources[2]) & WORD) << 32, sources[3:]
    carry = thread.value(rest[1]) if "X" in instruction.modifiers and len(rest) > 1 else 0
    total = (whole << thread.value(rest[0]) >> 32 & WORD) + (b & WORD) + carry
    return [total & WORD, total >> 32]


def shift(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """SHF: one word of a pair that is shifted."""
    low, by, high = (thread.value(operand) for operand in sources[:3])
    is_signed = bool({"S32", "S64"} & set(instruction.modifiers))
    whole = (signed(high) if is_signed else high & WORD) << 32 | low & WORD
    whole = whole << by if "L" in instruction.modifiers else whole >> by
    return [(whole >> 32 if "HI" in instruction.modifiers else whole) & WORD]


def logic(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """LOP3: any bitwise function of three words, given as a table; and whether it is not 0."""
    a, b, c = (thread.value(operand) & WORD for operand in sources[:3])
    table, word = thread.value(sources[3]), 0
    for index in range(8):
        if table >> index & 1:
            word |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    word &= WORD
    return [int(word != 0), word] if PREDICATE.match(instruction.operands[0]) else [word]


def logic_of_predicates(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """PLOP3: two functions of three predicates, given as tables."""
    a, b, c = (thread.value(operand) for operand in sources[:3])
    return [thread.value(table) >> (a << 2 | b << 1 | c) & 1 for table in sources[3:5]]


def compare(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """ISETP: compares two words, or the high words after the low ones (EX), and combines the result with a predicate."""
    kind, other = instruction.modifiers[0], thread.value(sources[2])
    a, b = thread.value(sources[0]), thread.value(sources[1])
    a, b = (a & WORD, b & WORD) if "U32" in instruction.modifiers else (signed(a), signed(b))
    result = {"LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": a != b, "T": True, "F": False}[kind]
    if "EX" in instruction.modifiers and a == b:
        result = bool(thread.value(sources[3]))
    if "OR" in instruction.modifiers:
        return [int(result or other), int(not result or other)]
    if "XOR" in instruction.modifiers:
        return [int(result != bool(other)), int(result == bool(other))]
    return [int(result and other), int(not result and other)]


def select(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """SEL: one of two words."""
    return [thread.value(sources[1 - thread.value(sources[2])])]


def extreme(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """IMNMX: minimum or maximum of two words."""
    a, b = (thread.value(operand) for operand in sources[:2])
    a, b = (a & WORD, b & WORD) if "U32" in instruction.modifiers else (signed(a), signed(b))
    return [(min if thread.value(sources[2]) else max)(a, b) & WORD]


def extend(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """SGXT: sign or zeros from some bit on."""
    value, bits = thread.value(sources[0]), thread.value(sources[1])
    value &= (1 << bits) - 1
    is_negative = "U32" not in instruction.modifiers and value >> bits - 1
    return [(value - (1 << bits) if is_negative else value) & WORD]


def permute(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """PRMT: four bytes of two words."""
    a, chosen, b = (thread.value(operand) & WORD for operand in sources[:3])
    word = 0
    for index in range(4):
        which = chosen >> 4 * index & 15
        byte = (a | b << 32) >> 8 * (which & 7) & 255
        word |= (255 * (byte >> 7) if which & 8 else byte) << 8 * index
    return [word]


def move(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """MOV and R2UR: a copy."""
    return [thread.value(sources[0]) & WORD]


def spill(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """STL and LDL: a copy of one, two or four words."""
    match = REGISTER.match(sources[0])
    if match is None:
        return [thread.value(sources[0])]
    words = [thread.value(f"{match[1]}{int(match[2]) + index}") for index in range(instruction.width)]
    return [None if None in words else sum(word << 32 * index for index, word in enumerate(words))]


def absolute(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """IABS: the absolute value."""
    return [abs(signed(thread.value(sources[0]))) & WORD]


def constant(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """LDC: one or two words of the constants."""
    match = CONSTANT.match(sources[0])
    words = [] if match is None else [thread.constants.get(int(match[1], 16) + 4 * index) for index in range(instruction.width)]
    return [None if not words or None in words else sum(word << 32 * index for index, word in enumerate(words))]


def special(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """S2R: thread and program ids of the first."""
    return [0 if sources[0].startswith(("SR_TID", "SR_CTAID", "SR_LANEID", "SR_CgaCtaId", "SRZ")) else None]


def to_float(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """I2F: rounded up, which division needs; elsewhere the last bit does not matter."""
    value = thread.value(sources[0]) & WORD
    bits = as_bits(float(value if "U32" in instruction.modifiers or "RP" in instruction.modifiers else signed(value)))
    return [bits + (as_float(bits) < value)]


def reciprocal(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """MUFU.RCP."""
    value = as_float(thread.value(sources[0]))
    return [as_bits(1 / value) if instruction.modifiers == ("RCP",) and value else None]


def to_integer(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """F2I, towards 0."""
    return [int(as_float(thread.value(sources[0]))) & WORD]


def predicates(thread: Thread, instruction: Instruction, sources: tuple[str, ...]) -> Sequence[Value]:
    """P2R: predicates as bits of one byte, under a mask; other bits as they were."""
    mask = thread.value(sources[-1])
    first = 8 * int(instruction.modifiers[0][1]) if instruction.modifiers else 0
    bits = sum(thread.value(f"{sources[0][:-1]}{index}") << index for index in range(7) if mask >> index & 1)
    return [thread.value(sources[1]) & ~(mask << first) & WORD | bits << first]


OPERATIONS: dict[str, Operation] = {
    "IADD3": add,
    "VIADD": add,
    "IMAD": multiply,
    "LEA": shift_add,
    "SHF": shift,
    "LOP3": logic,
    "PLOP3": logic_of_predicates,
    "ISETP": compare,
    "SEL": select,
    "IMNMX": extreme,
    "VIMNMX": extreme,
    "SGXT": extend,
    "PRMT": permute,
    "MOV": move,
    "R2UR": move,
    "STL": spill,
    "LDL": spill,
    "IABS": absolute,
    "LDC": constant,
    "S2R": special,
    "S2UR": special,
    "CS2R": special,
    "I2F": to_float,
    "I2FP": to_float,
    "MUFU": reciprocal,
    "F2I": to_integer,
    "P2R": predicates,
    "P2UR": predicates,
}


def constants_of(arguments: Sequence[tuple[int, int]], warps: int, grid: Sequence[int]) -> dict[int, int]:
    """Words of bank 0: (bytes, value) of each argument, and the sizes of program and grid."""
    words = {0x0: 32 * warps, 0x4: 1, 0x8: 1} | {0xC + 4 * axis: (*grid, 1, 1)[axis] for axis in range(3)}
    at = PARAMETERS
    for size, value in arguments:
        at = -(-at // size) * size
        for index in range(max(size // 4, 1)):
            words[at + 4 * index] = value >> 32 * index & WORD
        at += size
    return words


def issued(listing: Listing, constants: Mapping[int, int]) -> Counter[str]:
    """Instructions that one thread issues, by their name."""
    counts: Counter[str] = Counter()
    for instruction, count in zip(listing.instructions, Thread(listing, constants).run(), strict=True):
        if count:
            counts[".".join((instruction.name, *instruction.modifiers))] += count
    return counts
