"""Weights and statistics of all fused layers in one launch each: the tensors are found through a table of their addresses.

A table is made once for the tensors of a network and is on their device, so that a captured step reads no host memory.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from shapmix.reference.layer import EPS, Statistics

from .triton_launch import launch

BLOCK = 1024
TABLES = 64  # kept; a network takes five
PACK_COLUMNS, STATISTICS_COLUMNS = 3, 8

_tables: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
_captured: dict[int, Tensor] = {}  # tables that CUDA graphs read at every replay, which nothing sees: they are kept


@triton.jit
def pack_kernel(out, table, SOURCE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program copies one piece: (address, first element of the result, number of elements)."""
    entry = table + tl.program_id(0) * 3
    source = tl.load(entry).to(tl.pointer_type(SOURCE))
    element = tl.arange(0, BLOCK)
    inside = element < tl.load(entry + 2)
    value = tl.load(source + element, mask=inside, other=0.0)
    tl.store(out + tl.load(entry + 1) + element, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def load_bias(address, channel, inside, WIDE: tl.constexpr):
    """The bias of a convolution at an address, 0 if there is none."""
    found = inside & (address != 0)
    return tl.load(address.to(tl.pointer_type(WIDE)) + channel, mask=found, other=0.0)


@triton.jit
def update_statistics_kernel(norms, table, MOMENTUM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program updates one module: (mean, variance, weight, bias, bias of the convolution, first, width, channels)."""
    entry = table + tl.program_id(0) * 8
    mean = tl.load(entry).to(tl.pointer_type(WIDE))
    variance = tl.load(entry + 1).to(tl.pointer_type(WIDE))
    norm, width, channels = norms + tl.load(entry + 5), tl.load(entry + 6), tl.load(entry + 7)
    for begin in range(0, channels, BLOCK):
        channel = begin + tl.arange(0, BLOCK)
        inside = channel < channels
        of_batch = tl.load(norm + channel, mask=inside, other=0.0) + load_bias(tl.load(entry + 4), channel, inside, WIDE)
        per_row = tl.load(norm + 4 * width + channel, mask=inside, other=1.0)
        spread = tl.load(norm + 5 * width + channel, mask=inside, other=0.0) / tl.maximum(1.0 - per_row, per_row)
        old = tl.load(mean + channel, mask=inside, other=0.0)
        tl.store(mean + channel, old + MOMENTUM * (of_batch - old), mask=inside)
        old = tl.load(variance + channel, mask=inside, other=0.0)
        tl.store(variance + channel, old + MOMENTUM * (spread - old), mask=inside)


@triton.jit
def running_norms_kernel(norms, table, EPS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program writes the norm of one module's running statistics; the table is that of `update_statistics_kernel`."""
    entry = table + tl.program_id(0) * 8
    norm, width, channels = norms + tl.load(entry + 5), tl.load(entry + 6), tl.load(entry + 7)
    for begin in range(0, channels, BLOCK):
        channel = begin + tl.arange(0, BLOCK)
        inside = channel < channels
        mean = tl.load(tl.load(entry).to(tl.pointer_type(WIDE)) + channel, mask=inside, other=0.0)
        variance = tl.load(tl.load(entry + 1).to(tl.pointer_type(WIDE)) + channel, mask=inside, other=1.0)
        weight = tl.load(tl.load(entry + 2).to(tl.pointer_type(WIDE)) + channel, mask=inside, other=0.0)
        bias = tl.load(tl.load(entry + 3).to(tl.pointer_type(WIDE)) + channel, mask=inside, other=0.0)
        conv_bias = load_bias(tl.load(entry + 4), channel, inside, WIDE)
        tl.store(norm + channel, mean - conv_bias, mask=inside)
        tl.store(norm + width + channel, 1.0 / tl.sqrt(variance + EPS), mask=inside)
        tl.store(norm + 2 * width + channel, weight, mask=inside)
        tl.store(norm + 3 * width + channel, bias, mask=inside)
        tl.store(norm + 4 * width + channel, tl.zeros_like(mean), mask=inside)
        tl.store(norm + 5 * width + channel, variance, mask=inside)


def pack(sources: Sequence[Tensor], out: Tensor) -> None:
    """As `shapmix.reference.layer.pack`; the sources are contiguous and of one dtype."""
    if isinstance(out, FakeTensor):
        table = out.new_empty(sum(triton.cdiv(source.numel(), BLOCK) for source in sources), PACK_COLUMNS, dtype=torch.int64)
    else:
        key = ("pack", out.device, *((source.data_ptr(), source.numel()) for source in sources))
        table = _table(key, lambda: _pieces(sources), out.device)
    launch(
        pack_kernel,
        (len(table),),
        out,
        table,
        SOURCE=_element(sources[0]),
        BLOCK=BLOCK,
        num_warps=4,
        reads=(*sources, table),
        writes=(out,),
    )


def update_statistics(norms: Tensor, modules: Sequence[Statistics], momentum: float) -> None:
    """As `shapmix.reference.layer.update_statistics`; all tensors are contiguous and of the dtype of the norms."""
    table = _of_modules(norms, modules)
    written = [tensor for module in modules for tensor in (module.mean, module.variance)]
    launch(
        update_statistics_kernel,
        (len(modules),),
        norms,
        table,
        MOMENTUM=momentum,
        WIDE=_element(norms),
        BLOCK=128,
        num_warps=4,
        reads=((norms, 0.5), *written, table),
        writes=written,
    )


def running_norms(norms: Tensor, modules: Sequence[Statistics], eps: float = EPS) -> None:
    """As `shapmix.reference.layer.running_norms`; all tensors are contiguous and of the dtype of the norms."""
    table = _of_modules(norms, modules)
    launch(
        running_norms_kernel,
        (len(modules),),
        norms,
        table,
        EPS=eps,
        WIDE=_element(norms),
        BLOCK=128,
        num_warps=4,
        reads=((norms, 5 / 6), table),
        writes=(norms,),
    )


def _of_modules(norms: Tensor, modules: Sequence[Statistics]) -> Tensor:
    if isinstance(norms, FakeTensor):
        return norms.new_empty(len(modules), STATISTICS_COLUMNS, dtype=torch.int64)
    rows = []
    for module in modules:
        tensors = (module.mean, module.variance, module.weight, module.bias, module.conv_bias)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        rows.append([*addresses, module.first, module.width, len(module.mean)])
    return _table(("statistics", norms.device, *map(tuple, rows)), lambda: rows, norms.device)


def _pieces(sources: Sequence[Tensor]) -> list[list[int]]:
    """(address, first element of the result, number of elements) of every block of the sources."""
    pieces, first = [], 0
    for source in sources:
        for begin in range(0, source.numel(), BLOCK):
            size = min(BLOCK, source.numel() - begin)
            pieces.append([source.data_ptr() + begin * source.element_size(), first + begin, size])
        first += source.numel()
    return pieces


def _table(key: tuple[object, ...], rows: Callable[[], list[list[int]]], device: torch.device) -> Tensor:
    """The table of a key, made if it is new; of many tables, those used last are kept."""
    if key not in _tables:
        _tables[key] = torch.tensor(rows(), dtype=torch.int64).to(device)
        if len(_tables) > TABLES:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    table = _tables[key]
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured.setdefault(table.data_ptr(), table)
    return table


def _element(tensor: Tensor) -> tl.dtype:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
