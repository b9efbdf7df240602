"""The augmentation's share of a training step, and a whole step: `python -m bench.step --out FILE`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import NTU, Batch, Shape, total
from bench.timing import device_seconds, in_turns, quantiles, seconds
from shapmix import ShapMix, kernels, reference
from shapmix.ctrgcn import CTRGCN
from shapmix.data.clips import ClipStore
from shapmix.data.sampling import ClipSampler
from shapmix.kernels import unavailable
from shapmix.kernels.checks import dtype_name
from shapmix.step import WARM_UP, TrainingStep

TARGET = 60e-6  # seconds of device time, of the augment path at 64 NTU clips


class AugmentPath:
    """Everything that Shap-Mix adds to a step, between the recordings and the network and between the logits and their gradient.

    Sample, draw, mix, expand into coalitions, update the table, and the loss forward and backward. The network itself is left
    out: its logits are inputs. The step is counted on the device, so that no value passes through the host.
    """

    def __init__(self, shape: Shape, device: torch.device, backend: str | None) -> None:
        self.batch = batch = Batch(shape, torch.float32, device)
        self.backend = backend
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.table = batch.saliency.clone()
        self.mixed_logits = batch.logits.clone().requires_grad_()
        self.with_rows = torch.arange(batch.n, device=device)
        self.without_rows = self.with_rows + batch.n
        # made before anything is timed or captured
        _ = batch.recorded, batch.coalitions, batch.mean_motion, batch.joint_counts, batch.log_prior, batch.class_counts

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """The batch for the network, the coalitions for its saliency pass, and the gradient of its logits."""
        ops: Any = reference if self.backend == "reference" else kernels
        options = {} if self.backend == "reference" else {"backend": self.backend}
        batch, num_frames = self.batch, self.batch.shape.size[2]
        clips = ops.sample_clips(*batch.recorded, num_frames=num_frames, **options)
        inputs = ops.coalition_inputs(clips, batch.mean_motion, batch.coalitions, batch.part_of_joint, **options)
        measured = (batch.logits, batch.labels, batch.columns, self.with_rows, self.without_rows, batch.joint_counts)
        ops.saliency_update(self.table, *measured, 0.9, **options)
        _, _, *drawn_from = batch.drawn_from
        plan = ops.draw_plan(batch.labels, self.table, *drawn_from, seed=0, step=self.step, **options)
        both = ops.mix_clips(clips, plan, batch.part_of_joint, **options)
        losses = ops.balanced_mix_loss(self.mixed_logits, batch.labels, plan.partner, plan.label_share, batch.log_prior, **options)
        (gradient,) = torch.autograd.grad(total(losses), self.mixed_logits)
        self.step += 1
        return both, inputs, gradient


def without_host_reads(run: Callable[[], object]) -> str | None:
    """What made the host wait for the GPU during one run, None where nothing did."""
    run()  # compiles
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None


def measure_augment_path(shape: Shape, device: torch.device, backend: str) -> dict[str, Any]:
    """Device time cold and hot, wall time beside the eager reference's, and on a GPU what the host waited for."""
    path, eager = AugmentPath(shape, device, backend), AugmentPath(shape, device, "reference")
    wall = in_turns({"op": path.run, "reference": eager.run}, device, budget=2.0)
    found: dict[str, Any] = {"wall": {name: quantiles(times) for name, times in wall.items()}}
    if device.type == "cuda":
        found["host_read"] = without_host_reads(path.run)
    for clock in ("cold", "hot"):
        found[clock] = {"op": quantiles(device_seconds(path.run, device, cold=clock == "cold"))}
    return {"backend": backend, "shape": shape.name, "target": TARGET, "seconds": found}


def measure_training_step(shape: Shape, device: torch.device, backend: str | None, *, rounds: int = 5) -> dict[str, Any]:
    """Wall time of a step of Shap-Mix with CTR-GCN: saliency, mixing, forward, backward, SGD; and its most memory."""
    batch = Batch(shape, torch.float32, device)
    _, channels, _, _, people = shape.size
    torch.manual_seed(0)
    network = CTRGCN(batch.layout, shape.classes, num_people=people, in_channels=channels).to(device)
    mixer = ShapMix(batch.layout, batch.class_counts.cpu(), batch.mean_motion.cpu(), backend=backend).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=4e-4)
    step = iter(range(rounds + 2))

    def run() -> None:
        index = next(step)
        mixer.observe(network, batch.clips, batch.labels, index)
        mixed = mixer.mix(batch.clips, batch.labels, index)
        loss = total(mixer.loss(network(mixed.clips), mixed))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(2):
        run()
    times = [seconds(run, device) for _ in range(rounds)]
    found: dict[str, Any] = {"backend": backend or "auto", "shape": shape.name, "seconds": quantiles(times)}
    if device.type == "cuda":
        found["bytes_at_most"] = torch.cuda.max_memory_allocated(device)
    return found


def measure_resident_step(
    shape: Shape, device: torch.device, autocast: torch.dtype | None = None, *, rounds: int = 5
) -> dict[str, Any]:
    """Wall time of the same step from resident recordings, sampling included: on a GPU one CUDA graph."""
    batch = Batch(shape, torch.float32, torch.device("cpu"))
    frames, offsets, *_ = batch.recorded
    names = [str(index) for index in range(batch.n)]
    store = ClipStore(frames, offsets, batch.labels, names, batch.layout, [str(index) for index in range(shape.classes)])
    _, channels, num_frames, _, people = shape.size
    torch.manual_seed(0)
    network = CTRGCN(batch.layout, shape.classes, num_people=people, in_channels=channels).to(device)
    mixer = ShapMix(batch.layout, batch.class_counts, batch.mean_motion).to(device)
    on_gpu = device.type == "cuda"
    options: Any = {"momentum": 0.9, "nesterov": True, "weight_decay": 4e-4, "fused": on_gpu}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, **options)
    sampler = ClipSampler(store, "crop", "joint", num_frames)
    step = TrainingStep(network, mixer, optimizer, sampler, batch.n, autocast=autocast)
    chosen, number = torch.arange(batch.n, device=device), count()

    def run() -> None:
        step(chosen, next(number))

    for _ in range(WARM_UP + 2):
        run()
    times = [seconds(run, device) for _ in range(rounds)]
    found: dict[str, Any] = {"captured": step.capture, "shape": shape.name, "seconds": quantiles(times)}
    found["precision"] = "float32" if autocast is None else dtype_name(autocast)
    if on_gpu:
        found["host_read"] = without_host_reads(run)
        found["bytes_at_most"] = torch.cuda.max_memory_allocated(device)
    return found


def path_backends(device: torch.device) -> list[str]:
    """`auto`, which takes the fastest back end of each op, and those that have every op."""
    ops = ("sample_clips", "draw_plan", "mix_clips", "coalition_inputs", "saliency_update", "balanced_mix_loss")
    fast = ("cpp", "triton", "cuda")
    return ["auto", *(name for name in fast if not any(unavailable(name, device, torch.float32, op) for op in ops))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON a measurement is appended here")
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    with arguments.out.open("a", encoding="utf-8") as lines:
        for backend in path_backends(device):
            print(json.dumps({"augment_path": measure_augment_path(NTU, device, backend)}), file=lines, flush=True)
        for name in (None, "reference"):
            print(json.dumps({"training_step": measure_training_step(NTU, device, name)}), file=lines, flush=True)
        for autocast in (None, torch.bfloat16):
            print(json.dumps({"resident_step": measure_resident_step(NTU, device, autocast)}), file=lines, flush=True)


if __name__ == "__main__":
    main()
