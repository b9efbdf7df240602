"""Backbones with published weights: recorded logits, any layout and size, training, bfloat16, saliency, and ONNX."""

from __future__ import annotations

import copy
import json
import math
import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shapmix import ShapMix, load_layout, train
from shapmix.data.clips import Splits
from shapmix.data.sampling import ClipSampler
from shapmix.data.synthetic import make_synthetic
from shapmix.networks import multi_scale
from shapmix.networks.backbones import find_backbone
from shapmix.networks.fold import Folded
from shapmix.networks.fused_norm import normalised, normalised_conv
from shapmix.networks.head import head_of
from shapmix.networks.protogcn import ProtoGCN
from shapmix.training.build import make_network
from shapmix.training.config import parse_config
from shapmix.training.export import export
from shapmix.training.options import NetworkConfig, TrainConfig
from shapmix.training.start import load_network
from shapmix.training.step import auxiliary_loss
from shapmix.training.trained import Trained
from shapmix.training.weights import read_weights

NAMES = ["dgstgcn", "protogcn", "stgcnpp"]
RECORDED_NAMES = ["aagcn", *NAMES]
SMALL = {"widths": (16, 24), "halve": (1,)}
RECORDED = Path(__file__).parent / "recorded"
PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


@pytest.fixture(scope="module")
def embedded() -> tuple[Splits, ClipSampler]:
    """Four classes of the embedded data, in clips of 16 frames."""
    splits = make_synthetic(num_classes=4, n_max=40, imbalance=2)
    return splits, ClipSampler(splits.store, "crop", "joint", num_frames=16)


def made(name: str, layout: str = "ntu25", classes: int = 5, people: int = 2, coordinates: int = 3, **size: object) -> nn.Module:
    torch.manual_seed(0)
    make = find_backbone(name).make
    return make(layout=load_layout(layout), num_classes=classes, num_people=people, in_channels=coordinates, **size)


