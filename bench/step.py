"""The cost of augmentation in a training step: `python -m bench.step --out FILE`; and the whole steps of `bench.headline`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import NTU, total
from bench.timing import device_seconds, interleaved, quantiles
from shapmix import ShapMix, kernels, reference
from shapmix.data.clips import ClipStore
from shapmix.data.sampling import ClipSampler
from shapmix.draws.crops import draw_crops
from shapmix.kernels import unavailable
from shapmix.kernels.examples import Batch, Shape
from shapmix.networks import ctrgcn, ctrgcn_reference
from shapmix.process.parallel import SharedForward
from shapmix.training.step import TrainingStep

TARGET = 60e-6  # device time of the augment path at 64 NTU clips, in seconds


class AugmentPath:
    """All ops that Shap-Mix adds to a step, before the network and between its logits and their gradient.

    Sampling, plan, mixing, coalition inputs, table update, and the loss forward and backward. The network is excluded: its logits
    are inputs. The step counter is on the device, so that nothing synchronises with the host.
    """

    def __init__(self, shape: Shape, device: torch.device, backend: str | None) -> None:
        self.batch = batch = Batch(shape, torch.float32, device)
        self.backend = backend
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.table = batch.saliency.clone()
        self.mixed_logits = batch.logits.clone().requires_grad_()
        self.with_rows = torch.arange(batch.n, device=device)
        self.without_rows = self.with_rows + batch.n
        # computed before anything is timed or captured
        _ = batch.recorded, batch.coalitions, batch.mean_motion, batch.joint_counts, batch.log_prior, batch.class_counts

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the network's batch, the coalitions of its saliency pass, and the gradient of its logits."""
        ops: Any = reference if self.backend == "reference" else kernels
        options = {} if self.backend == "reference" else {"backend": self.backend}
        batch, num_frames = self.batch, self.batch.shape.size[2]
        clips = ops.sample_clips(*batch.recorded, num_frames=num_frames, **options)
        inputs = ops.coalition_inputs(clips, batch.mean_motion, batch.coalitions, batch.part_of_joint, **options)
        measured = (batch.logits, batch.labels, batch.columns, self.with_rows, self.without_rows, batch.joint_counts)
        ops.saliency_update(self.table, *measured, 0.9, **options)
        plan = ops.draw_plan(**batch.drawn_from | {"saliency": self.table}, seed=0, step=self.step, **options)
        both = ops.mix_clips(clips, plan, batch.part_of_joint, **options)
        losses = ops.balanced_mix_loss(self.mixed_logits, batch.labels, plan.partner, plan.label_share, batch.log_prior, **options)
        (gradient,) = torch.autograd.grad(total(losses), self.mixed_logits)
        self.step += 1
        return both, inputs, gradient


def find_host_sync(run: Callable[[], object]) -> str | None:
    """The first synchronisation of the host with the GPU during one run, None if there is none."""
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
    """Cold and hot device time, wall time interleaved with the eager reference, and on a GPU host synchronisation."""
    path, eager = AugmentPath(shape, device, backend), AugmentPath(shape, device, "reference")
    wall = interleaved({"op": path.run, "reference": eager.run}, device, budget=2.0)
    found: dict[str, Any] = {"wall": {name: quantiles(times) for name, times in wall.items()}}
    if device.type == "cuda":
        found["host_read"] = find_host_sync(path.run)
    for clock in ("cold", "hot"):
        found[clock] = {"op": quantiles(device_seconds(path.run, device, cold=clock == "cold"))}
    return {"backend": backend, "shape": shape.name, "target": TARGET, "seconds": found}


@dataclass(frozen=True)
class Workload:
    """Whole Shap-Mix steps with CTR-GCN, from recordings on the device.

    Attributes:
        clips: N; each step trains on 2N clips, [clean; mixed], and forwards about 2N for the saliency.
        frames: T; with 2 people, 25 joints, 60 classes.
        widths: widths of the network's layers.
        rounds: number of timed steps.
    """

    clips: int
    frames: int
    widths: tuple[int, ...]
    rounds: int

    @property
    def shape(self) -> Shape:
        _, channels, _, joints, people = NTU.size
        return Shape("ntu", NTU.layout, (self.clips, channels, self.frames, joints, people), NTU.classes)


PUBLISHED = Workload(NTU.size[0], NTU.size[2], (64,) * 4 + (128,) * 3 + (256,) * 3, 30)


