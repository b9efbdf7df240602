"""Compares logits and gradients of our network with the reference, on the device that is measured.

The ground truth is the reference in float64. The tolerance is the rounding error, estimated from the reference itself in the
same precision: our network rounds as often but in different places, so its distance is a draw of the same magnitude. It may be
`MARGIN` times the reference's distance, the rounding of the dtype, or that of a norm that sums its rows sequentially in float32.

Gradients are discontinuous at ReLUs: if d is the relative rounding of the logits, about a fraction d of the activations, which the
norms keep at unit variance, are so close to zero that a ReLU flips. Of U activations per layer, d * U * L flip in L such layers,
and each carries 1 / sqrt(U) of the gradient norm. If few flip (float32), and for parameter kinds with few entries, the reference
may have none by chance, so that many flips are added to the tolerance; with many flips and entries (bf16), distances vary little
and ours may be `CLOSE` times as large.

Gradients are grouped by kind of parameter over all layers, so that kinds with few or small entries count as much as large ones,
and no single number decides. Layers that repeat another layer's shape are skipped: they only add rounding.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.step import Workload
from shapmix.kernels.examples import Batch, Shape
from shapmix.networks import ctrgcn, ctrgcn_reference

CLIPS = 4
MARGIN = 4.0  # two draws of the same magnitude rarely differ by more, even with few entries
CLOSE = 2.0  # the same with many entries
MANY = 100  # ReLU flips, entries
ALPHA = 0.5  # of the refined graphs: the published initial value 0 would hide everything it multiplies
RECTIFIED = 5  # norms before a ReLU in a layer: graph unit, three branches, output
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16}
TRAINED = "logits in training"
VANISHING = 1e-9  # relative to all gradients: rounding in float64
Values = dict[str, Tensor]  # compared quantity -> values in float64


@contextmanager
def no_tf32() -> Iterator[None]:
    """Disables TF32 in matrix products and convolutions."""
    switches: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def compare(workload: Workload, device: torch.device, network: type[ctrgcn_reference.CTRGCN] = ctrgcn.CTRGCN) -> dict[str, Any]:
    """Distances of a network from the float64 reference and their tolerances; `failed` lists those above tolerance."""
    shape = workload.shape
    _, channels, frames, joints, people = shape.size
    batch = Batch(Shape("compared", shape.layout, (CLIPS, channels, frames, joints, people), shape.classes), torch.float32, device)

    def made(kind: type[ctrgcn_reference.CTRGCN]) -> ctrgcn_reference.CTRGCN:
        torch.manual_seed(0)
        own = kind(batch.layout, shape.classes, num_people=people, in_channels=channels, widths=widths, graph_gain=1.0)
        for module in own.modules():
            if isinstance(module, ctrgcn_reference.GraphUnit):
                nn.init.constant_(module.alpha, ALPHA)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0  # eval mode then uses the statistics of the training pass
        return own.to(device)

    widths = distinct(workload.widths)
    rows = CLIPS * people * frames * joints  # of the first layer; wider layers have fewer
    sizes = {"rows": rows, "activations": rows * widths[0], "rectified": RECTIFIED * len(widths)}
    found: dict[str, Any] = {"clips": CLIPS, "widths": list(widths), "margin": MARGIN, "distances": {}, "failed": []}
    with no_tf32():
        exact = values_of(made(ctrgcn_reference.CTRGCN).double(), batch.clips.double(), batch.labels, None)
        for name, autocast in PRECISIONS.items():
            own, base = (values_of(made(kind), batch.clips, batch.labels, autocast) for kind in (network, ctrgcn_reference.CTRGCN))
            found["distances"][name] = judged = distances(own, base, exact, autocast or torch.float32, **sizes)
            found["failed"] += [
                f"{name} {what}: {of['distance']:.2g} from the reference in float64, {of['allowed']:.2g} allowed"
                for what, of in judged.items()
                if not of["distance"] <= of["allowed"]  # also fails on NaN
            ]
    return found


def values_of(network: nn.Module, clips: Tensor, labels: Tensor, autocast: torch.dtype | None) -> Values:
    """Logits in eval and in training mode, and the gradients per kind of parameter."""

    def logits() -> Tensor:
        with torch.autocast(clips.device.type, autocast) if autocast else nullcontext():
            found: Tensor = network(clips)
        return found.to(clips.dtype)

    network.train()
    trained = logits()
    nn.functional.cross_entropy(trained, labels).backward()
    network.eval()  # after an update of the running statistics, so that the norms folded in eval mode are not identities
    with torch.no_grad():
        evaluated = logits()
    gradients: defaultdict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gradients[kind_of(name)].append(parameter.grad.flatten().double())
    found = {TRAINED: trained.detach().double(), "logits in eval": evaluated.double()}
    return found | {f"gradient of {kind}": torch.cat(parts) for kind, parts in gradients.items()}


def kind_of(parameter: str) -> str:
    """`l7.gcn1.convs.2.conv4.weight` -> `gcn1.convs.conv4.weight`."""
    return re.sub(r"^l\d+\.|\.\d+(?=\.)", "", parameter)


def distinct(widths: Sequence[int]) -> tuple[int, ...]:
    """The widths of a network with one layer of each shape: only the first of repeated layers is kept."""
    kept: list[int] = []
    for layer, width in enumerate(widths):
        shape = (widths[layer - 1] if layer else None, width)
        before = (kept[-2] if len(kept) > 1 else None, kept[-1]) if kept else None
        if shape != before:
            kept.append(width)
    return tuple(kept)


def distances(
    own: Values, base: Values, exact: Values, precision: torch.dtype, *, rows: int, activations: int, rectified: int
) -> dict[str, dict[str, float]]:
    """Per quantity: relative L2 distances of our network and of the reference from the exact value, and the tolerance.

    A gradient that is exactly zero (a bias before a norm) consists of rounding; it is compared with the norm of all gradients.

    Args:
        precision: dtype of `own` and `base`.
        rows: summed by a norm.
        activations: per layer.
        rectified: layers followed by a ReLU.
    """
    whole = float(torch.cat([value.flatten() for name, value in exact.items() if name.startswith("gradient")]).norm())
    least = max(torch.finfo(precision).eps, torch.finfo(torch.float32).eps * rows**0.5)
    flipped = float((base[TRAINED] - exact[TRAINED]).norm() / exact[TRAINED].norm()) * rectified  # fraction of the activations
    allowed_flipped = max(flipped, least * rectified, 1 / activations)
    found: dict[str, dict[str, float]] = {}
    for name, value in exact.items():
        size = float(value.norm())
        vanishes = size <= VANISHING * whole
        unit = whole if vanishes else size
        rounding = float((base[name] - value).norm()) / unit
        floor, margin = least, MARGIN
        if name.startswith("gradient") and not vanishes:
            if flipped * activations >= MANY and value.numel() >= MANY:
                margin = CLOSE
            else:
                floor = max(floor, allowed_flipped**0.5)
        distance = float((own[name] - value).norm()) / unit
        found[name] = {"distance": distance, "reference": rounding, "allowed": margin * max(rounding, floor)}
    return found