def noise(key: str, shape: tuple[int, ...]) -> Tensor:
    """Values from -1 to 1 that follow from the key: an integer hash, the same on every machine."""
    x = torch.arange(math.prod(shape)) + zlib.crc32(key.encode())
    for factor in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35):
        x = x * factor & 0xFFFFFFFF
        x = x ^ x >> 15
    return (x.double() / 2**31 - 1).view(shape)


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """A weight, or a statistic of a norm, of a size that keeps activations near 1."""
    x = noise(key, shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
        return 1 + 0.5 * x
    return 0.5 * x if len(shape) < 2 else x * (1.5 / math.prod(shape[1:])) ** 0.5


@pytest.mark.parametrize("name", [*RECORDED_NAMES, "blockgcn", "hdgcn", "skateformer"])
def test_a_published_state_gives_the_logits_of_the_published_network(name: str) -> None:
    """`recorded/` has the keys, shapes and logits of the published network with these weights."""
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    state = {key: weight(key, tuple(shape)) for key, shape in recorded["shapes"].items()}
    translate = find_backbone(name).from_published
    expected = torch.tensor(recorded["logits"], dtype=torch.float64)
    network = made(name, classes=expected.shape[1]).double().eval()
    network.load_state_dict(state if translate is None else translate(state))
    with torch.no_grad():
        logits = network(noise("clips", tuple(recorded.get("clips", (2, 3, 12, 25, 2)))))
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-9


def test_the_page_loads_a_published_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of docs/backbones.md, on a checkpoint with the published names."""
    monkeypatch.chdir(tmp_path)
    shapes = json.loads((RECORDED / "stgcnpp.json").read_text())["shapes"]
    heads = {"cls_head.fc_cls.weight": [60, 256], "cls_head.fc_cls.bias": [60]}
    torch.save({"state_dict": {key: weight(key, tuple(shape)).float() for key, shape in (shapes | heads).items()}}, "j.pth")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(block, found)
    key = "backbone.gcn.9.tcn.transform.2.weight"
    torch.testing.assert_close(found["network"].layers[9].tcn.transform[2].weight.detach(), weight(key, (256, 256, 1, 1)).float())


@pytest.mark.parametrize("name", RECORDED_NAMES)
def test_a_run_starts_from_a_published_checkpoint(name: str, tmp_path: Path, embedded: tuple[Splits, ClipSampler]) -> None:
    """Of another number of classes: only the classifier, and the averages of its classes, are new."""
    recorded, store = json.loads((RECORDED / f"{name}.json").read_text()), embedded[0].store
    file = tmp_path / "published.pth"
    torch.save({"state_dict": {key: weight(key, tuple(shape)).float() for key, shape in recorded["shapes"].items()}}, file)
    config = parse_config(["--network.backbone", name, "--network.widths", "None", "--init-from", str(file)])
    network = make_network(config, store)
    loaded = load_network(network, read_weights(file), config, store)
    assert set(loaded.anew) == {key for key in network.state_dict() if key.startswith("fc.")}
    assert set(loaded.anew.values()) == {"7 classes there, 4 here"}
    assert not [key for key in loaded.left if not key.startswith("fc.")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("layout", "people", "coordinates", "frames"),
    [("penn13", 1, 2, 9), ("coco17", 2, 3, 8), ("coco17", 1, 2, 8), ("ucla20", 1, 3, 5), ("ntu25", 2, 3, 12)],
)
def test_any_layout_people_and_coordinates(name: str, layout: str, people: int, coordinates: int, frames: int) -> None:
    network = made(name, layout, people=people, coordinates=coordinates, **SMALL)
    clips = torch.randn(4, coordinates, frames, load_layout(layout).num_joints, people)
    logits = network(clips)
    assert logits.shape == (4, 5)
    loss = logits.square().sum()
    if name == "protogcn":
        loss = loss + network.auxiliary_loss(torch.arange(4), torch.arange(4), torch.zeros(4))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(clips[:1]), network(clips)[:1], rtol=1e-4, atol=1e-5)  # clips are independent
        torch.testing.assert_close(Folded(network).refresh()(clips), network(clips), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    network = made(name, **SMALL).eval()
    clips = torch.randn(3, 3, 8, 25, 2)
    with torch.no_grad():
        plain = network(clips)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(clips)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - plain).norm() / plain.norm()) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_the_embedded_data_and_is_exported(name: str, embedded: tuple[Splits, ClipSampler], tmp_path: Path) -> None:
    """The export itself checks that ONNX gives the same logits."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (`pip install 'shapmix[export]'`)")
    splits, sampler = embedded
    store = splits.store
    clips, labels = sampler.evaluation(splits.train), store.labels[splits.train]
    size = {"widths": (16, 24), "halve": (0, 1)}
    network = made(name, store.layout.name, 4, store.num_people, store.num_coordinates, **size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(40):
        chosen = torch.randint(len(clips), (32,), generator=order)
        loss = cross_entropy(network(clips[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        right = network(sampler.evaluation(splits.test)).argmax(1) == store.labels[splits.test]
    assert float(right.float().mean()) > 0.4  # 0.25 by chance, with a standard error of 0.05
    config = TrainConfig(network=NetworkConfig(backbone=name, **size), num_frames=16)
    trained = Trained(network, config, store.layout, list(store.class_names), clips.mean(0), store.scores)
    assert export(trained, tmp_path / "network.onnx") <= 1e-5
    assert (tmp_path / "network.onnx").exists()


@pytest.mark.parametrize("name", NAMES)
def test_shap_mix_measures_and_mixes_with_it(name: str, embedded: tuple[Splits, ClipSampler]) -> None:
    splits, sampler = embedded
    clips, labels = sampler.evaluation(splits.train[:32]), splits.store.labels[splits.train[:32]]
    network = made(name, splits.store.layout.name, 4, splits.store.num_people, splits.store.num_coordinates, **SMALL)
    before = [buffer.clone() for buffer in network.buffers()]
    mixer = ShapMix(splits.store.layout, splits.class_counts(), clips.mean(0))
    mixer.observe(network, clips, labels, 0)
    assert all(torch.equal(*pair) for pair in zip(before, network.buffers(), strict=True))
    assert network.training
    assert (mixer.saliency.abs().amax(1) > 0).any()
    batch = mixer.mix(clips, labels, 0)
    loss = sum(mixer.loss(network(batch.clips), batch)) + auxiliary_loss(network, batch)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_protogcns_contrastive_loss_is_the_published_one() -> None:
    recorded = json.loads((RECORDED / "protogcn.json").read_text())
    found = find_backbone("protogcn")
    network = made("protogcn", classes=7).double().train()
    network.load_state_dict(found.from_published({key: weight(key, tuple(shape)) for key, shape in recorded["shapes"].items()}))
    network.fc.averages.copy_(noise("classes", (7, 256)))
    network.prototypes.dropout.p = 0.0
    network(noise("clips", (2, 3, 12, 25, 2)))
    labels = torch.tensor(recorded["labels"])
    loss = network.auxiliary_loss(labels, labels, torch.zeros(2))
    assert float(loss.detach()) == pytest.approx(0.2 * recorded["contrastive_loss"], rel=1e-9)
    moved = (network.fc.averages - noise("classes", (7, 256))).abs().amax(1) > 0
    assert moved.tolist() == [False] * 6 + [True]  # of the two clips, one is classified correctly, as class 6


@pytest.mark.parametrize("classes", [256, 400])
def test_protogcns_head_is_its_classifier(classes: int) -> None:
    """Also with as many classes as prototypes, or as the contrastive loss has features."""
    network = made("protogcn", classes=classes, **SMALL)
    assert head_of(network, classes) == "fc"


def test_protogcns_auxiliary_loss_adds_up_over_passes_and_mixes_labels() -> None:
    network = made("protogcn", **SMALL).double()
    network.prototypes.dropout.p = 0.0
    clips, labels, partners = torch.randn(8, 3, 8, 25, 2).double(), torch.arange(4), torch.tensor([1, 2, 3, 0])
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()  # statistics of a batch would differ between passes
    before = network.fc.averages.clone()

    def loss_of(rows: list[int], own: Tensor = labels, other: Tensor = partners) -> float:
        network.fc.averages.copy_(before)
        network(clips[rows])
        return float(network.auxiliary_loss(own, other, share, torch.tensor(rows)).detach())

    mixed = [4, 5, 6, 7]  # they leave the averages of the classes unchanged
    assert loss_of(mixed) == pytest.approx(loss_of([4, 5]) + loss_of([6, 7]))
    separate = [loss_of([4 + row], own=own) for own in (labels, partners) for row in range(4)]
    same = [loss_of([4 + row], own=own, other=own) for own in (labels, partners) for row in range(4)]
    expected = sum((1 - float(share[row])) * same[row] + float(share[row]) * same[4 + row] for row in range(4))
    assert loss_of(mixed) == pytest.approx(expected)
    assert sum(separate[:4]) == pytest.approx(expected)
    assert torch.equal(network.fc.averages, before)


def test_protogcns_auxiliary_loss_belongs_to_a_pass_in_training_mode() -> None:
    network = made("protogcn", **SMALL)
    labels, clips = torch.arange(2), torch.randn(2, 3, 8, 25, 2)
    network.eval()(clips)
    with pytest.raises(RuntimeError, match="call the network first, in training mode"):
        network.auxiliary_loss(labels, labels, torch.zeros(2))
    network.train()(clips)
    copied = copy.deepcopy(network)  # the kept tensors are not copied
    assert network.last_pass is not None
    assert copied.last_pass is None


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(("more", "rows"), [([], 16), (["--accumulate", "2"], 8)])
def test_the_trainer_adds_protogcns_loss(more: list[str], rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    plain = ProtoGCN.auxiliary_loss

    def noted(self: ProtoGCN, *arguments: Tensor) -> Tensor:
        loss = plain(self, *arguments)
        assert loss.requires_grad
        taken.append((len(arguments[0]), len(arguments[3])))
        return loss

    monkeypatch.setattr(ProtoGCN, "auxiliary_loss", noted)
    options = ["--num-frames", "8", "--batch-size", "8", "--epochs", "1", "--threads", "1", "--network.widths", "8", "16"]
    options += ["--network.backbone", "protogcn", "--saliency.warmup-epochs", "0", "--device", "cpu"]
    assert train.main([*options, *more, "--run-dir", f"{tmp_path}/run"]) == 0
    assert set(taken) == {(8, rows)}


@pytest.mark.parametrize("half", [False, True])
def test_fused_norms_compute_what_the_modules_compute(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ST-GCN++ in training. A hook on a norm makes every layer call its modules one by one."""
    fused = made("stgcnpp", **SMALL)
    calls = []
    for function in (normalised, normalised_conv):
        counted = partial(lambda of, *args, **options: calls.append(1) or of(*args, **options), function)
        monkeypatch.setattr(multi_scale, function.__name__, counted)
    for key, parameter in fused.named_parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * noise(key, tuple(parameter.shape)).float()
    plain = copy.deepcopy(fused)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)
    clips = torch.randn(4, 3, 8, 25, 2)
    found = []
    for network in (fused, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(clips)
        assert len(calls) == 7  # of two layers: three norms each, and that of the second's shortcut
        logits.float().square().sum().backward()
        found.append((logits.float(), dict(network.named_parameters()), dict(network.named_buffers())))
    (ours, weights, buffers), (theirs, others, statistics) = found
    tolerance = 0.1 if half else 1e-4

    def off(a: Tensor, b: Tensor) -> float:
        return float((a - b).detach().norm() / b.detach().norm().clamp(min=1e-3))

    assert off(ours, theirs) <= tolerance
    assert all(off(buffers[key].float(), statistics[key].float()) <= tolerance for key in statistics)
    if not half:
        gradients = {key: (weights[key].grad, others[key].grad) for key in weights if others[key].grad is not None}
        assert len(gradients) > 50
        assert max(off(*pair) for pair in gradients.values()) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_torch_compile_takes_it_as_one_graph(name: str, training: bool) -> None:
    network = made(name, "coco17", people=1, coordinates=2, **SMALL).train(training)
    if name == "protogcn":
        network.prototypes.dropout.p = 0.0
    clips = torch.randn(3, 2, 8, 17, 1)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips), network(clips))
