"""BlockGCN, HD-GCN and SkateFormer: any layout, any coordinates, bfloat16, folding, coalitions, export, and learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shapmix import load_layout, train
from shapmix.data.sampling import ClipSampler
from shapmix.data.synthetic import make_synthetic
from shapmix.networks.backbones import BACKBONES
from shapmix.networks.fold import Folded
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import Layout
from shapmix.training.config import parse_config
from shapmix.training.export import export
from shapmix.training.trained import Trained, open_run

SMALL: dict[str, dict[str, Any]] = {
    "blockgcn": {"widths": (16, 32)},
    "hdgcn": {"widths": (16, 32), "graph_gain": 1.0},
    "skateformer": {"widths": (32, 32), "attention_dropout": 0.0, "drop_path": 0.0},
}
SKELETONS = [("penn13", 2, 1), ("coco17", 3, 2), ("ucla20", 3, 1), ("ntu25", 3, 2)]
RATES = {"blockgcn": 1e-2, "hdgcn": 1e-2, "skateformer": 1e-2}
FRAMES, STEPS = 8, 40


def small(name: str, layout: Layout, classes: int = 4, *, people: int = 2, coordinates: int = 3) -> nn.Module:
    """The backbone at reduced width, from fixed weights."""
    torch.manual_seed(0)
    return BACKBONES[name].make(layout, classes, num_people=people, in_channels=coordinates, **SMALL[name])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("layout", "coordinates", "people"), SKELETONS)
def test_any_skeleton_is_mapped_to_logits(name: str, layout: str, coordinates: int, people: int) -> None:
    skeleton = load_layout(layout)
    network = small(name, skeleton, 7, people=people, coordinates=coordinates)
    clips = torch.randn(3, coordinates, FRAMES, skeleton.num_joints, people, requires_grad=True)
    network(clips).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    network.eval()
    logits = network(clips)
    assert logits.shape == (3, 7)
    clips.grad = None
    logits[1].square().sum().backward()
    assert clips.grad is not None
    assert not clips.grad[[0, 2]].any()  # clips are independent
    assert (clips.grad[1].abs().sum((0, 2, 3)) > 0).all()  # every frame matters
    unused = [] if name != "skateformer" or layout != "ntu25" else ["spine_shoulder"]  # as published
    for joint, moved in zip(skeleton.joints, clips.grad[1].abs().sum((0, 1, 3)), strict=True):
        assert (moved > 0) == (joint not in unused), joint


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_gives_nearly_the_same(name: str) -> None:
    skeleton = load_layout("ntu25")
    network = small(name, skeleton).eval()
    clips = torch.randn(4, 3, FRAMES, 25, 2)
    with torch.no_grad():
        exact = network(clips)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(clips)
    # on average: rounded features can change which joints are the nearest
    assert (rounded.float() - exact).abs().mean() < 0.02 * exact.abs().max()
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        network(clips).float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_folding_is_exact(name: str) -> None:
    network = small(name, load_layout("ntu25"))
    clips = torch.randn(2, 3, FRAMES, 25, 2)
    network(clips)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(Folded(network).refresh()(clips), network(clips), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_coalitions_of_parts_have_values(name: str) -> None:
    """The full coalition is the clip itself, the empty one the mean motion."""
    skeleton = load_layout("ntu25")
    network = small(name, skeleton).eval()
    clips, mean = torch.randn(2, 3, FRAMES, 25, 2), torch.randn(3, FRAMES, 25, 2)
    table = PartGame(network, skeleton, mean).table(clips, torch.tensor([0, 3]))
    with torch.no_grad():
        whole, nothing = network(clips).softmax(1), network(mean[None]).softmax(1)
    torch.testing.assert_close(table[:, -1], whole[torch.arange(2), torch.tensor([0, 3])], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table[:, 0], nothing[0, [0, 3]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_export_to_onnx(name: str, tmp_path: Path) -> None:
    """The exporter itself compares the logits of the file with those of the network."""
    skeleton = load_layout("penn13")
    network = small(name, skeleton, people=1)
    network(torch.randn(4, 3, FRAMES, 13, 1))
    trained = Trained(network.eval(), parse_config([]), skeleton, list("abcd"), torch.randn(3, FRAMES, 13, 1), False)
    assert export(trained, tmp_path / "network.onnx") <= 1e-5
    assert (tmp_path / "network.onnx").stat().st_size > 10_000


@pytest.fixture(scope="module")
def clips_of_three_classes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips and labels for training and for testing. The classes share no defining part, so that few steps tell them apart."""
    splits = make_synthetic(num_classes=12, n_max=40, imbalance=1, val_per_class=1, test_per_class=12)
    sampler = ClipSampler(splits.store, "crop", "joint", FRAMES)
    found = []
    for clips in (splits.train, splits.test):
        chosen = clips[splits.store.labels[clips] % 4 == 0]
        found += [sampler.evaluation(chosen), splits.store.labels[chosen] // 4]
    return found[0], found[1], found[2], found[3]


@pytest.mark.parametrize("name", SMALL)
def test_learns_the_embedded_data(name: str, clips_of_three_classes: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Far above the 33% of guessing, on clips of other subjects than those of training."""
    clips, labels, held_out, truth = clips_of_three_classes
    network = small(name, load_layout("ntu25"), 3, people=clips.shape[4])
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[name], total_steps=STEPS)
    batches = [torch.randperm(len(clips), generator=torch.Generator().manual_seed(step))[:24] for step in range(STEPS)]
    for chosen in batches:
        optimizer.zero_grad()
        cross_entropy(network(clips[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for chosen in batches[:20]:  # statistics of the norms for the last weights; a short run has none of them
            network(clips[chosen])
        predicted = network.eval()(held_out).argmax(1)
    accuracy = float((predicted == truth).double().mean())
    print(f"{name}: {accuracy:.2f}")
    assert accuracy >= 0.55


@pytest.mark.parametrize(("name", "width", "multiple"), [("blockgcn", 12, 8), ("hdgcn", 10, 4), ("skateformer", 48, 32)])
def test_a_width_that_does_not_divide_is_named(name: str, width: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"width {width} is not a multiple of {multiple}"):
        BACKBONES[name].make(load_layout("ucla20"), 3, num_people=1, widths=(32, width))


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(("name", "widths"), [("blockgcn", ("16", "32")), ("hdgcn", ("16", "32")), ("skateformer", ("32",))])
def test_the_trainer_takes_them(name: str, widths: tuple[str, ...], tmp_path: Path) -> None:
    """With Shap-Mix: the saliency comes from coalitions of parts through the network."""
    options = ["--network.backbone", name, "--network.widths", *widths, "--num-frames", "8", "--batch-size", "8", "--epochs", "2"]
    options += ["--saliency.warmup-epochs", "1", "--threads", "1", "--run-dir", str(tmp_path / "run")]
    assert train.main(options) == 0
    trained = open_run(tmp_path / "run")
    with torch.no_grad():
        assert trained.network(trained.mean_motion[None]).isfinite().all()
