"""Whether a back end computes what the reference computes: every op, on random data of odd sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from shapmix import kernels, reference
from shapmix.reference import CropPlan, MixPlan

from .checks import DTYPES
from .dispatch import unavailable

# Odd sizes, one sample, one joint, and a batch large enough for every thread to get work.
SHAPES = ((1, 1, 1, 1, 1), (3, 3, 13, 7, 1), (5, 2, 37, 11, 2), (4, 3, 64, 25, 2), (64, 3, 64, 25, 2))


class Case(NamedTuple):
    """One comparison: an op's results on a back end, the reference's, and how far apart they may be."""

    op: str
    dtype: torch.dtype
    run: Callable[[], Iterable[Tensor]]
    expected: Iterable[Tensor]
    tolerance: float = 0.0  # 0 asks for the same bits


def compare(backend: str, device: torch.device, deadline: float) -> tuple[int, list[str]]:
    """Comparisons made with the reference, and those that did not agree."""
    compared = 0
    wrong: list[str] = []
    for shape in SHAPES:
        for dtype in DTYPES:
            of_shape = (dtype, device, backend)
            for case in (*_clip_cases(shape, *of_shape), *_logit_cases(shape[0], *of_shape), *_network_cases(shape[0], *of_shape)):
                if unavailable(backend, device, dtype, case.op):
                    continue
                if time.monotonic() > deadline:
                    return compared, wrong
                compared += 1
                if not all(_agree(left, right, case.tolerance) for left, right in zip(case.run(), case.expected, strict=True)):
                    wrong.append(f"{case.op} on {list(shape)} {dtype}")
    return compared, wrong


def _agree(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if tolerance == 0:
        return torch.equal(found, expected)
    return bool(((found.double() - expected.double()).abs() <= tolerance).all())


def _integers(generator: torch.Generator, low: Tensor | int, high: Tensor | int, *size: int) -> Tensor:
    share = torch.rand(size, generator=generator, dtype=torch.float64)
    return (low + share * (high - low + 1)).floor().long()


def _clip_cases(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backend: str) -> Iterator[Case]:
    """The ops on clips, on random ones."""
    n, channels, frames, joints, people = shape
    generator = torch.Generator().manual_seed(0)

    def integers(low: Tensor | int, high: Tensor | int) -> Tensor:
        return _integers(generator, low, high, n)

    clips = torch.randn(shape, generator=generator).to(device, dtype)
    mean_motion = torch.randn(shape[1:], generator=generator).to(device, dtype)
    all_parts = (1 << min(joints, 5)) - 1
    start, source_start = integers(0, frames - 1), integers(0, frames - 1)
    plan = MixPlan(
        partner=integers(0, n - 1),
        parts=integers(0, all_parts),
        start=start,
        length=integers(1, frames - start),
        source_start=source_start,
        source_length=integers(1, frames - source_start),
        lam=torch.rand(n, generator=generator, dtype=torch.float64),
        blend=torch.rand(n, generator=generator) < 0.3,
    ).to(device)
    coalitions = torch.stack([torch.zeros(n), torch.full((n,), all_parts), integers(0, all_parts)]).long().to(device)
    part_of_joint = (torch.arange(joints) % 5).to(device)
    norm = torch.randn(people, joints, channels, generator=generator).to(device, dtype)

    expanded = (clips, mean_motion, coalitions, part_of_joint)
    yield Case(
        "coalition_inputs",
        dtype,
        lambda: [kernels.coalition_inputs(*expanded, backend=backend)],
        [reference.coalition_inputs(*expanded)],
    )
    yield Case(
        "normalised_coalition_inputs",
        dtype,
        lambda: [kernels.normalised_coalition_inputs(*expanded, norm, norm, backend=backend)],
        [reference.normalised_coalition_inputs(*expanded, norm, norm)],
    )
    yield Case(
        "mix_clips",
        dtype,
        lambda: [kernels.mix_clips(clips, plan, part_of_joint, backend=backend)],
        [reference.mix_clips(clips, plan, part_of_joint)],
    )

    # the same clips as recordings of 1.5 times their length, cut and turned
    recordings = torch.cat([clips, clips[:, :, : frames // 2]], 2).permute(0, 2, 4, 3, 1).flatten(0, 1).contiguous()
    each = len(recordings) // n
    offsets = torch.arange(n + 1, device=device) * each
    first = integers(0, each - 1)
    angles = torch.randn(n, 3, generator=generator, dtype=torch.float64) * (channels == 3)
    crops = CropPlan(torch.arange(n), first, integers(1, each - first), angles)
    crops = CropPlan(**{name: value.to(device) for name, value in vars(crops).items()})
    sampled = (recordings, offsets, crops, torch.arange(joints, device=device) // 2)
    yield Case(
        "sample_clips",
        dtype,
        lambda: [kernels.sample_clips(*sampled, stream="bone_motion", num_frames=frames, backend=backend)],
        [reference.sample_clips(*sampled, stream="bone_motion", num_frames=frames)],
        tolerance=4 * float(clips.abs().max()) * (24 + each) * torch.finfo(dtype).eps,
    )


def _logit_cases(n: int, dtype: torch.dtype, device: torch.device, backend: str) -> Iterator[Case]:
    """The ops on logits and labels, on random ones of 13 classes."""
    n, classes, parts = max(n, 3), 13, 5
    generator = torch.Generator().manual_seed(0)
    labels, partner = (_integers(generator, 0, high - 1, n).to(device) for high in (classes, n))
    logits = torch.randn(2 * n, classes, generator=generator).to(device, dtype)
    table = torch.rand(classes, parts, generator=generator).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    sets = 1 << torch.arange(parts, device=device)
    joint_counts = torch.arange(1, parts + 1, device=device)
    rows = torch.arange(n, device=device)
    eps = torch.finfo(table.dtype).eps

    # the draws depend on the type of the table alone
    if dtype in (torch.float32, torch.float64):
        drawn = (labels, table, torch.arange(classes, device=device) // 2, sets, torch.arange(25, device=device) % parts, 64)
        yield Case(
            "draw_plan",
            dtype,
            lambda: vars(kernels.draw_plan(*drawn, seed=1, step=2, backend=backend)).values(),
            vars(reference.draw_plan(*drawn, seed=1, step=2)).values(),
        )

    def update(op: Callable[..., Tensor], **options: str) -> list[Tensor]:
        own = table.clone()
        return [op(own, logits, labels, rows % parts, rows, rows + n, joint_counts, 0.9, **options), own]

    yield Case(
        "saliency_update",
        dtype,
        lambda: update(kernels.saliency_update, backend=backend),
        update(reference.saliency_update),
        tolerance=10 * (64 + n) * eps,
    )
    lam, log_prior = torch.rand(n, generator=generator).to(device), table[:, 0].log()
    yield Case(
        "balanced_mix_loss",
        dtype,
        lambda: kernels.balanced_mix_loss(logits, labels, partner, lam, log_prior, backend=backend),
        reference.balanced_mix_loss(logits, labels, partner, lam, log_prior),
        tolerance=64 * classes * eps,
    )


def _network_cases(n: int, dtype: torch.dtype, device: torch.device, backend: str) -> Iterator[Case]:
    """The ops of CTR-GCN, on random features of 16 channels."""
    n, channels, subsets, relations, frames, joints = max(n, 2), 16, 3, 8, 6, 5
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, of: torch.dtype = wide) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, of)

    graph = (
        normal(n, subsets * channels, frames, joints, of=dtype),
        normal(n, joints, 2, subsets, relations),
        normal(subsets, relations, channels) / relations,
        normal(subsets, channels),
        normal(subsets, joints, joints),
    )
    x, weight, bias = normal(n, channels, frames, joints, of=dtype), normal(channels), normal(channels)
    branches = (x, x, x, x, weight, bias)
    # 15 products of up to 12, summed in the wide type; a half type rounds the result, and where pairs are multiplied the factors
    tolerance = 256 * torch.finfo(wide).eps + 64 * torch.finfo(dtype).eps
    yield Case(
        "graph_conv",
        dtype,
        lambda: [kernels.graph_conv(*graph, backend=backend)],
        [reference.graph_conv(*graph)],
        tolerance=tolerance,
    )
    yield Case(
        "batch_norm",
        dtype,
        lambda: kernels.batch_norm(x, weight, bias, bias, backend=backend),
        reference.batch_norm(x, weight, bias, bias),
        tolerance=tolerance,
    )
    yield Case(
        "join_branches",
        dtype,
        lambda: [kernels.join_branches(*branches, backend=backend)],
        [reference.join_branches(*branches)],
        tolerance=tolerance,
    )
