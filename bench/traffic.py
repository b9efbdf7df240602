"""Memory traffic and launches of a network on a GPU, counted without one: `python -m bench.traffic --dtype bf16 --mode step`.

A pass runs on fake tensors. Every operation of torch is counted as torch launches it on a GPU, and every Triton kernel by what its
launch declares. The time of a launch is predicted as the largest of: its bytes over the memory bandwidth that its kind of kernel
reaches, its operations over the peak rate of its type, its instructions where they are counted (`bench.instructions`; the graph
units in bfloat16 with 128 clips), and the shortest time of a kernel. The floor moves what the exact function
must move: a batch norm is a barrier, so what is normalised is written before, and read after it.

Predicted figures are not measured ones. `EFFICIENCY` is estimated; after a profile on a card it is fitted to that.
"""

from __future__ import annotations

import argparse
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import instruction_counts
from shapmix.kernels import triton_unit
from shapmix.kernels.triton_launch import Launch, record_launches
from shapmix.networks import aagcn, convolution, ctrgcn, ctrgcn_reference, stgcn
from shapmix.networks.ctrgcn import takes_coalitions
from shapmix.reference.coalition import CoalitionClips, coalition_inputs
from shapmix.skeleton.layout import load_layout

BANDWIDTH = 3.0e12  # bytes a second of an H100 SXM, as copies reach it
SHORTEST = 2e-6  # seconds of a kernel inside a CUDA graph
PEAK = {torch.bfloat16: 0.6 * 990e12, torch.float16: 0.6 * 990e12, torch.float32: 0.6 * 495e12, torch.float64: 30e12}  # TF32
EFFICIENCY = {  # share of the bandwidth
    "fused": 0.75,
    "elementwise": 0.85,
    "norm": 0.75,
    "convolution": 0.65,
    "weight gradient": 0.55,
    "product": 0.60,
    "sum": 0.70,
    "copy": 0.85,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FOREACH = {1: 110, 2: 64, 3: 48, 4: 36}  # tensors of one launch, by the number of lists
BACKBONES = {"ctrgcn": ctrgcn.CTRGCN, "stgcn": stgcn, "aagcn": aagcn}
MARK = " (instructions)"
FRAMES, JOINTS, PEOPLE, CLASSES = 64, 25, 2, 60
WIDTHS = (64,) * 4 + (128,) * 3 + (256,) * 3


class Move(NamedTuple):
    """One kernel, or several alike."""

    kind: str
    name: str
    layer: str
    read: int
    written: int
    flops: int
    dtype: torch.dtype
    launches: int = 1
    instructions: int = 0  # of warps; 0 if they are not counted

    @property
    def seconds_but_for_instructions(self) -> float:
        """Predicted from bytes and products."""
        moved = (self.read + self.written) / (BANDWIDTH * EFFICIENCY[self.kind])
        return max(moved, self.flops / PEAK.get(self.dtype, PEAK[torch.float32]), SHORTEST * self.launches)

    @property
    def seconds(self) -> float:
        """Predicted."""
        return max(self.seconds_but_for_instructions, self.instructions / instruction_counts.RATE)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements; an axis of stride 0 is one element."""
    total = 0
    for tensor in tensors:
        size = tensor.element_size()
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            size *= length if stride else 1
        total += size
    return total


FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh", "is_same_size"}
FILLS = {"zero_", "fill_", "zeros", "zeros_like", "new_zeros", "full", "full_like", "ones", "ones_like", "new_full", "new_ones"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
SUMS = {"sum", "mean", "amax", "max_pool2d_with_indices_backward", "max_pool2d_with_indices"}


class TorchOps(TorchDispatchMode):
    """Records what torch's operations move."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moves: list[Move] = []
        self.layer = "other"
        self.peak = self._held = 0
        self._users: dict[int, int] = {}  # tensors of each piece of memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation on fake tensors and records it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in written:
            self._hold(tensor)
        if name not in FREE and not self._is_view(func, read, written):
            self._record(func, name, args, read, written)
        return out

    def _hold(self, tensor: Tensor) -> None:
        """Counts the memory of a tensor until all tensors that share it are gone."""
        memory = tensor.untyped_storage()
        key, size = memory._cdata, memory.nbytes()
        if key not in self._users:
            self._held += size
            self.peak = max(self.peak, self._held)
        self._users[key] = self._users.get(key, 0) + 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self._held -= size

    @staticmethod
    def _is_view(func: Any, read: list[Tensor], written: list[Tensor]) -> bool:
        if func._schema.is_mutable or not read:
            return False
        memory = {tensor.untyped_storage()._cdata for tensor in read}
        return all(tensor.untyped_storage()._cdata in memory for tensor in written)

    def _add(self, kind: str, name: str, read: int, written: int, like: Tensor, flops: int = 0, launches: int = 1) -> None:
        self.moves.append(Move(kind, name, self.layer, read, written, flops, like.dtype, launches))

    def _record(self, func: Any, name: str, args: Any, read: list[Tensor], written: list[Tensor]) -> None:
        if name.startswith("_foreach"):
            lists = [values for values in args if isinstance(values, (list, tuple))]
            launches = -(-len(lists[0]) // FOREACH[min(len(lists) + (not name.endswith("_")), 4)])
            moved = bytes_of(lists[0])
            self._add("copy", name, bytes_of(read), moved, lists[0][0], launches=launches)
        elif name in ("convolution", "convolution_overrideable"):
            self._convolution(args[0], args[1], args[2], written[0])
        elif name == "convolution_backward":
            self._convolution_backward(args[0], args[1], args[2], args[-1])
        elif func.namespace == "shapmix":
            self._norm_op(name, read, written)
        elif "batch_norm" in name:
            self._batch_norm(name, args, read, written)
        elif name in PRODUCTS:
            result = written[0]
            flops = (
                2 * result.numel() * args[-2 if name.startswith("b") or name == "mm" else -1].shape[-1 if name != "addmm" else 0]
            )
            self._add("product", name, bytes_of(read), bytes_of(written), result, flops)
        elif written or name.endswith("_"):
            kind = "sum" if name in SUMS else "copy" if name in ("copy_", "_to_copy", "clone", "cat") else "elementwise"
            source = [] if name in FILLS else read[1:] if name == "copy_" else read
            self._add(kind, name, bytes_of(source), bytes_of(written or read[:1]), (written or read)[0])

    def _convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
        rows_are_channels = x.stride(1) == 1 and x.shape[1] > 1
        layout = torch.channels_last if rows_are_channels else torch.contiguous_format
        if not x.is_contiguous(memory_format=layout):
            self._add("copy", "convolution: copy of its input", bytes_of([x]), bytes_of([x]), x)
        flops = 2 * y.numel() * weight[0].numel()
        self._add("convolution", "convolution", bytes_of([x, weight]), bytes_of([y]), y, flops)
        if bias is not None:  # cuDNN's result is read and written again
            self._add("elementwise", "convolution: bias", bytes_of([y]), bytes_of([y]), y)

    def _convolution_backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> None:
        flops = 2 * grad.numel() * weight[0].numel()
        for tensor in (grad, x):
            layout = torch.channels_last if tensor.stride(1) == 1 and tensor.shape[1] > 1 else torch.contiguous_format
            if not tensor.is_contiguous(memory_format=layout):
                self._add("copy", "convolution: copy of its input", bytes_of([tensor]), bytes_of([tensor]), tensor)
        if wanted[0]:
            self._add("convolution", "convolution: gradient of input", bytes_of([grad, weight]), bytes_of([x]), x, flops)
        if wanted[1]:
            name = "convolution: gradient of weight"
            self._add("weight gradient", name, bytes_of([grad, x]), bytes_of([weight]), x, flops)
        if wanted[2]:
            self._add("sum", "convolution: gradient of bias", bytes_of([grad]), 4 * len(weight), x)

    def _batch_norm(self, name: str, args: Any, read: list[Tensor], written: list[Tensor]) -> None:
        if "backward" in name:
            grad, x = read[:2]
            self._add("norm", "batch norm: backward", 2 * bytes_of([grad, x]), bytes_of(written[:1]), x, launches=2)
            return
        training = any(argument is True for argument in args)
        times, launches = (2, 2) if training else (1, 1)
        self._add("norm", "batch norm", times * bytes_of(read[:1]), bytes_of(written[:1]), read[0], launches=launches)

    def _norm_op(self, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        """The op `batch_norm` or its gradient: all is read for the sums and for the result, but a shortcut only for the latter."""
        assert name in ("batch_norm", "batch_norm_backward"), name
        activations = [tensor for tensor in read if tensor.dim() == 4]
        summed = activations if name == "batch_norm_backward" else activations[:1]
        results = [tensor for tensor in written if tensor.dim() == 4]
        self._add("norm", f"own {name}", bytes_of(activations + summed), bytes_of(results), activations[0], launches=3)


class LabelledSteps:
    """The steps of fused layers, with their launches under the layer's name."""

    def __init__(self, steps: Any, counted: TorchOps) -> None:
        self.steps, self.counted, self.layer = steps, counted, 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        step = getattr(self.steps, name)

        def labelled(*arguments: Any, **options: Any) -> Any:
            if name == "relations":  # the first step of a layer, forward
                self.layer += 1
            self.counted.layer = f"l{self.layer}"
            with record_launches() as launches:
                result = step(*arguments, **options)
            self.counted.moves += [move_of(launch, self.counted.layer) for launch in launches]
            if name == "relations_backward":  # the last one, backward
                self.layer -= 1
                self.counted.layer = "other" if self.layer == 0 else self.counted.layer
            return result

        return labelled


def with_instructions(moves: Iterable[Move], counts: dict[instruction_counts.Shape, int]) -> list[Move]:
    """The moves, with the instructions of those that are counted."""
    return [
        move._replace(instructions=counts.get(instruction_counts.Shape(move.name, move.dtype, move.read, move.written), 0))
        for move in moves
    ]


def move_of(launch: Launch, layer: str) -> Move:
    """A kernel of ours as a move."""
    return Move("fused", launch.name, layer, launch.bytes_read, launch.bytes_written, launch.flops, launch.dtype)


@contextmanager
def fake_network(ours: bool, training: bool, backbone: str) -> Iterator[tuple[nn.Module, TorchOps]]:
    """The published network on fake tensors, and what records its passes."""
    counted = TorchOps()
    is_fused = ours and backbone == "ctrgcn"
    # Fake tensors lie on the CPU, but it is the path of a GPU that counts: without the shapes that oneDNN prefers.
    with FakeTensorMode(allow_non_fake_inputs=True), patch.object(convolution, "HAS_ONEDNN", False):
        make: Any = BACKBONES[backbone] if ours or backbone != "ctrgcn" else ctrgcn_reference.CTRGCN
        network = make(load_layout("ntu25"), CLASSES, num_people=PEOPLE).train(training)
        if is_fused:
            steps = LabelledSteps(triton_unit, counted)
            network.steps_on = lambda _x: steps
        for index, layer in enumerate([] if is_fused else network.layers):
            label(layer, f"l{index + 1}", counted)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and not ours:
                module.register_forward_hook(lambda *_: None)  # norms with hooks run as modules
        yield network, counted


def label(layer: nn.Module, name: str, counted: TorchOps) -> None:
    """Records a module's operations under a name."""

    def enter(*_arguments: object) -> None:
        counted.layer = name

    def leave(*_arguments: object) -> None:
        counted.layer = "other"

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
    layer.register_full_backward_pre_hook(enter)
    layer.register_full_backward_hook(leave)


def count(ours: bool, dtype: torch.dtype, clips: int, training: bool, backbone: str = "ctrgcn") -> tuple[list[Move], int]:
    """The kernels of one pass, and its peak of memory in bytes without weights.

    In training mode, forward and backward on `clips`; in eval mode, on as many rows of coalitions of half as many clips.
    """
    with fake_network(ours, training, backbone) as (network, counted):
        x = torch.empty(clips if training else -(-clips // 2), 3, FRAMES, JOINTS, PEOPLE)
        labels, parts = torch.empty(clips, dtype=torch.int64), torch.empty(JOINTS, dtype=torch.int64)
        rows = CoalitionClips(x, torch.empty(x.shape[1:]), labels, labels, parts)
        with counted:
            with torch.set_grad_enabled(training), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                if training:
                    logits = network(x)
                elif ours and takes_coalitions(network):
                    logits = network(rows)
                else:
                    logits = network(coalition_inputs(x[rows.samples], rows.mean_motion, rows.coalitions[None], parts))
            if training:
                nn.functional.cross_entropy(logits.float(), labels).backward()
    return counted.moves, counted.peak


def floor_bytes(dtype: torch.dtype, clips: int, training: bool) -> int:
    """Bytes that the exact function must move: each value that crosses a norm is written once, and read once by each pass.

    In training, a layer reads its input and writes y; reads y and the shortcut and writes z and the skip branch; reads z and
    writes o; reads o and the residual and writes its output. Backward it reads output and o for the sums and writes the gradient g;
    reads g, o and z and writes the gradient of z; reads that, z, the skip branch, y and the shortcut and writes the gradient of y;
    reads that, y, x and g; what it writes is the g of the layer below. In eval mode two kernels read and write one tensor each.
    """
    size, rows, total = dtype.itemsize, clips * PEOPLE * JOINTS, 0
    frames, before = FRAMES, 3
    for index, width in enumerate(WIDTHS):
        stride = 2 if index and width != before else 1
        kept = 8 if index == 0 else before // 8
        x, y, w = rows * frames * before, rows * frames * width, rows * -(-frames // stride) * width
        factors = rows * JOINTS * 3 * kept
        down = y if before != width else 0
        product = w if stride > 1 else 0
        residual = 0 if index == 0 else product or w
        if training:
            shortcut = down or x
            forward = x + y + down + y + shortcut + 0.75 * y + 0.25 * w + 0.75 * (y + w) + product + 2 * w + residual + 2 * factors
            first = 3 * w + product
            second = 0.75 * (2 * w + 2 * y)
            third = 1.5 * y + 0.5 * w + 2 * y + shortcut
            fourth = 2 * y + x + residual + (2 * product + down) + 3 * factors
            total += int(forward + first + second + third + fourth)
        else:
            total += int(x + 2 * y + w + (0 if index == 0 else x / stride) + 2 * factors)
        frames, before = -(-frames // stride), width
    return total * size


class Total(NamedTuple):
    """Sums over kernels; seconds are predicted."""

    launches: int
    bytes_moved: int
    seconds: float


def total_of(moves: Iterable[Move]) -> Total:
    """Sums over kernels."""
    moves = list(moves)
    return Total(
        sum(move.launches for move in moves), sum(move.read + move.written for move in moves), sum(move.seconds for move in moves)
    )


def table(moves: list[Move], key: Callable[[Move], str], least: float = 0.0) -> list[str]:
    """Lines of launches, GB and predicted milliseconds by a key, longest first; marked where instructions take the longest."""
    groups: dict[str, list[Move]] = defaultdict(list)
    for move in moves:
        groups[key(move)].append(move)
    bound = {name for name, group in groups.items() if any(move.seconds > move.seconds_but_for_instructions for move in group)}
    totals = sorted(((total_of(group), name) for name, group in groups.items()), key=lambda entry: -entry[0].seconds)
    marks = {name: MARK if name in bound else "" for name in groups}
    return [
        f"  {name:44} {total.launches:6d} {total.bytes_moved / 1e9:8.2f} GB {total.seconds * 1e3:8.2f} ms{marks[name]}"
        for total, name in totals
        if total.seconds >= least
    ]


def passes_of(mode: str, clips: int) -> list[tuple[int, bool]]:
    """(clips, training) of each pass. A step trains on `clips`, clean and mixed, and forwards 3 fewer for the saliency."""
    return {"train": [(clips, True)], "coalitions": [(clips, False)], "step": [(clips, True), (max(clips - 3, 1), False)]}[mode]


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--mode", choices=["train", "coalitions", "step"], default="train")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="ctrgcn")
    options = parser.parse_args(arguments)
    dtype, passes = DTYPES[options.dtype], passes_of(options.mode, options.clips)
    floor = sum(floor_bytes(dtype, clips, training) for clips, training in passes) / BANDWIDTH
    try:
        counts = instruction_counts.read()
    except instruction_counts.StaleCountsError as error:
        print(f"predicted from bytes and products alone: {error}")
        counts = {}
    for ours in (False, True):
        counted = [count(ours, dtype, clips, training, options.backbone) for clips, training in passes]
        moves, peak = with_instructions((move for each, _ in counted for move in each), counts), max(peak for _, peak in counted)
        print(f"{'shapmix' if ours else 'reference, eager'}, {options.dtype}, {options.mode}: launches, moved, predicted")
        print(*table(moves, lambda move: f"{move.kind}: {move.name}", least=2e-5), sep="\n")
        print(*table(moves, lambda move: move.layer), sep="\n")
        total = total_of(moves)
        line = f"{total.launches} launches, {total.bytes_moved / 1e9:.1f} GB, predicted {total.seconds * 1e3:.1f} ms"
        print(f"peak of memory, without weights: {peak / 1e9:.2f} GB")
        of_floor = f", floor {floor * 1e3:.1f} ms" if options.backbone == "ctrgcn" else ""
        print(f"{'total' if ours else 'reference'}: {line}{of_floor}")


if __name__ == "__main__":
    main()
