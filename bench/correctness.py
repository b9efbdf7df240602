"""Whether our network computes what the reference computes, on the device where it is measured: logits and gradients.

The judge is the reference in float64. How far may a network lie from it? As far as rounding takes it, and what rounding does the
reference itself shows in the same precision: ours rounds as often but elsewhere, so its distance is another draw of the same size,
and may be `MARGIN` times the reference's, or the type's rounding, or that of a norm that adds up its rows one by one in float32.

Gradients jump where a ReLU turns: a share of about the logits' rounding d of the activations, which the norms hold at unit
variance, lies so near to zero that a ReLU is on in one run and off in the other. Of U activations a layer, d * U * L turn in L such
layers, and each carries 1 / sqrt(U) of the gradient's length. Where only few turn (float32), and for kinds of few entries, the
reference may have been lucky, so that as many are allowed for; for many entries of many turns (bf16) distances hardly vary, and
ours may be `CLOSE` times as large.

Gradients are judged by kind of parameter over all layers, so that a kind with few or small entries counts as much as one with many,
and none by the luck of a single number. Layers that repeat another's shape are left out: they add nothing but rounding.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import Batch, Shape
from bench.step import Workload
from shapmix.networks import ctrgcn, ctrgcn_reference

CLIPS = 4
MARGIN = 4.0  # two draws of one size hardly differ by more, also where they are of few numbers
CLOSE = 2.0  # the same for draws of many
MANY = 100  # turns of ReLU, entries
ALPHA = 0.5  # of the refined graphs, whose published start of 0 would hide everything that is multiplied by it
RECTIFIED = 5  # norms before a ReLU in a layer: the graph unit's, three branches', the end's
PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16}
TRAINED = "logits in training"
VANISHING = 1e-9  # of all gradients: rounding in float64
Values = dict[str, Tensor]  # of each quantity that is compared, in float64


@contextmanager
def whole_float32() -> Iterator[None]:
    """Products and convolutions of float32 without TF32."""
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
    """Distances of a network from the reference in float64 beside what is allowed; `failed` names those that are too large."""
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
                module.momentum = 1.0  # eval mode then norms as training did
        return own.to(device)

    widths = distinct(workload.widths)
    rows = CLIPS * people * frames * joints  # of the first layer; a layer that is wider has fewer
    sizes = {"rows": rows, "activations": rows * widths[0], "rectified": RECTIFIED * len(widths)}
    found: dict[str, Any] = {"clips": CLIPS, "widths": list(widths), "margin": MARGIN, "distances": {}, "failed": []}
    with whole_float32():
        exact = values_of(made(ctrgcn_reference.CTRGCN).double(), batch.clips.double(), batch.labels, None)
        for name, autocast in PRECISIONS.items():
            own, base = (values_of(made(kind), batch.clips, batch.labels, autocast) for kind in (network, ctrgcn_reference.CTRGCN))
            found["distances"][name] = judged = distances(own, base, exact, autocast or torch.float32, **sizes)
            found["failed"] += [
                f"{name} {what}: {of['distance']:.2g} from the reference in float64, {of['allowed']:.2g} allowed"
                for what, of in judged.items()
                if not of["distance"] <= of["allowed"]  # NaN is no distance
            ]
    return found


def values_of(network: nn.Module, clips: Tensor, labels: Tensor, autocast: torch.dtype | None) -> Values:
    """Logits in eval and in training mode, and the gradients of each kind of parameter."""

    def logits() -> Tensor:
        with torch.autocast(clips.device.type, autocast) if autocast else nullcontext():
            found: Tensor = network(clips)
        return found.to(clips.dtype)

    network.train()
    trained = logits()
    nn.functional.cross_entropy(trained, labels).backward()
    network.eval()  # after a step of running statistics, so that the norms that eval mode folds are no identities
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
    """Of the layers that repeat each other's shape the first: widths of a network that has each of them once."""
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
    """Of each quantity: L2 distances of ours and of the reference from the exact one, relative to it, and what is allowed.

    A gradient that is zero (of a bias before a norm) holds rounding alone; it is measured against all gradients together.

    Args:
        precision: of `own` and `base`.
        rows: that a norm adds up; activations: of a layer; rectified: how many layers of them a ReLU follows.
    """
    whole = float(torch.cat([value.flatten() for name, value in exact.items() if name.startswith("gradient")]).norm())
    least = max(torch.finfo(precision).eps, torch.finfo(torch.float32).eps * rows**0.5)
    turned = float((base[TRAINED] - exact[TRAINED]).norm() / exact[TRAINED].norm()) * rectified  # share of the activations
    allowed_turned = max(turned, least * rectified, 1 / activations)
    found: dict[str, dict[str, float]] = {}
    for name, value in exact.items():
        size = float(value.norm())
        vanishes = size <= VANISHING * whole
        unit = whole if vanishes else size
        rounding = float((base[name] - value).norm()) / unit
        floor, margin = least, MARGIN
        if name.startswith("gradient") and not vanishes:
            if turned * activations >= MANY and value.numel() >= MANY:
                margin = CLOSE
            else:
                floor = max(floor, allowed_turned**0.5)
        distance = float((own[name] - value).norm()) / unit
        found[name] = {"distance": distance, "reference": rounding, "allowed": margin * max(rounding, floor)}
    return found
