"""Shap-Mix as a plug-in: state, modes, and what it does to a network that it looks at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from shapmix.data.sampling import ClipSampler, Pipeline, mean_motion
from shapmix.data.synthetic import make_synthetic
from shapmix.kernels import coalition as kernels_coalition
from shapmix.mixing import official
from shapmix.mixing.estimators import ESTIMATORS
from shapmix.mixing.marginals import Request, draw_marginals
from shapmix.mixing.mixer import Compat, ShapMix
from shapmix.mixing.saliency import SALIENCY_START
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.process.errors import DataError
from shapmix.process.parallel import SharedForward
from shapmix.reference import coalition_inputs, expected_marginals, label_probability
from shapmix.reference import layer as steps
from shapmix.shapley.game import PartGame
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")
COUNTS = torch.tensor([90, 30, 9, 3])


class Probe(nn.Module):
    """A network in the user's own words: linear on the clip, with modules whose mode matters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * 16 * 25 * 2)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(3 * 16 * 25 * 2, 4)
        self.rows = 0

    def forward(self, clips: Tensor) -> Tensor:
        self.rows += len(clips)
        return self.linear(self.drop(self.norm(clips.flatten(1))))


def batch(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 16, 25, 2, generator=generator), torch.randint(4, (n,), generator=generator)


def mixer_of(**options: Any) -> ShapMix:
    mean = torch.randn(3, 16, 25, 2, generator=torch.Generator().manual_seed(9)) * 0.1
    return ShapMix(NTU, COUNTS, mean, **options)