class WholeStep:
    """Repeated training steps: sample, measure, mix, forward, backward, SGD.

    Args:
        eager: use the reference's network and ops in eager mode; else ours, on a GPU as one CUDA graph.
        autocast: dtype of `torch.autocast` for the network, or None.
        compiler: back end of `torch.compile` for the network, or None.
    """

    def __init__(
        self,
        workload: Workload,
        device: torch.device,
        *,
        eager: bool,
        autocast: torch.dtype | None = None,
        compiler: str | None = None,
    ) -> None:
        batch = Batch(workload.shape, torch.float32, torch.device("cpu"))
        frames, offsets, *_ = batch.recorded
        names, classes = ([str(index) for index in range(size)] for size in (batch.n, workload.shape.classes))
        store = ClipStore(frames, offsets, batch.labels, names, batch.layout, classes)
        _, channels, _, _, people = workload.shape.size
        torch.manual_seed(0)
        made = ctrgcn_reference.CTRGCN if eager else ctrgcn.CTRGCN
        self.network = made(
            batch.layout, workload.shape.classes, num_people=people, in_channels=channels, widths=workload.widths
        ).to(device)
        if compiler is not None:
            self.network.compile(backend=compiler, dynamic=False)
        backend = "reference" if eager else None
        mixer = ShapMix(batch.layout, batch.class_counts, batch.mean_motion, backend=backend).to(device)
        options: Any = {"momentum": 0.9, "nesterov": True, "weight_decay": 4e-4, "fused": device.type == "cuda"}
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, **options)
        sampler = ClipSampler(store, "crop", "joint", workload.frames)
        self.chosen = torch.arange(batch.n, device=device)
        self.number = 0  # steps so far
        self.device = device
        self.losses: tuple[Tensor, Tensor] | None = None  # of the last step, clean and mixed
        self._step: Callable[[Tensor, int], tuple[Tensor, Tensor]]
        if eager:
            self._step = EagerStep(self.network, mixer, optimizer, sampler, autocast)
            self.captured = False
        else:
            step = TrainingStep(self.network, mixer, optimizer, sampler, batch.n, autocast=autocast)
            self._step = lambda chosen, number: step(chosen, number)[:2]
            self.captured = step.capture

    def run(self) -> None:
        self.losses = self._step(self.chosen, self.number)
        self.number += 1

    def check_losses(self) -> list[float]:
        """The losses of the last step.

        Raises:
            RuntimeError: a loss is not finite, so the timed steps are not valid training.
        """
        assert self.losses is not None
        found = [float(loss) for loss in self.losses]
        if not all(map(isfinite, found)):
            raise RuntimeError(f"losses are {found} after {self.number} steps")
        return found


class EagerStep:
    """The training step with the reference's ops. It does not synchronise with the host either, for a fair comparison."""

    def __init__(
        self,
        network: nn.Module,
        mixer: ShapMix,
        optimizer: torch.optim.Optimizer,
        sampler: ClipSampler,
        autocast: torch.dtype | None,
    ) -> None:
        self.device = device = mixer.saliency.device
        store, (parents, self.stream) = sampler.store, sampler.bones
        self.frames, self.offsets, self.lengths, self.labels, self.parents = (
            value.to(device) for value in (store.frames, store.offsets, store.lengths, store.labels, parents)
        )
        self.mixer, self.optimizer, self.sampler = mixer, optimizer, sampler
        self.logits_of = SharedForward(network, autocast)
        self.number = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, chosen: Tensor, number: int) -> tuple[Tensor, Tensor]:
        sampler, mixer = self.sampler, self.mixer
        self.number.fill_(number)
        labels = self.labels[chosen]
        crops = draw_crops(chosen, self.lengths[chosen], num_frames=sampler.num_frames, seed=sampler.seed, step=self.number)
        clips = reference.sample_clips(
            self.frames, self.offsets, crops, self.parents, stream=self.stream, num_frames=sampler.num_frames
        )
        mixer.observe(self.logits_of, clips, labels, number, counter=self.number)
        batch = mixer.mix(clips, labels, number, counter=self.number)
        losses = mixer.loss(self.logits_of(batch.clips), batch)
        self.optimizer.zero_grad(set_to_none=True)
        total(losses).backward()
        self.optimizer.step()
        return losses[0].detach(), losses[1].detach()


def path_backends(device: torch.device) -> list[str]:
    """`auto`, the fastest back end per op, and the back ends that have every op."""
    ops = ("sample_clips", "draw_plan", "mix_clips", "coalition_inputs", "saliency_update", "balanced_mix_loss")
    fast = ("cpp", "triton", "cuda")
    return ["auto", *(name for name in fast if not any(unavailable(name, device, torch.float32, op) for op in ops))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to append one JSON line per measurement to")
    arguments = parser.parse_args()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    with arguments.out.open("a", encoding="utf-8") as lines:
        for backend in path_backends(device):
            print(json.dumps({"augment_path": measure_augment_path(NTU, device, backend)}), file=lines, flush=True)


if __name__ == "__main__":
    main()
