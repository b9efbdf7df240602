"""Benchmark cases: the examples of each op on batches of realistic shapes, with their minimum memory traffic.

Traffic is computed from shapes: each input and each output once, regardless of cache hits or repeated reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shapmix import kernels, reference
from shapmix.kernels.agreement import reference_of
from shapmix.kernels.examples import EXAMPLES, Arguments, Batch, Shape, example, nbytes
from shapmix.reference import CropPlan

REAL, HALF = (torch.float32,), (torch.bfloat16, torch.float16)
ALL = (*REAL, *HALF)

NTU = Shape("ntu", "ntu25", (64, 3, 64, 25, 2), 60)
SHAPES = {
    "cpu": (
        NTU,
        Shape("k400", "coco17", (80, 3, 100, 17, 2), 400),
        Shape("nw_ucla", "ucla20", (32, 3, 64, 20, 1), 10),
        Shape("large", "ntu25", (256, 3, 64, 25, 2), 60),
    ),
    "cuda": (
        NTU,
        Shape("large", "ntu25", (1024, 3, 64, 25, 2), 60),
        Shape("k400", "coco17", (80, 3, 100, 17, 2), 400),
        Shape("nw_ucla", "ucla20", (32, 3, 64, 20, 1), 10),
    ),
}


@dataclass(frozen=True)
class Problem:
    """An op with its inputs.

    Attributes:
        run: calls the op on the named back end.
        reference: calls the eager reference.
        bytes_moved: minimum memory traffic of one run.
    """

    run: Callable[[str], object]
    reference: Callable[[], object]
    bytes_moved: int


@dataclass(frozen=True)
class Case:
    """A benchmark group: an op (or several, joined by ` + `), a variant of the call, and how its problem is made."""

    ops: str
    variant: str
    make: Callable[[Batch], Problem]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The measured dtypes that the ops depend on."""
        return tuple(dtype for dtype in ALL if all(dtype in EXAMPLES[op].dtypes for op in self.ops.split(" + ")))

    def __str__(self) -> str:
        return f"{self.ops} {self.variant}".strip()


def forward(op: str, change: Callable[[Arguments], Arguments] = lambda arguments: {}) -> Callable[[Batch], Problem]:
    """An op's example, of which some arguments may be changed."""

    def make(batch: Batch) -> Problem:
        arguments = example(op, batch)
        arguments |= change(arguments)
        run, run_reference = getattr(kernels, op), reference_of(op)
        return Problem(
            lambda backend: run(**arguments, backend=backend),
            lambda: run_reference(**arguments),
            EXAMPLES[op].bytes_moved(arguments),
        )

    return make


def forward_backward(op: str, leaves: tuple[str, ...], bytes_of_backward: Callable[[Arguments], int]) -> Callable[[Batch], Problem]:
    """An op's example and the gradients of some arguments: of the loss, or from a given gradient of a layer's output."""

    def make(batch: Batch) -> Problem:
        arguments = example(op, batch)
        arguments |= {name: arguments[name].clone().requires_grad_() for name in leaves}
        run, run_reference = getattr(kernels, op), reference_of(op)
        wanted = [arguments[name] for name in leaves]
        above: list[Tensor] = []  # the gradient of the output, made once: in a network the layer above writes it

        def backward(found: Any) -> tuple[Tensor, ...]:
            first = found if isinstance(found, Tensor) else found[0]
            if first.dim() == 0:
                return torch.autograd.grad(total(found), wanted)
            if not above:
                above.append(torch.ones_like(first))
            return torch.autograd.grad(first, wanted, above[0])

        return Problem(
            lambda backend: backward(run(**arguments, backend=backend)),
            lambda: backward(run_reference(**arguments)),
            EXAMPLES[op].bytes_moved(arguments) + bytes_of_backward(arguments),
        )

    return make


def total(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a gradient is taken of: the training loss (the sum of the clean and the mixed one), or the sum of a layer's output."""
    if isinstance(found, Tensor):
        return found.float().sum()
    first, *others = found
    return first + others[0] if first.dim() == 0 else first.float().sum()


def sampled(batch: Batch) -> Problem:
    """The reference samples clip by clip, as data loaders do."""
    problem = forward("sample_clips")(batch)
    arguments = example("sample_clips", batch)
    crops = arguments["plan"]

    def clip_by_clip() -> Tensor:
        rows = (CropPlan(*(value[row : row + 1] for value in vars(crops).values())) for row in range(batch.n))
        return torch.cat([reference.sample_clips(**arguments | {"plan": crop}) for crop in rows])

    return Problem(problem.run, clip_by_clip, problem.bytes_moved)


def shared(sets: int) -> Callable[[Arguments], Arguments]:
    """Coalitions that all samples share."""
    return lambda arguments: {"coalitions": torch.arange(1, sets + 1, device=arguments["clips"].device)}


def into_a_buffer(batch: Batch) -> Problem:
    """31 shared coalitions, written to memory that is reused."""
    problem = forward("coalition_inputs", shared(31))(batch)
    arguments = example("coalition_inputs", batch)
    arguments |= shared(31)(arguments)
    out = batch.clips.new_empty(31 * batch.n, *batch.shape.size[1:])
    return Problem(
        lambda backend: kernels.coalition_inputs(**arguments, backend=backend, out=out), problem.reference, problem.bytes_moved
    )


def drawn_and_updated(batch: Batch) -> Problem:
    """The ops of a step that do not move clips."""
    draw, update = forward("draw_plan")(batch), forward("saliency_update")(batch)
    return Problem(
        lambda backend: (draw.run(backend), update.run(backend)),
        lambda: (draw.reference(), update.reference()),
        draw.bytes_moved + update.bytes_moved,
    )


def loss_backward_bytes(arguments: Arguments) -> int:
    """Reads the logits again and writes their gradient."""
    return nbytes(arguments.values()) + arguments["logits"].nbytes


def graph_backward_bytes(arguments: Arguments) -> int:
    """Reads the gradient and all arguments, and writes their gradients."""
    return 2 * nbytes(arguments.values()) + arguments["features"].nbytes // len(arguments["weight"])


def norm_backward_bytes(arguments: Arguments) -> int:
    """Reads input, output and gradient, and writes the gradients of input and shortcut."""
    return 5 * arguments["x"].nbytes


BOTH = "forward and backward"
GRAPH = ("features", "relation_terms", "weight", "bias", "shared")
CASES = (
    Case("sample_clips", "", sampled),
    Case("coalition_inputs", "S=2", forward("coalition_inputs", shared(2))),
    Case("coalition_inputs", "S=31", forward("coalition_inputs", shared(31))),
    Case("coalition_inputs", "S=31 into a buffer", into_a_buffer),
    Case("mix_clips", "", forward("mix_clips")),
    Case("draw_plan", "", forward("draw_plan")),
    Case("saliency_update", "", forward("saliency_update")),
    Case("draw_plan + saliency_update", "", drawn_and_updated),
    Case("balanced_mix_loss", "forward", forward("balanced_mix_loss")),
    Case("balanced_mix_loss", BOTH, forward_backward("balanced_mix_loss", ("logits",), loss_backward_bytes)),
    Case("graph_conv", "forward", forward("graph_conv")),
    Case("graph_conv", BOTH, forward_backward("graph_conv", GRAPH, graph_backward_bytes)),
    Case("batch_norm", "forward", forward("batch_norm")),
    Case("batch_norm", BOTH, forward_backward("batch_norm", ("x", "shortcut"), norm_backward_bytes)),
    Case("join_branches", "", forward("join_branches")),
)
