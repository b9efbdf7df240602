"""The reference against recorded behaviour of the published code."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shapmix.draws.crops import centre_crops, even_frames
from shapmix.kernels import unavailable
from shapmix.mixing.official import joint_counts, restored_frames
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.reference import (
    CropPlan,
    FramePlan,
    MixPlan,
    average_in,
    balanced_mix_loss,
    coalition_inputs,
    label_probability,
    log_class_prior,
    marginals,
    mix_clips,
    saliency_update,
    sample_clips,
    sample_frames,
)
from shapmix.reference import layer as layer_steps
from shapmix.reference.plan import Window, mix_plan, partner_of, pasted_parts
from shapmix.skeleton.layout import Layout, load_layout
from tests.proofs import DEVICE_OF

TRITON_DEVICE = DEVICE_OF["triton"]
NO_TRITON = unavailable("triton", TRITON_DEVICE)


def recorded(pattern: str) -> list:
    """Parameters for one test per recorded file that matches, or one visible skip if the folder is not given."""
    folder = os.environ.get("SHAPMIX_GOLDEN")
    if not folder:
        skip = pytest.mark.skip(reason="SHAPMIX_GOLDEN is not set: no recorded behaviour to compare with")
        return [pytest.param(None, marks=[skip, pytest.mark.golden], id=pattern)]
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise pytest.UsageError(f"SHAPMIX_GOLDEN={folder} holds no file that matches {pattern}")
    return [pytest.param(path, marks=pytest.mark.golden, id=path.stem) for path in files]


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files if archive[key].dtype.kind not in "US"}


def draws_of(path: Path, key: str = "draws") -> list[list]:
    with np.load(path) as archive:
        return json.loads(str(archive[key]))


def layout_of(path: Path) -> Layout:
    return load_layout("ntu25" if "_ntu" in path.stem else "coco17")


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def bits(parts: Tensor | list[int]) -> int:
    return sum(1 << int(part) for part in parts)


def window_of(draws: list[list]) -> tuple[Window, list[list]]:
    """Recorded draws in order -> the window, and the remaining draws (combination indices)."""
    left = [draw for draw in draws if draw[0] not in ("sample",)]
    shift = left.pop(0)[-1]
    if draws[1][0] == "randint" and draws[1][1:3] == [2, 3]:
        left.pop(0)  # ST-Mix: number of parts
    length, start = left.pop(0)[-1], left.pop(0)[-1]
    blend, lam, source_length, source_start = False, 0.0, length, 0
    if left and left[0][0] == "random" and len(left) > 1:
        blend = left.pop(0)[1] <= 0.25
    if left[0][0] == "random":
        blend, lam = True, left.pop(0)[1]
    else:
        if left[0][1:3] == [2, 3]:
            left.pop(0)
        source_length, source_start = left.pop(0)[-1], left.pop(0)[-1]
    frames = [torch.tensor(4 * units) for units in (start, length, source_start, source_length)]
    window = Window(torch.tensor(shift), *frames, torch.tensor(lam, dtype=torch.float64), torch.tensor(blend))
    return window, left


def shapmix_plan(draws: list[list], labels: Tensor, priority: Tensor, layout: Layout, num_frames: int) -> MixPlan:
    window, left = window_of(draws)
    parts = torch.zeros_like(labels)
    if not window.blend:
        columns = torch.tensor([draw[1][0] for draw in left])
        partners = labels[partner_of(len(labels), window.shift)]
        parts = pasted_parts(layout.combinations[columns], labels, partners, priority, layout.part_of_joint)
    return mix_plan(window, parts, layout.part_of_joint, num_frames)


@pytest.mark.parametrize("path", recorded("stmix_*.npz"))
def test_stmix(path: Path) -> None:
    z, layout, draws = load(path), layout_of(path), draws_of(path)
    clips, num_frames = z["x"], z["x"].shape[2]
    window, _ = window_of(draws)
    parts = torch.full((len(clips),), bits(next(draw[2] for draw in draws if draw[0] == "sample")))
    plan = mix_plan(window, parts, layout.part_of_joint, num_frames)
    assert torch.equal(plan.partner, z["partner"])
    both = mix_clips(clips, plan, layout.part_of_joint)
    assert torch.equal(both[: len(clips)], clips)
    mixed = both[len(clips) :]
    if window.blend:
        assert relative_error(mixed, z["mixed"]) <= 1e-6
        assert torch.equal(z["mask"], plan.lam[0].float().expand_as(z["mask"]))
    else:
        assert torch.equal(mixed, z["mixed"])
        frame = torch.arange(num_frames // 4) * 4
        rows = (frame >= window.start) & (frame < window.start + window.length)
        columns = (parts[0] >> layout.part_of_joint & 1).bool()
        assert torch.equal(z["mask"].bool(), rows[:, None] & columns)
    assert relative_error(plan.label_share, z["lam"].expand(len(clips))) <= 1e-6


@pytest.mark.parametrize("path", recorded("shapmix_*.npz"))
def test_shapmix(path: Path) -> None:
    z, layout = load(path), layout_of(path)
    clips = z["x"]
    plan = shapmix_plan(draws_of(path), z["label"], z["label_priority"], layout, clips.shape[2])
    assert torch.equal(plan.partner, z["partner"])
    mixed = mix_clips(clips, plan, layout.part_of_joint)[len(clips) :]
    if plan.blend[0]:
        assert relative_error(mixed, z["mixed"]) <= 1e-6
    else:
        assert torch.equal(mixed, z["mixed"])
    assert relative_error(plan.label_share[:, None], z["lam"]) <= 1e-6


@pytest.mark.parametrize("path", recorded("saliency_*.npz"))
def test_saliency(path: Path) -> None:
    z, layout = load(path), layout_of(path)
    combination, context = bits(z["parts"]), bits(z["context"])
    coalitions = torch.tensor([combination | context, context])
    n = len(z["x"])
    rows = coalition_inputs(z["x"], z["mean_motion"], coalitions, layout.part_of_joint, restored_frames=restored_frames(layout))
    shared = "_naive" in path.stem  # the batch shares one row of the empty coalition
    without = rows[n : n + 1] if shared else rows[n:]
    assert torch.equal(rows[:n], z["input_with"])
    assert torch.equal(without, z["input_without"])

    def value(clips: Tensor) -> Tensor:
        logits = clips.flatten(1) @ z["probe_w"]
        return label_probability(logits.expand(n, -1), z["label"])

    weight = marginals(value(rows[:n]), value(without))
    assert float((weight - z["weight"]).abs().max()) <= 5e-6


@pytest.mark.parametrize("path", recorded("ema*.npz"))
def test_class_ema(path: Path) -> None:
    z = load(path)
    columns = z["column"].expand(len(z["label"]))
    unscaled = torch.full((z["before"].shape[1],), 10)  # the weights of the fixture are already scaled
    for decay, after in ((float(z["decay"]), "after"), (0.0, "after_decay0")):
        table = z["before"].clone()
        average_in(table, z["label"], columns, z["weight"], unscaled, decay)
        assert relative_error(table, z[after]) <= 1e-9


@pytest.mark.parametrize("path", recorded("loss*.npz"))
def test_loss(path: Path) -> None:
    z = load(path)
    logits = torch.cat([z["logits"], z["mixed_logits"]]).requires_grad_()
    clean, mixed = balanced_mix_loss(logits, z["label"], z["partner"], z["lam"][:, 0], log_class_prior(z["class_count"]))
    (clean + mixed).backward()
    assert relative_error(clean.detach(), z["loss_clean"]) <= 1e-9
    assert relative_error(mixed.detach(), z["loss_mixed"]) <= 1e-9
    assert logits.grad is not None
    assert relative_error(logits.grad, torch.cat([z["grad_clean"], z["grad_mixed"]])) <= 1e-9


@pytest.mark.parametrize("path", recorded("feeder_ntu*.npz"))
def test_ntu_clips(path: Path) -> None:
    z, layout = load(path), load_layout("ntu25")
    parents = torch.tensor(layout.parents)
    recorded_bones = {(int(child) - 1, int(parent) - 1) for child, parent in z["bone_pairs"]}
    assert recorded_bones == set(enumerate(layout.parents))

    def sample(x: Tensor, valid: Tensor, plan: CropPlan, stream: str = "joint") -> Tensor:
        frames = x.permute(1, 3, 2, 0)[: int(valid)]  # [F, M, V, C]
        return sample_clips(frames, torch.tensor([0, int(valid)]), plan, parents, stream=stream)[0]

    def crop(start: int, length: int) -> CropPlan:
        return CropPlan(torch.zeros(1, dtype=torch.int64), torch.tensor([start]), torch.tensor([length]), torch.zeros(1, 3))

    centre = centre_crops(torch.zeros(1, dtype=torch.int64), z["valid"].view(1))
    assert relative_error(sample(z["x"], z["valid"], centre), z["test_center95"]) <= 1e-6
    short = int(z["short_valid"])
    assert relative_error(sample(z["short"], z["short_valid"], crop(0, short)), z["short_train"]) <= 1e-6
    train = crop(*z["train_crop"].tolist())
    assert relative_error(sample(z["x"], z["valid"], train), z["train"]) <= 1e-6
    assert relative_error(sample(z["x"], z["valid"], train, "bone"), z["train_bone"]) <= 1e-6
    assert relative_error(sample(z["x"], z["valid"], train, "motion"), z["train_velocity"]) <= 1e-6
    turned = replace(train, angles=z["rotation_angles"][None])
    assert relative_error(sample(z["x"], z["valid"], turned), z["train_rotated"]) <= 1e-6


@pytest.mark.parametrize("path", recorded("feeder_ucla*.npz"))
def test_ucla_clips(path: Path, nw_ucla_recordings: dict[str, Tensor]) -> None:
    z, layout = load(path), load_layout("ucla20")
    parents = torch.tensor(layout.parents)
    samples = sorted({key.rsplit("/", 1)[0] for key in z})
    assert samples
    for sample in samples:
        split, name, stream = sample.split("/")
        recording = nw_ucla_recordings[name]  # [F, V, 3] float64
        length = torch.tensor([len(recording)])
        clip = torch.zeros(1, dtype=torch.int64)
        theirs = z[f"{sample}/x"]
        if split == "val":
            plan = even_frames(clip, length, num_frames=theirs.shape[1])
        else:
            angles, scale = z[f"{sample}/angles_deg"], z[f"{sample}/scale"]
            plan = FramePlan(clip, z[f"{sample}/frames"][None], angles[None].double(), scale.view(1))
        offsets = torch.tensor([0, len(recording)])
        ours = sample_frames(recording[:, None], offsets, plan, parents, layout.centre, stream=stream)[0]
        assert relative_error(ours, theirs) <= 1e-9, sample


def network_of(path: Path, num_classes: int, dtype: torch.dtype) -> CTRGCN:
    kind = "ntu" if "_ntu" in path.stem else "k400"
    state = load(path.parent / f"ctrgcn_{kind}_state.npz")
    network = CTRGCN(layout_of(path), num_classes)
    network.load_state_dict(state)
    exported = network.state_dict()
    assert set(exported) == set(state)
    assert all(torch.equal(exported[key], state[key]) for key in state)
    return network.to(dtype)


@pytest.fixture(params=["op by op", "fused layers"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """CTR-GCN as it runs on a CPU, and cut at its norms as on a GPU, with the reference's steps."""
    if request.param == "fused layers":
        monkeypatch.setattr(CTRGCN, "steps_on", lambda self, _clips: layer_steps)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("path", [p for p in recorded("ctrgcn_*.npz") if not str(p.id).endswith("_state")])
