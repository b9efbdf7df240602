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
    """A function that draws the clips of an epoch (see `sampler`), and whether it uses their classes."""

    draw: Draw
    by_class: bool


SAMPLERS = Registry[Sampler]("sampler")


def sampler(name: str, *, by_class: bool = True) -> Callable[[Draw], Draw]:
    """Registers a sampler: a function of the clips' labels [N] and a generator, its only source of randomness.

        @sampler("first_half")
        def first_half(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
            return generator.permutation(len(labels) // 2)

    It returns clips (0 to N - 1) in the order of one epoch, the same number in each epoch.

    Args:
        by_class: whether it uses the labels; otherwise they may be missing, and are zeros.

    Raises:
        ValueError: the name is already registered.
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
    """N draws with replacement; the probability of a class is proportional to the square root of its number of clips.

    Source: Kang et al., ICLR 2020, section 3.
    """
    return _weighted(1 / np.sqrt(np.bincount(labels)[labels]), generator)


@sampler("class_balanced")
def class_balanced(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """N draws with replacement; all classes have the same probability (Kang et al., ICLR 2020, section 3)."""
    return _weighted(1 / np.bincount(labels)[labels], generator)


@sampler("tail_repeat")
def tail_repeat(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Repeats every clip of a class of n clips max(1, round(sqrt(mean n / n))) times, so no clip is skipped.

    Source: the repeat factors of Gupta et al., CVPR 2019.
    """
    counts = np.bincount(labels)
    times = np.maximum(1, np.rint(np.sqrt(counts[counts > 0].mean() / counts[labels]))).astype(np.int64)
    return generator.permutation(np.repeat(np.arange(len(labels)), times))


@sampler("oversample")
def oversample(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Every clip once, and more draws with replacement of each class, until it has as many as the largest class.

    Source: the published Shap-Mix code's feeder with random over-sampling, which draws once for all epochs; here each epoch draws.
    """
    counts = np.bincount(labels)
    short = (counts.max() - counts) * (counts > 0)
    more = _of_classes(np.repeat(np.arange(len(counts)), short), labels, generator)
    return generator.permutation(np.concatenate([np.arange(len(labels)), more]))


@sampler("class_balanced_4x")
def class_balanced_4x(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """4 N draws with replacement, of which every class has the same number, to within one.

    Source: the published Shap-Mix code's over-sampling feeder with `class_balance`. (Its recipe for long tails sets that option of
    another feeder, which ignores it: that is `instance`.)
    """
    classes = np.unique(labels)
    return generator.permutation(_of_classes(classes[np.arange(4 * len(labels)) % len(classes)], labels, generator))


@sampler("tail_third")
def tail_third(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Repeats every clip of the smallest third of the classes n_max / n times; a fraction repeats so many of the class's clips.

    Source: the code of BRL (Liu et al., arXiv 2308.14024) and, of the same file, of Shap-Mix. They take the last third of the
    class ids, which are the smallest classes in their lists.
    """
    counts = np.bincount(labels)
    by_size = np.argsort(-counts, kind="stable")
    times = np.ones(len(counts))
    tail = by_size[len(counts) // 3 * 2 :]
    times[tail] = counts.max() / np.maximum(counts[tail], 1)
    whole, rest = np.floor(times).astype(np.int64), np.floor((times % 1) * counts).astype(np.int64)
    some = [generator.permutation(np.flatnonzero(labels == label))[: rest[label]] for label in np.flatnonzero(rest)]
    return generator.permutation(np.concatenate([np.repeat(np.arange(len(labels)), whole[labels]), *some]))


def _of_classes(
    classes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A random clip of each of these classes."""
    counts = np.bincount(labels)
    begin = np.cumsum(counts) - counts
    return np.argsort(labels, kind="stable")[begin[classes] + generator.integers(0, counts[classes])]


def _weighted(weight: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return generator.choice(len(weight), len(weight), p=weight / weight.sum())


def epoch_order(
    clips: Tensor, seed: int, epoch: int, *, labels: Tensor | None = None, sampler: str = "instance", repeat: int = 1
) -> Tensor:
    """Clips in the order of one epoch.

    Args:
        clips: [N] indices.
        seed, epoch: determine all random draws.
        labels: [N] classes of the clips, required unless the sampler is `instance`.
        sampler: a name in `SAMPLERS`.
        repeat: the sampler draws from this many copies of the clips, as if the data set were that much longer.

    Returns:
        [N repeat] indices; a sampler that repeats or skips clips returns a different number, the same in each epoch.

    Raises:
        ValueError: an unknown sampler, or missing labels for a sampler that uses them.
    """
    found = SAMPLERS.find(sampler)
    if labels is None and found.by_class:
        raise ValueError(f"sampler '{sampler}' needs the classes of the clips; give labels")
    given = np.tile(np.zeros(len(clips), dtype=np.int64) if labels is None else labels.numpy(), repeat)
    return clips[torch.from_numpy(found.draw(given, np.random.default_rng((seed, epoch))) % len(clips))]


def epoch_batches(order: Tensor, batch_size: int, *, first: int = 0) -> Iterator[Tensor]:
    """Yields the global batches of an epoch's order from batch `first` on; drops an incomplete last batch."""
    for begin in range(first * batch_size, len(order) - batch_size + 1, batch_size):
        yield order[begin : begin + batch_size]


def passes(batch_size: int, rank: int, ranks: int, accumulate: int) -> list[Tensor]:
    """Rows [n] of the global batch that a process forwards together, one tensor per pass.

    Every row occurs exactly once over all processes and passes; all passes have the same size.

    Raises:
        ValueError: the batch is not divisible.
    """
    size, rest = divmod(batch_size, ranks * accumulate)
    if rest:
        raise ValueError(f"batch_size {batch_size} is not divisible by {ranks} processes times {accumulate} passes")
    begin = rank * accumulate * size
    return [torch.arange(begin + number * size, begin + (number + 1) * size) for number in range(accumulate)]
