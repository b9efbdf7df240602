"""Instructions of CTR-GCN's fused kernels, counted in their code for sm_90 without a GPU: `python -m bench.instructions`.

Each launch of a pass on fake tensors is compiled ahead of time, and the instructions that its first program issues are counted in
the disassembly (`bench.sass`), times its programs and warps. The time is predicted at two instructions a cycle on each of 132
multiprocessors at 1.755 GHz, half of what their schedulers can issue; occupancy and latency are not modelled. With `--out` the
counts are written for `bench.traffic`, which has the time of the bytes; a kernel takes at least the longer one. Triton's own
disassembler is used.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import instruction_counts, sass, traffic
from bench.instruction_counts import Shape
from shapmix.kernels.triton_launch import Launch, launch, record_launches

MODULES = ("clips", "folded", "graph", "input", "norm", "product", "relations", "temporal", "weights")
SIZES = {"u64": 8, "u32": 4, "f32": 4}
POINTER = 1 << 40  # where the first tensor lies; any address that the others are far from
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64"}


class Call(NamedTuple):
    """One launch: kernel, grid, arguments and options, and what it declares."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    declared: Launch

    @property
    def shape(self) -> Shape:
        """What its counts are filed under."""
        return Shape(self.declared.name, self.declared.dtype, self.declared.bytes_read, self.declared.bytes_written)

    def compiled_as(self) -> str:
        """The same for launches that Triton compiles alike."""
        constants, sixteens, types, _ = specialised(self)
        return f"{self.kernel.fn.__name__} {types} {constants} {sorted(sixteens)} {self.options}"


@contextmanager
def calls_kept() -> Iterator[list[Call]]:
    """Collects the launches of fused layers on fake tensors inside the context."""
    modules = [import_module(f"shapmix.kernels.triton_unit_{name}") for name in MODULES]
    calls: list[Call] = []

    def keep(kernel: Any, grid: Any, *arguments: Any, reads: Any, writes: Any, flops: int = 0, **options: Any) -> None:
        with record_launches() as declared:
            launch(kernel, grid, *arguments, reads=reads, writes=writes, flops=flops, **options)
        calls.append(Call(kernel, grid, arguments, options, *declared))

    before = [module.launch for module in modules]
    try:
        for module in modules:
            vars(module)["launch"] = keep
        yield calls
    finally:
        for module, own in zip(modules, before, strict=True):
            vars(module)["launch"] = own


def specialised(call: Call) -> tuple[dict[tuple[int, ...], Any], set[tuple[int, ...]], dict[str, Any], list[int]]:
    """Constants, positions of multiples of 16, types, and the values of what is no constant, as Triton's launcher derives them."""
    constants: dict[tuple[int, ...], Any] = {}
    sixteens: set[tuple[int, ...]] = set()
    values: list[int] = []

    def type_of(value: Any, at: tuple[int, ...]) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(type_of(element, (*at, index)) for index, element in enumerate(value))
        if isinstance(value, Tensor):
            sixteens.add(at)
            values.append(POINTER * (len(values) + 1))
            return f"*{TYPES[value.dtype]}"
        if value is None or value == 1:
            constants[at] = value
            return "constexpr"
        if value % 16 == 0:
            sixteens.add(at)
        values.append(value)
        return "i64" if abs(value) >= 1 << 31 else "i32"

    types: dict[str, Any] = {}
    for index, name in enumerate(call.kernel.arg_names):
        if index >= len(call.arguments) or call.kernel.params[index].is_constexpr:
            given = call.arguments[index] if index < len(call.arguments) else call.options[name]
            types[name], constants[(index,)] = "constexpr", given
        else:
            types[name] = type_of(call.arguments[index], (index,))
    return constants, sixteens, types, values


def compiled(call: Call, arch: int) -> Any:
    """The kernel as Triton compiles it for a launch on an architecture, such as 90; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants, sixteens, types, _ = specialised(call)
    attributes = {at: [["tt.divisibility", 16]] for at in sixteens}
    source = ASTSource(fn=call.kernel, signature=types, constexprs=constants, attrs=attributes)
    left = {name: value for name, value in call.options.items() if name not in call.kernel.arg_names}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=left)


def issued(call: Call) -> Counter[str]:
    """Warp instructions of a launch, by their name."""
    code, values = compiled(call, 90), specialised(call)[3]
    head = code.asm["ptx"].partition(".entry")[2].partition(")")[0]
    sizes = [SIZES[kind] for kind in re.findall(r"\.param \.(\w+)", head)]
    values += [0] * (len(sizes) - len(values))  # Triton's own arguments
    warps, arguments = code.metadata.num_warps, list(zip(sizes, values, strict=True))
    counts = sass.issued(disassembled(code.asm["cubin"]), sass.constants_of(arguments, warps, call.grid))
    return Counter({name: count * warps * math.prod(call.grid) for name, count in counts.items()})


def disassembled(cubin: bytes) -> sass.Listing:
    """The instructions of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not tool.exists():
        raise FileNotFoundError(f"{tool} does not exist: install a wheel of triton for NVIDIA GPUs, which contains it")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return sass.Listing.read(subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout)


def count(dtype: torch.dtype, clips: int, training: bool, only: str = "") -> list[tuple[Call, Counter[str] | None]]:
    """Launches of a pass whose kernel's name contains `only`, with their instructions; None where a branch depends on memory."""
    with calls_kept() as calls:
        traffic.count(True, dtype, clips, training)
    known: dict[str, Counter[str] | None] = {}
    found = []
    for call in calls:
        if only not in call.kernel.fn.__name__:
            continue
        key = f"{call.compiled_as()} {call.grid} {specialised(call)[3]}"
        if key not in known:
            try:
                known[key] = issued(call)
            except ValueError:
                known[key] = None
        found.append((call, known[key]))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Prints instructions and predicted times by kernel."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=list(traffic.DTYPES), default="bf16")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--mode", choices=["train", "coalitions", "step"], default="step")
    parser.add_argument("--only", default="", help="part of the names of the kernels that are counted")
    parser.add_argument("--out", type=Path, help="results file of the counts by launch, which bench.traffic reads")
    options = parser.parse_args(arguments)
    whole = 0
    counted: dict[Shape, int] = {}
    modules: set[str] = set()
    for clips, training in traffic.passes_of(options.mode, options.clips):
        totals: dict[str, list[int]] = defaultdict(list)
        not_counted: set[str] = set()
        for call, counts in count(traffic.DTYPES[options.dtype], clips, training, options.only):
            if counts is None:
                not_counted.add(call.kernel.fn.__name__)
            else:
                totals[call.kernel.fn.__name__].append(counts.total())
                counted[call.shape] = counts.total()
                modules.add(call.kernel.fn.__module__.rpartition(".")[2])
        print(f"{options.dtype}, {clips} clips, {'training' if training else 'eval'}: launches, warp instructions, predicted")
        for name, each in sorted(totals.items(), key=lambda entry: -sum(entry[1])):
            print(f"  {name:40} {len(each):4d} {sum(each) / 1e6:10.1f} M {sum(each) / instruction_counts.RATE * 1e3:8.2f} ms")
            whole += sum(each)
        if not_counted:
            print(f"  not counted, since branches depend on memory: {', '.join(sorted(not_counted))}")
    print(f"total: {whole / 1e6:.1f} M warp instructions, predicted {whole / instruction_counts.RATE * 1e3:.1f} ms")
    if options.out:
        instruction_counts.write(options.out, modules, counted)


if __name__ == "__main__":
    main()
