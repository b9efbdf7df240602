"""Order of the training clips: the clips of each batch are a function of (seed, epoch) only.

Every process draws the global batch and computes its own rows, so the clips of a step do not depend on the number of processes,
and a run resumes at any batch of any epoch without saved sampler state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shapmix.process.choices import Registry

Draw = Callable[[npt.NDArray[np.int64], np.random.Generator], npt.NDArray[np.int64]]


class Sampler(NamedTuple):
    """Draws the clips of an epoch, and whether it goes by their classes; `sampler` says how."""

    draw: Draw
    by_class: bool


SAMPLERS = Registry[Sampler]("sampler")


def sampler(name: str, *, by_class: bool = True) -> Callable[[Draw], Draw]:
    """Registers a sampler: a function of the clips' labels [N] and a generator, the only source of chance.

        @sampler("first_half")
        def first_half(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
            return generator.permutation(len(labels) // 2)

    It returns clips (0 to N - 1) in the order of one epoch, as many in each epoch.

    Args:
        by_class: it goes by the labels; otherwise they may be missing, and are zeros.

    Raises:
        ValueError: the name is taken.
    """

    def register(draw: Draw) -> Draw:
        SAMPLERS.add(name, Sampler(draw, by_class))
        return draw

    return register


@sampler("instance", by_class=False)
def instance(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Every clip once."""
    return generator.permutation(len(labels))


@sampler("square_root")
def square_root(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """N draws with replacement, a class with a probability that goes by the square root of its clips.

    Source: Kang et al., ICLR 2020, section 3.
    """
    return _weighted(1 / np.sqrt(np.bincount(labels)[labels]), generator)


@sampler("class_balanced")
def class_balanced(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """N draws with replacement, each class with the same probability (Kang et al., ICLR 2020, section 3)."""
    return _weighted(1 / np.bincount(labels)[labels], generator)


@sampler("tail_repeat")
def tail_repeat(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Every clip of a class of n clips sqrt(mean n / n) times, rounded, but at least once: no clip is left out.

    Source: the repeat factors of Gupta et al., CVPR 2019.
    """
    counts = np.bincount(labels)
    times = np.maximum(1, np.rint(np.sqrt(counts[counts > 0].mean() / counts[labels]))).astype(np.int64)
    return generator.permutation(np.repeat(np.arange(len(labels)), times))


def _weighted(weight: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return generator.choice(len(weight), len(weight), p=weight / weight.sum())


def epoch_order(clips: Tensor, seed: int, epoch: int, *, labels: Tensor | None = None, sampler: str = "instance") -> Tensor:
    """The clips (indices [N]) in the order of one epoch.

    Args:
        clips: indices [N].
        seed, epoch: decide every draw.
        labels: [N] classes of the clips; every sampler but `instance` goes by them.
        sampler: a name in `SAMPLERS`.

    Returns:
        [N] indices; another number, the same in each epoch, with a sampler that repeats or leaves out clips.

    Raises:
        ValueError: an unknown sampler, or no labels for one that goes by them.
    """
    found = SAMPLERS.find(sampler)
    if labels is None and found.by_class:
        raise ValueError(f"sampler '{sampler}' goes by the classes of the clips; give labels")
    given = np.zeros(len(clips), dtype=np.int64) if labels is None else labels.numpy()
    return clips[torch.from_numpy(found.draw(given, np.random.default_rng((seed, epoch))))]


def epoch_batches(order: Tensor, batch_size: int, *, first: int = 0) -> Iterator[Tensor]:
    """Global batches of an epoch's order from batch `first` on; a last, smaller batch is left out."""
    for begin in range(first * batch_size, len(order) - batch_size + 1, batch_size):
        yield order[begin : begin + batch_size]


def passes(batch_size: int, rank: int, ranks: int, accumulate: int) -> list[Tensor]:
    """Rows [n] of the global batch that a process forwards together, one tensor a pass.

    Over all processes and passes every row comes exactly once, and all passes have as many.

    Raises:
        ValueError: the batch does not divide.
    """
    size, rest = divmod(batch_size, ranks * accumulate)
    if rest:
        raise ValueError(f"batch_size {batch_size} does not divide into {ranks} processes with {accumulate} passes each")
    begin = rank * accumulate * size
    return [torch.arange(begin + number * size, begin + (number + 1) * size) for number in range(accumulate)]