def test_ctrgcn(path: Path) -> None:
    z = load(path)
    num_classes = z["logits_f64"].shape[1]
    for dtype, key, tolerance in ((torch.float32, "logits_f32", 1e-5), (torch.float64, "logits_f64", 1e-9)):
        network = network_of(path, num_classes, dtype).eval()
        with torch.no_grad():
            features = network.features(z["x"].to(dtype))
            assert relative_error(network.fc(features), z[key]) <= tolerance
        if dtype == torch.float64:
            assert relative_error(features, z["feature_f64"]) <= tolerance
    if "train_loss_f64" not in z:
        return
    network = network_of(path, num_classes, torch.float64).train()
    loss = torch.nn.functional.cross_entropy(network(z["x"].double()), z["label"])
    loss.backward()
    assert relative_error(loss.detach(), z["train_loss_f64"]) <= 1e-9
    assert relative_error(network.data_bn.running_mean, z["running_mean_data_bn"]) <= 1e-9
    norms = {key.removeprefix("gradnorm/"): float(value) for key, value in z.items() if key.startswith("gradnorm/")}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert abs(float(parameter.grad.norm()) - norms.pop(name)) <= 1e-9 * max(float(parameter.grad.norm()), 1e-3), name
    assert not norms


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.skipif(NO_TRITON is not None, reason=f"triton: {NO_TRITON}")
@pytest.mark.parametrize("path", [p for p in recorded("ctrgcn_*.npz") if not str(p.id).endswith("_state")])
def test_ctrgcn_through_triton(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the recorded clips, which are independent in eval mode: a clip takes minutes in the interpreter."""
    monkeypatch.setenv("SHAPMIX_BACKEND", "triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    z = load(path)
    network = network_of(path, z["logits_f32"].shape[1], torch.float32).to(TRITON_DEVICE).eval()
    clip = z["x"][:1].float().to(TRITON_DEVICE)
    with torch.no_grad():
        assert network.steps_on(clip) is not None
        assert relative_error(network(clip).cpu(), z["logits_f32"][:1]) <= 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("path", recorded("train_steps_*.npz"))
def test_train_steps(path: Path) -> None:
    z, layout = load(path), layout_of(path)
    num_classes = len(z["class_count"])
    network = network_of(path, num_classes, torch.float64)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=float(z["lr"]),
        momentum=float(z["momentum"]),
        weight_decay=float(z["weight_decay"]),
        nesterov=True,
    )
    log_prior = log_class_prior(z["class_count"])
    priority = num_classes - torch.arange(num_classes)
    table = z["part_saliency0"].clone()
    combinations = layout.combinations.tolist()
    scaling = joint_counts(layout)
    steps = sorted({key.split("/")[0] for key in z if key.startswith("step")})
    assert len(steps) >= 3
    for step in steps:
        clips, labels = z[f"{step}/x"], z[f"{step}/label"]
        n = len(labels)
        combination, context = bits(z[f"{step}/parts"]), bits(z[f"{step}/context"])
        network.eval()
        with torch.no_grad():
            coalitions = torch.tensor([combination | context, context])
            logits = network(coalition_inputs(clips, z["mean_motion"], coalitions, layout.part_of_joint))
        columns, rows = torch.full((n,), combinations.index(combination)), torch.arange(n)
        marginal = saliency_update(table, logits, labels, columns, rows, n + rows, scaling, float(z["ema"]))
        assert relative_error(marginal * 10 / scaling[columns], z[f"{step}/weight"]) <= 1e-9
        assert relative_error(table, z[f"{step}/part_saliency"]) <= 1e-9

        plan = shapmix_plan(draws_of(path, f"{step}/mix_draws"), labels, priority, layout, clips.shape[2])
        assert torch.equal(plan.partner, z[f"{step}/partner"])
        network.train()
        logits = network(mix_clips(clips, plan, layout.part_of_joint))
        clean, mixed = balanced_mix_loss(logits, labels, plan.partner, plan.label_share, log_prior)
        assert relative_error(plan.label_share.double()[:, None], z[f"{step}/lam"]) <= 1e-9
        assert relative_error(clean.detach(), z[f"{step}/loss_clean"]) <= 1e-9
        assert relative_error(mixed.detach(), z[f"{step}/loss_mixed"]) <= 1e-9
        optimizer.zero_grad()
        (clean + mixed).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        assert relative_error(network(z["probe_x"]), z["probe_logits"]) <= 1e-9
