"""Argument errors of the plug-in name the argument in one sentence, and are raised before any state changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shapmix.data.sampling import ClipSampler
from shapmix.data.synthetic import make_synthetic
from shapmix.mixing.estimators import ESTIMATORS
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MIXERS
from shapmix.mixing.saliency import ClassSaliency
from shapmix.shapley.game import PartGame
from shapmix.shapley.values import interaction_matrix
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")
COUNTS = torch.tensor([90, 30, 9, 3])
SIZE = (3, 16, 25, 2)


def mean_motion() -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(9)) * 0.1


def mixer_of(**options: Any) -> ShapMix:
    return ShapMix(**{"layout": NTU, "class_counts": COUNTS, "mean_motion": mean_motion()} | options)


def batch(n: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *SIZE, generator=generator), torch.randint(4, (n,), generator=generator)


class Net(nn.Module):
    """Logits of whole clips, modified by a function."""

    def __init__(self, of: Callable[[Tensor], Any] = lambda logits: logits, classes: int = 4) -> None:
        super().__init__()
        self.linear, self.of = nn.Linear(3 * 16 * 25 * 2, classes), of

    def forward(self, clips: Tensor) -> Any:
        """[N, C, T, V, M] -> what `of` makes of the logits [N, K]."""
        return self.of(self.linear(clips.flatten(1).to(self.linear.weight.dtype)))


CHOICES = [
    (lambda: mixer_of(mix="shap-mix"), "mix is 'shap-mix'; did you mean 'shapmix'? Give one of none, two_views, mixup, stmix, "),
    (lambda: mixer_of(loss="Balanced"), "loss is 'Balanced'; did you mean 'balanced'? Give one of ce, balanced, "),
    (lambda: mixer_of(compat="offical"), "compat is 'offical'; did you mean 'official'? Give one of default, official"),
    (lambda: mixer_of(compat=None), "compat is None; give one of default, official"),
    (lambda: mixer_of(estimator="exact-subset"), "estimator is 'exact-subset'; did you mean 'exact_subset'?"),
    (lambda: mixer_of(backend="trition"), "backend is 'trition'; did you mean 'triton'?"),
    (lambda: ESTIMATORS.find("exacts"), "estimator is 'exacts'; did you mean 'exact'?"),
    (lambda: ClassSaliency(4, NTU, NTU.joints_in(NTU.combinations), "chains", 0.9), "estimator is 'chains'; did you mean 'chain'?"),
    (lambda: PartGame(Net(), NTU, mean_motion(), "logits"), "output is 'logits'; did you mean 'logit'?"),
    (lambda: interaction_matrix(5, "k-sii", 2), "index is 'k-sii'; did you mean 'k_sii'?"),
    (lambda: sampler_of("Crop", "joint"), "pipeline is 'Crop'; did you mean 'crop'? Give one of crop, frames, segments"),
    (lambda: sampler_of("crop", "bones"), "stream is 'bones'; did you mean 'bone'?"),
]


def sampler_of(pipeline: Any, stream: Any) -> ClipSampler:
    splits = make_synthetic(num_classes=4, n_max=6, imbalance=2, val_per_class=1, test_per_class=1)
    return ClipSampler(splits.store, pipeline, stream, 16)


@pytest.mark.parametrize(("call", "message"), CHOICES, ids=[message.partition(";")[0] for _, message in CHOICES])
def test_a_choice_that_is_unknown_names_the_nearest(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared below)
        call()
    assert message in str(error.value)


CONSTRUCTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layout": "ntu25"}, TypeError, "layout is a str; give a Layout: load_layout('ntu25')"),
    ({"class_counts": COUNTS[None]}, ValueError, "class_counts has shape [1, 4]; give [K], the training clips of each class"),
    ({"class_counts": []}, ValueError, "class_counts has shape [0]; give [K], the training clips of each class"),
    ({"class_counts": COUNTS.double()}, TypeError, "class_counts is torch.float64; give whole numbers, as torch.int64"),
    ({"class_counts": [90.0, 3]}, TypeError, "class_counts is torch.float32; give whole numbers, as torch.int64"),
    ({"class_counts": COUNTS > 5}, TypeError, "class_counts is torch.bool; give whole numbers, as torch.int64"),
    ({"class_counts": {0: 90}}, TypeError, "class_counts is a dict; give a tensor or list [K]"),
    ({"class_counts": [5, 0, 3]}, ValueError, "class_counts: class 1 has no training clip"),
    ({"class_counts": [5]}, ValueError, "class_counts: one class; a classifier needs at least two"),
    ({"class_counts": [5, -2, 3]}, ValueError, "class_counts: class 1 has no training clip"),
    ({"mean_motion": np.zeros(SIZE)}, TypeError, "mean_motion is a ndarray; give a tensor [C, T, V, M]"),
    ({"mean_motion": torch.zeros(1, *SIZE)}, ValueError, "mean_motion has shape [1, 3, 16, 25, 2]; give [C, T, V, M]"),
    ({"mean_motion": torch.zeros(SIZE).long()}, TypeError, "mean_motion is torch.int64; give float32"),
    (
        {"mean_motion": torch.zeros(3, 16, 20, 2)},
        ValueError,
        "mean_motion has 20 joints (shape [3, 16, 20, 2], [C, T, V, M]); layout 'ntu25' has 25",
    ),
    (
        {"mean_motion": torch.zeros(SIZE).index_fill_(2, torch.tensor(4), torch.nan)},
        ValueError,
        "mean_motion[0, 0, 4, 0] is nan; average clips with finite coordinates",
    ),
    ({"temperature": 0.0}, ValueError, "temperature is 0.0; give a number above 0"),
    ({"temperature": float("nan")}, ValueError, "temperature is nan; give a number above 0"),
    ({"decay": 1.1}, ValueError, "decay is 1.1; give a number in 0..1"),
    ({"decay": -0.1}, ValueError, "decay is -0.1; give a number in 0..1"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps is -1; give 0 or more"),
    ({"replace_steps": -2}, ValueError, "replace_steps is -2; give 0 or more"),
    ({"deferred_steps": -3}, ValueError, "deferred_steps is -3; give 0 or more"),
]


@pytest.mark.parametrize(("options", "error", "message"), CONSTRUCTION, ids=[message[:40] for *_, message in CONSTRUCTION])
def test_what_a_mixer_cannot_be_made_of(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        mixer_of(**options)
    assert message in str(raised.value)


@pytest.mark.parametrize("counts", [[90, 30, 9, 3], (90, 30, 9, 3), np.array([90, 30, 9, 3]), COUNTS.int()])
def test_class_counts_are_taken_as_any_whole_numbers(counts: Any) -> None:
    mixer = mixer_of(class_counts=counts)
    assert torch.equal(mixer.class_counts, COUNTS)
    assert torch.equal(mixer.priority, COUNTS)


CLIPS: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (
        lambda x: x.permute(0, 4, 2, 3, 1),
        ValueError,
        "clips has shape [8, 2, 16, 25, 3], the axes of mean_motion in a different order",
    ),
    (lambda x: x[:, :, :, :20], ValueError, "clips has shape [8, 3, 16, 20, 2]; give [N, 3, 16, 25, 2], as mean_motion"),
    (lambda x: x[:, :, :12], ValueError, "clips has shape [8, 3, 12, 25, 2]; give [N, 3, 16, 25, 2], as mean_motion"),
    (lambda x: x[..., :1], ValueError, "clips has shape [8, 3, 16, 25, 1]; give [N, 3, 16, 25, 2], as mean_motion"),
    (lambda x: x[:, :2], ValueError, "clips has shape [8, 2, 16, 25, 2]; give [N, 3, 16, 25, 2], as mean_motion"),
    (lambda x: x[0], ValueError, "clips has shape [3, 16, 25, 2]; give [N, 3, 16, 25, 2], as mean_motion"),
    (lambda x: x[:0], ValueError, "clips has shape [0, 3, 16, 25, 2]; give [N, 3, 16, 25, 2], as mean_motion"),
    (lambda x: x.long(), TypeError, "clips is torch.int64; give float32"),
    (lambda x: x.numpy(), TypeError, "clips is a ndarray; give a tensor [N, C, T, V, M]"),
    (lambda x: x.to("meta"), ValueError, "clips is on meta, mean_motion on cpu; move one of them"),
]
LABELS: list[tuple[Callable[[Tensor], Any], type[Exception], str]] = [
    (lambda y: nn.functional.one_hot(y, 4), ValueError, "labels has shape [8, 4]; give [8], a class index a clip"),
    (lambda y: y[:7], ValueError, "labels has shape [7]; give [8], a class index a clip"),
    (lambda y: y + 1, ValueError, "is 4; classes are 0..3"),
    (lambda y: y - 1, ValueError, "is -1; classes are 0..3"),
    (lambda y: y.float(), TypeError, "labels is torch.float32; give torch.int64"),
    (lambda y: y.int(), TypeError, "labels is torch.int32; give torch.int64"),
    (lambda y: y.tolist(), TypeError, "labels is a list; give a tensor [N]"),
    (lambda y: y.to("meta"), ValueError, "labels is on meta, clips on cpu"),
]
MODES = [name for name, mixer in MIXERS.items() if mixer.views == 1]


@pytest.mark.parametrize(("change", "error", "message"), CLIPS, ids=[message[:50] for *_, message in CLIPS])
def test_clips_that_do_not_fit(change: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    clips, labels = batch()
    mixer, network = mixer_of(), Net()
    with pytest.raises(error) as raised:
        mixer.observe(network, change(clips), labels[: len(change(clips))], 0)
    assert message in str(raised.value)
    with pytest.raises(error) as raised:
        mixer.mix(change(clips), labels[: len(change(clips))], 0)
    assert message in str(raised.value)
    with pytest.raises(error) as raised:
        PartGame(network, NTU, mean_motion()).table(change(clips))
    assert message in str(raised.value)


@pytest.mark.parametrize(("change", "error", "message"), LABELS, ids=[message[:50] for *_, message in LABELS])
def test_labels_that_do_not_fit(change: Callable[[Tensor], Any], error: type[Exception], message: str) -> None:
    clips, labels = batch()
    labels[2], labels[5] = 3, 0
    mixer, network = mixer_of(), Net()
    before = {key: value.clone() for key, value in mixer.state_dict().items()}
    with pytest.raises(error) as raised:
        mixer.observe(network, clips, change(labels), 0)
    assert message in str(raised.value)
    with pytest.raises(error) as raised:
        mixer.mix(clips, change(labels), 0)
    assert message in str(raised.value)
    assert all(torch.equal(value, before[key]) for key, value in mixer.state_dict().items())
    with pytest.raises(error) as raised:
        PartGame(network, NTU, mean_motion()).table(clips, change(labels))
    assert message in str(raised.value)


RESULTS: list[tuple[nn.Module, type[Exception], str]] = [
    (Net(lambda y: (y, y)), TypeError, "is a tuple; give logits [{}, 4] alone"),
    (Net(lambda y: {"logits": y}), TypeError, "is a dict; give logits [{}, 4] alone"),
    (Net(classes=10), ValueError, "has shape [{}, 10]; give [{}, 4], a row a clip and a column a class of class_counts"),
    (Net(lambda y: y[:3]), ValueError, "has shape [3, 4]; give [{}, 4], a row a clip"),
    (Net(lambda y: y[:, :, None]), ValueError, "has shape [{}, 4, 1]; give [{}, 4]"),
    (Net(lambda y: y.argmax(1)), ValueError, "has shape [{}]; give [{}, 4]"),
    (Net(lambda y: y.long()), TypeError, "is torch.int64; give float32"),
]


@pytest.mark.parametrize("loss", ["balanced", "ce", "focal"])
@pytest.mark.parametrize(("network", "error", "message"), RESULTS, ids=[message[:40] for *_, message in RESULTS])
def test_what_is_no_logits(network: nn.Module, error: type[Exception], message: str, loss: str) -> None:
    clips, labels = batch()
    mixer = mixer_of(loss=loss, estimator="exact")
    with pytest.raises(error) as raised:
        mixer.observe(network, clips, labels, 0)
    assert f"the network's result {message}".replace("{}", str(1 + 8 * 31)) in str(raised.value)
    mixed = mixer.mix(clips, labels, 0)
    with pytest.raises(error) as raised:
        mixer.loss(network(mixed.clips), mixed)
    assert f"logits {message}".replace("{}", "16") in str(raised.value)
    if "10]" not in message:  # a game has no class counts to check against
        with pytest.raises(error, match=r"the network's result (is|has shape)"):
            PartGame(network, NTU, mean_motion()).table(clips)


def test_a_function_is_no_network() -> None:
    with pytest.raises(TypeError, match="network is a function; give a torch"):
        mixer_of().observe(lambda clips: clips, *batch(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["balanced", "ce", "class_balanced", "focal", "ldam"])
@pytest.mark.parametrize("mode", MODES)
def test_float64_clips_are_taken(mode: str, loss: str) -> None:
    """With the mean motion in float32, and in float64: the same numbers."""
    clips, labels = batch()
    clips = clips.double()
    network, found = Net().double(), []
    for motion in (mean_motion(), mean_motion().double()):
        mixer = mixer_of(mix=mode, loss=loss, mean_motion=motion)
        mixer.observe(network, clips, labels, 0)
        mixed = mixer.mix(clips, labels, 0)
        assert mixed.clips.dtype == torch.float64
        clean, other = mixer.loss(network(mixed.clips), mixed)
        assert clean.dtype == other.dtype == torch.float64
        found.append(torch.stack([clean, other]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)
