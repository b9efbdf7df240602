"""What is registered from outside can be chosen at once: one function in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shapmix import Layout, MixedBatch, ShapMix, load_layout, train
from shapmix.data.order import SAMPLERS, epoch_order, sampler
from shapmix.mixing.estimators import ESTIMATORS, Measurement, estimator, exact
from shapmix.mixing.losses import LOSSES, loss
from shapmix.mixing.marginals import Request
from shapmix.mixing.mixers import MIXERS, Batch, mixer
from shapmix.networks.backbones import BACKBONES, backbone
from shapmix.process.choices import Registry

TINY = ["--epochs", "2", "--saliency.warmup-epochs", "1", "--n-max", "20", "--baselines", "--threads", "1", "--device", "cpu"]
REGISTRIES: list[Registry] = [MIXERS, LOSSES, ESTIMATORS, SAMPLERS, BACKBONES]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """One of each kind, each of which notes that it was called."""
    called: list[str] = []
    before = [dict(registry) for registry in REGISTRIES]

    @mixer("half", guided=True)
    def half(batch: Batch) -> MixedBatch:
        called.append("mixer")
        partner = batch.draws().other()
        return batch.mixed((batch.clips + batch.clips[partner]) / 2, partner, torch.full(partner.shape, 0.5))

    @loss("twice")
    def twice(logits: Tensor, labels: Tensor, counts: Tensor, deferred: bool) -> Tensor:
        called.append("loss")
        return 2 * cross_entropy(logits, labels, reduction="none")

    @estimator("first_half")
    def first_half(request: Request) -> Measurement:
        called.append("estimator")
        return exact(request._replace(times_measured=request.times_measured[: len(request.times_measured) // 2]))

    @sampler("backwards", by_class=False)
    def backwards(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
        called.append("sampler")
        return np.arange(len(labels))[::-1].copy()

    @backbone("straight", options=("graph_gain",))
    def straight(layout: Layout, num_classes: int, *, num_people: int, in_channels: int, graph_gain: float) -> nn.Module:
        called.append(f"backbone {graph_gain:g}")
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 32 * layout.num_joints * num_people, num_classes))

    yield called
    for registry, known in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - set(known):
            del registry[name]


def test_one_of_each_kind_trains_a_run(own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--mix", "half", "--loss", "twice", "--saliency.estimator", "first_half", "--sampler", "backwards"]
    options += ["--network.backbone", "straight", "--network.graph-gain", "3"]
    assert train.main([*TINY, *options, "--run-dir", "run"]) == 0
    assert {"mixer", "loss", "estimator", "sampler", "backbone 3"} == set(own)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["loss_clean"] > 0 and row["loss_mixed"] > 0 for row in rows)


def test_help_and_errors_list_what_is_registered(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = "".join(capsys.readouterr().out.split())
    for registry in REGISTRIES:
        assert ",".join(registry) in shown.replace("│", ""), registry.option
    with pytest.raises(SystemExit):
        train.main(["--mix", "hafl"])
    assert "mix is 'hafl'; did you mean 'half'?" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    layout = load_layout("ntu25")
    with pytest.raises(ValueError, match=r"loss is 'twise'; did you mean 'twice'\? Give one of ce, balanced, .*, twice"):
        ShapMix(layout, [3, 4], torch.zeros(3, 8, 25, 1), loss="twise")
    with pytest.raises(ValueError, match=r"sampler is 'backward'; did you mean 'backwards'\?"):
        epoch_order(torch.arange(3), 0, 0, sampler="backward")


def test_a_sampler_by_class_asks_for_the_classes() -> None:
    with pytest.raises(ValueError, match="sampler 'tail_repeat' needs the classes of the clips; give labels"):
        epoch_order(torch.arange(3), 0, 0, sampler="tail_repeat")


@pytest.mark.parametrize(
    ("name", "message"),
    [("cutmix", "mix 'cutmix' is already registered; choose another name"), ("a b", "mix 'a b' cannot be registered: use letters")],
)
def test_a_name_is_registered_once(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixer(name)(MIXERS["none"].mix)