def test_observing_leaves_the_network_and_the_random_state_alone() -> None:
    network, (clips, labels) = Probe().train(), batch()
    network.drop.eval()  # a user's frozen module keeps its own mode
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    mixer_of().observe(network, clips, labels, step=0)
    assert network.training
    assert not network.drop.training
    assert torch.equal(torch.get_rng_state(), random_state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("look", ["observe", "table"])
def test_what_looks_at_a_network_leaves_no_rounded_weights_behind(look: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one autocast region with the training forward: weights rounded without gradient would take its gradients."""
    network, (clips, labels) = Probe().train(), batch()
    mixer, cleared = mixer_of(), []
    clear = torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: cleared.append(torch.is_autocast_enabled("cpu")) or clear())
    with torch.autocast("cpu", torch.bfloat16):
        if look == "observe":
            mixer.observe(network, clips, labels, 0)
        else:
            PartGame(network, NTU, mixer.mean_motion).table(clips)
        assert cleared
        assert cleared[-1]  # still inside: leaving it clears too
        logits = network(clips)
    logits.float().square().mean().backward()
    assert network.linear.weight.grad.abs().sum() > 0


def test_modes_come_back_after_an_exception() -> None:
    network = Probe().train()
    network.linear = None  # the forward fails
    with pytest.raises(TypeError):
        mixer_of().observe(network, *batch(), step=0)
    assert network.norm.training


@pytest.mark.parametrize("compat", ["default", "official"])
@pytest.mark.parametrize("step", [0, 5])
def test_observed_table_is_the_formula(compat: Compat, step: int) -> None:
    network, (clips, labels) = Probe().eval(), batch()
    mixer = mixer_of(compat=compat, estimator="official", warmup_steps=3, seed=2)
    columns, contexts = draw_marginals(Request(torch.zeros(12), NTU, 2, step, compat == "official", step < 3))
    expected = torch.full((4, 20), SALIENCY_START)
    for n in range(12):
        combination = int(NTU.combinations[columns[n]])
        coalitions = torch.tensor([combination | int(contexts[n]), int(contexts[n])])
        with torch.no_grad():
            rows = coalition_inputs(clips[n : n + 1], mixer.mean_motion, coalitions, NTU.part_of_joint)
            value = label_probability(network(rows), labels[n].repeat(2))
        weight = (value[0] - value[1]).relu() * 10 / NTU.joints_in(torch.tensor(combination))
        decay = 0.0 if step < 3 else 0.9
        cell = (int(labels[n]), int(columns[n]))
        expected[cell] = decay * expected[cell] + (1 - decay) * weight
    network.rows = 0
    mixer.observe(network, clips, labels, step)
    torch.testing.assert_close(mixer.saliency, expected, rtol=1e-5, atol=1e-7)
    assert network.rows == 1 + 12 + int((contexts != 0).sum())


def test_exact_saliency_measures_every_coalition_of_the_least_measured_classes() -> None:
    network, (clips, labels) = Probe().eval(), batch(40)
    mixer = mixer_of(estimator="exact_subset", warmup_steps=1)
    mixer.class_saliency.measured[:] = torch.tensor([5, 0, 2, 9])
    first = int((labels == 1).nonzero()[0]), int((labels == 1).nonzero()[1])  # 2 x 40 // 31 samples
    expected = torch.full((4, 20), SALIENCY_START)
    for n, decay in zip(first, (0.0, 0.0), strict=True):
        with torch.no_grad():
            rows = coalition_inputs(clips[n : n + 1], mixer.mean_motion, torch.arange(32), NTU.part_of_joint)
            values = label_probability(network(rows), labels[n].repeat(32))[None]
        weight = expected_marginals(values, NTU.combinations, 5)[0] * 10 / NTU.joints_in(NTU.combinations)
        expected[1] = decay * expected[1] + (1 - decay) * weight
    network.rows = 0
    mixer.observe(network, clips, labels, step=0)
    assert network.rows == 31 * 2 + 1
    assert mixer.class_saliency.measured.tolist() == [5, 2, 2, 9]
    torch.testing.assert_close(mixer.saliency, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_clip_that_is_not_finite_leaves_no_trace(estimator: str, bad: float, counted: bool) -> None:
    """Whole or in one joint: tables stay finite, its class alone misses a measurement, the others' rows keep every bit."""
    if counted and not ESTIMATORS[estimator].on_device:
        pytest.skip("drawn on the host")
    network, (clips, labels) = Probe().eval(), batch()
    others = torch.arange(4) != labels[0]
    for joints in (slice(None), slice(7, 8)):
        broken = clips.clone()
        broken[0, :, :, joints] = bad
        states = []
        for x in (clips, broken):
            mixer = mixer_of(estimator=estimator, warmup_steps=1, seed=3)
            mixer.class_saliency.measured[others] = 1000  # estimators that choose their samples choose the broken one first
            for step in range(4):
                mixer.observe(network, x, labels, step, counter=torch.tensor(step) if counted else None)
            states.append(mixer.class_saliency)
        expected, found = states
        for name, value in found.named_buffers():
            assert value.isfinite().all(), name
            if len(value) == 4:
                assert torch.equal(value[others], getattr(expected, name)[others]), name
        if joints == slice(None):
            assert int((expected.measured - found.measured).sum()) == 4


@pytest.mark.parametrize("mode", ["none", "mixup", "stmix", "shapmix"])
def test_modes(mode: str) -> None:
    network, (clips, labels) = Probe(), batch()
    mixer = mixer_of(mix=mode, warmup_steps=2)
    for step in range(4):
        mixer.observe(network, clips, labels, step)
        mixed = mixer.mix(clips, labels, step)
        assert torch.equal(mixed.clips[:12], clips)
        assert len(mixed.clips) == (12 if mode == "none" else 24)
        assert ((mixed.share >= 0) & (mixed.share < 1)).all()
        clean_loss, mixed_loss = mixer.loss(network(mixed.clips), mixed)
        assert clean_loss > 0
        assert (mixed_loss > 0) == (mode != "none")
        again = mixer.mix(clips, labels, step)
        assert torch.equal(again.clips, mixed.clips)
    assert (mixer.saliency != SALIENCY_START).any() == (mode == "shapmix")


def test_saliency_travels_in_the_state_dict() -> None:
    network, (clips, labels) = Probe(), batch()
    mixer = mixer_of()
    mixer.observe(network, clips, labels, step=0)
    other = mixer_of()
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other.saliency, mixer.saliency)
    assert torch.equal(other.mix(clips, labels, 1).clips, mixer.mix(clips, labels, 1).clips)


def test_classes_by_size_not_by_id() -> None:
    principled, published = mixer_of(), mixer_of(compat="official")
    assert torch.equal(principled.priority, COUNTS)
    assert published.priority.tolist() == [4, 3, 2, 1]


def test_published_kinetics_habits() -> None:
    coco = load_layout("coco17")
    assert official.joint_counts(coco)[0] == 11  # trunk and left arm of NTU; its own are 8
    assert official.restored_frames(coco) == 64
    assert official.restored_frames(NTU) is None
    mean = torch.zeros(3, 100, 17, 2)
    assert ShapMix(coco, COUNTS, mean).class_saliency.joint_counts[0] == 8
    assert ShapMix(coco, COUNTS, mean, compat="official").class_saliency.joint_counts[0] == 11


def test_a_small_batch_is_refused() -> None:
    clips, labels = batch(2)
    with pytest.raises(ValueError, match="at least 3 clips, not 2"):
        mixer_of().mix(clips, labels, 0)


def test_how_often_clips_are_blended_is_the_users_choice() -> None:
    clips, labels = batch(8)
    mixers = {share: mixer_of(blend_probability=share) for share in (0.0, 0.25, 0.75, 1.0)}
    blended = dict.fromkeys(mixers, 0)
    for step in range(200):
        for share, mixer in mixers.items():
            new = mixer.mix(clips, labels, step).clips[len(labels) :]
            pasted = (new == clips).flatten(1).any(1).all()  # what is pasted leaves the rest as it was
            blended[share] += int(not pasted)
    assert (blended[0.0], blended[1.0]) == (0, 200)
    for share in (0.25, 0.75):
        assert abs(blended[share] - 200 * share) < 4 * (200 * share * (1 - share)) ** 0.5
    with pytest.raises(ValueError, match=r"blend_probability is between 0 and 1, not 1\.5"):
        mixer_of(blend_probability=1.5)


def test_mean_motion_is_in_the_streams_space() -> None:
    splits = make_synthetic(num_classes=4, n_max=6, imbalance=2, val_per_class=1, test_per_class=1)
    sampler = ClipSampler(splits.store, "crop", "joint", 16)
    joint = mean_motion(sampler, splits.train, batch=5)
    torch.testing.assert_close(joint, mean_motion(sampler, splits.train, batch=5), rtol=0, atol=0)
    views = torch.cat([sampler.training(part, step) for step, part in enumerate(splits.train.split(5))])
    torch.testing.assert_close(joint, views.mean(0))
    motion = mean_motion(replace(sampler, stream="motion"), splits.train, batch=5)
    torch.testing.assert_close(motion[:, :-1], joint[:, 1:] - joint[:, :-1], rtol=1e-4, atol=1e-6)
    # the published code: first frames as recorded, padded with zeros
    published = official.mean_motion(replace(sampler, num_frames=64), splits.train)
    assert published.shape == (3, 64, 25, 2)
    first = torch.stack([splits.store.clip(clip)[0] for clip in splits.train.tolist()]).mean(0)
    torch.testing.assert_close(published[:, 0], first.permute(2, 1, 0))


@pytest.mark.parametrize("pipeline", get_args(Pipeline))
def test_the_official_rest_pose_lies_inside_the_clips_range(pipeline: Pipeline) -> None:
    splits = make_synthetic(num_classes=4, n_max=12, imbalance=2, val_per_class=1, test_per_class=1)
    far = replace(splits.store, frames=splits.store.frames * 3 + torch.tensor([5.0, -2.0, 9.0]))  # recorded far from the origin
    sampler = ClipSampler(far, pipeline, "joint", 8)
    pose, views = official.mean_motion(sampler, splits.train), sampler.evaluation(splits.train)
    low, high = views.amin((0, 2, 3, 4)), views.amax((0, 2, 3, 4))
    assert bool((pose.amin((1, 2, 3)) >= low - 1e-4).all())
    assert bool((pose.amax((1, 2, 3)) <= high + 1e-4).all())


def test_mean_motion_leaves_out_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = make_synthetic(num_classes=4, n_max=6, imbalance=2, val_per_class=1, test_per_class=1)
    sampler, bad = ClipSampler(splits.store, "crop", "joint", 16), int(splits.train[3])
    good = splits.train[splits.train != bad]
    view, frames = ClipSampler.training, splits.store.frames.clone()
    frames[int(splits.store.offsets[bad]), 0, 4, 1] = torch.inf

    def broken(self: ClipSampler, clips: Tensor, step: int) -> Tensor:
        views = view(self, clips, step)
        views[clips == bad, 1, 3, 4, 0] = torch.nan
        return views

    views = torch.cat([view(sampler, part, step) for step, part in enumerate(splits.train.split(256))])
    monkeypatch.setattr(ClipSampler, "training", broken)
    torch.testing.assert_close(mean_motion(sampler, splits.train), views[splits.train != bad].mean(0))
    store = splits.store
    object.__setattr__(store, "frames", frames)  # past its check
    published = official.mean_motion(sampler, splits.train)
    assert torch.equal(published, official.mean_motion(sampler, good))
    for none in (
        lambda: mean_motion(sampler, torch.tensor([bad])),
        lambda: official.mean_motion(sampler, torch.tensor([bad])),
    ):
        with pytest.raises(DataError, match="all 1 training clips are non-finite"):
            none()


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_fused_layers_read_clips_and_coalitions_themselves(shared: bool, counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same table as from expanded rows, which are not made."""
    torch.manual_seed(0)
    network, (clips, labels) = CTRGCN(NTU, 4, widths=(8, 16), halve=[1], graph_gain=1.0), batch()
    observed = SharedForward(network) if shared else network
    monkeypatch.setattr(CTRGCN, "steps_on", lambda self, _clips: steps if not self.training else None)
    counter = torch.tensor(1) if counted else None
    tables = []
    for backend in ("reference", None):
        if backend is None:
            monkeypatch.setattr(kernels_coalition, "coalition_inputs", None)
        mixer = mixer_of(backend=backend)
        mixer.observe(observed, clips, labels, 1, counter=counter)
        tables.append(mixer.saliency)
    torch.testing.assert_close(tables[1], tables[0], rtol=1e-4, atol=1e-7)
    assert (tables[0] != SALIENCY_START).any()


def test_a_hook_sees_expanded_rows() -> None:
    network, (clips, labels), seen = CTRGCN(NTU, 4, widths=(8,)), batch(), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixer_of().observe(network, clips, labels, 1)
    assert all(isinstance(rows, Tensor) for rows in seen)
    assert seen


def test_without_tail_awareness_a_clip_keeps_its_own_salient_parts() -> None:
    clips, labels = batch(64)
    table = torch.zeros(4, 20, dtype=torch.float32)
    table[torch.arange(4), torch.arange(4)] = 100.0  # each class draws one combination of its own
    for aware in (True, False):
        mixer = mixer_of(tail_aware=aware, temperature=1.0, blend_probability=0.0)
        mixer.class_saliency.mean.copy_(table)
        mixed = mixer.mix(clips, labels, 3)
        partner_labels = labels[mixed.partner]
        own = NTU.all_parts ^ NTU.combinations[labels]
        if aware:
            rarer = COUNTS[labels] > COUNTS[partner_labels]
            own = torch.where(rarer, NTU.combinations[partner_labels], own)
        joints = NTU.joints_in(own)
        replaced = (mixed.clips[64:] != clips).any(1).any(1).any(-1).sum(1)
        same = labels == partner_labels
        assert torch.equal(replaced[~same], joints[~same])


def test_the_naive_estimator_measures_combinations_alone_in_every_epoch() -> None:
    measured, naive = torch.zeros(12, dtype=torch.int64), ESTIMATORS["naive"]
    for step in (0, torch.tensor(5)):
        request = Request(measured, NTU, 1, step, combinations=NTU.combinations)
        found = naive.propose(request)
        assert torch.equal(found.coalitions, NTU.combinations[found.columns])
        assert bool((found.without_rows == 0).all())


def test_two_views_have_two_losses_and_no_mixing() -> None:
    clips, labels = batch(8)
    mixer = mixer_of(mix="two_views")
    second = clips + 1
    found = mixer.mix(clips, labels, 3, second=second)
    assert torch.equal(found.clips, torch.cat([clips, second]))
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    clean, other = mixer.loss(logits, found)
    alone = mixer_of(mix="none")
    for of_view, rows in ((clean, logits[:8]), (other, logits[8:])):
        expected, _ = alone.loss(rows, alone.mix(clips, labels, 3))
        torch.testing.assert_close(of_view, expected)
    with pytest.raises(ValueError, match="mix 'two_views' needs another as second"):
        mixer.mix(clips, labels, 3)
    with pytest.raises(ValueError, match="mix 'shapmix' takes one sampling of the clips; leave second out"):
        mixer_of().mix(clips, labels, 3, second=second)
    with pytest.raises(ValueError, match="second: give another sampling of the same clips, a tensor"):
        mixer.mix(clips, labels, 3, second=second[:4])
