"""Candidates for a better mixing rule: examples by hand, the laws that each promises, and the default, which none changes."""

from __future__ import annotations

import re
from dataclasses import replace
from math import cos, sin
from typing import Any

import pytest
import torch
from torch import Tensor

from shapmix.draws.plans import MixPlan
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import Batch, MixedBatch, Pasting, plan_on_trial
from shapmix.mixing.rule import MEMORY, Aligner, DrawnLabels, Rule, anchors, inside, mixed_loss, scale_of, siblings
from shapmix.reference import mix_clips
from shapmix.reference.plan import draw_plan, draw_window, inverse_partners
from shapmix.skeleton.layout import Layout, load_layout, parse_layout

NTU, UCLA, COCO = load_layout("ntu25"), load_layout("ucla20"), load_layout("coco17")
COUNTS = torch.tensor([90, 30, 9, 3])
FRAMES = 16
CHAIN = parse_layout(
    """
name = "chain"
joints = ["hip", "knee", "foot"]
centre = "hip"
dimensions = [2, 3]
[parents]
knee = "hip"
foot = "knee"
[parts]
body = ["hip"]
shank = ["knee"]
foot = ["foot"]
"""
)


def batch(n: int = 12, layout: Layout = NTU, coordinates: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(n, coordinates, FRAMES, layout.num_joints, 2, generator=generator)
    return clips, torch.randint(4, (n,), generator=generator)


def mixer_of(layout: Layout = NTU, coordinates: int = 3, **options: Any) -> ShapMix:
    mean = torch.randn(coordinates, FRAMES, layout.num_joints, 2, generator=torch.Generator().manual_seed(9))
    return ShapMix(layout, COUNTS, mean, **options)


def plan_of(n: int, parts: int, *, blend: bool = False, source_start: int = 4) -> MixPlan:
    """Every sample takes `parts` of the next one in frames 4 to 11."""
    each = torch.ones(n, dtype=torch.int64)
    return MixPlan(
        partner=(torch.arange(n) + 1) % n, parts=each * parts, start=each * 4, length=each * 8,
        source_start=each * source_start, source_length=each * 8, lam=torch.full((n,), 0.3).double(), blend=torch.full((n,), blend),
    )  # fmt: skip


def test_no_rule_is_the_default_and_changes_nothing() -> None:
    clips, labels = batch()
    default, given = mixer_of(), mixer_of(rule=Rule())
    assert default.state_dict().keys() == given.state_dict().keys()
    assert not [key for key in default.state_dict() if "drawn" in key or "aligner" in key]
    logits = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    for step in range(8):
        one, other = default.mix(clips, labels, step), given.mix(clips, labels, step)
        plan = draw_plan(
            labels, default.saliency, COUNTS, NTU.combinations, NTU.part_of_joint, FRAMES, seed=0, step=step
        )  # fmt: skip
        assert torch.equal(one.clips, mix_clips(clips, plan, NTU.part_of_joint))
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(torch.stack(default.loss(logits, one)), torch.stack(given.loss(logits, other)))
    assert (default.views, default.class_saliency.scale) == (1, 10.0)


# partners by inverse class frequency


def test_partners_are_drawn_by_the_inverse_of_their_class() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    counts = torch.tensor([6, 3, 1])
    steps = 4000
    drawn = torch.stack([inverse_partners(labels, counts, seed=3, step=step) for step in range(steps)])
    weight = 1 / counts[labels].double()  # 1/6 1/6 1/6 1/3 1
    for sample in range(5):
        others = weight.clone()
        others[sample] = 0
        expected = others / others.sum()
        share = torch.bincount(drawn[:, sample], minlength=5) / steps
        assert share[sample] == 0
        torch.testing.assert_close(share.double(), expected, atol=4 * 0.5 / steps**0.5, rtol=0)


def test_partners_of_a_balanced_draw_are_balanced() -> None:
    """Batches of a long-tailed list: as many partners of every class, whatever its size."""
    counts = torch.tensor([600, 60, 6])
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(3)
    for step in range(200):
        labels = torch.multinomial(counts.float(), 400, replacement=True, generator=generator)
        total += torch.bincount(labels[inverse_partners(labels, counts, seed=0, step=step)], minlength=3)
    torch.testing.assert_close(total / total.sum(), torch.full((3,), 1 / 3), atol=0.03, rtol=0)


def test_a_plan_of_inverse_partners_keeps_the_salient_parts_of_the_rarer() -> None:
    labels = torch.arange(40) % 4
    saliency = torch.full((4, 20), 1e-6)
    favourite = torch.tensor([0, 5, 11, 19])
    saliency[torch.arange(4), favourite] = 50.0
    tables = (saliency, COUNTS, NTU.combinations, NTU.part_of_joint)
    pasting = Pasting(*tables, 0.2, 0.0, True, None)
    drawn = Batch(torch.zeros(40, 3, FRAMES, 25, 1), labels, COUNTS, NTU, 1, 2, None, pasting)
    pasting = pasting._replace(inverse=True)
    found = plan_on_trial(drawn, pasting, guided=True)
    assert torch.equal(found.partner, inverse_partners(labels, COUNTS, seed=1, step=2))
    for own, other, parts in zip(labels.tolist(), labels[found.partner].tolist(), found.parts.tolist(), strict=True):
        brings = bool(COUNTS[own] > COUNTS[other])
        kept = int(NTU.combinations[favourite[other if brings else own]])
        assert parts == (kept if brings else NTU.all_parts ^ kept)
    random = plan_on_trial(drawn, pasting, guided=False)
    assert len(random.parts.unique()) == 1


def test_the_running_marginal_is_the_mean_of_the_drawn_labels() -> None:
    drawn = DrawnLabels(torch.tensor([6, 2]))
    mixed = MixedBatch(torch.empty(0), torch.tensor([0, 0]), torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    drawn.update(mixed)  # all of class 0; the prior (3/4, 1/4) counts as one step
    torch.testing.assert_close(drawn.marginal, torch.tensor([7 / 8, 1 / 8]).double())
    drawn.update(mixed._replace(labels=torch.tensor([0, 1]), share=torch.tensor([0.25, 0.75])))  # 0.75 + 0.75 of class 0
    torch.testing.assert_close(drawn.marginal, torch.tensor([(7 / 4 + 3 / 4) / 3, (1 / 4 + 1 / 4) / 3]).double())
    for _ in range(20 * MEMORY):
        drawn.update(mixed._replace(labels=torch.tensor([1, 0]), share=torch.tensor([0.2, 0.4])))  # 0.8 + 0.4 of class 1
    torch.testing.assert_close(drawn.marginal, torch.tensor([0.4, 0.6]).double())
    assert float(drawn.marginal.sum()) == pytest.approx(1)


def test_the_mixed_half_is_adjusted_by_what_was_drawn() -> None:
    clips, labels = batch()
    mixer = mixer_of(rule=Rule(partner="inverse"))
    mixed = mixer.mix(clips, labels, 0)
    assert mixer.drawn is not None
    assert {"drawn.marginal", "drawn.steps"} <= mixer.state_dict().keys()
    logits = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    clean, loss = mixer.loss(logits, mixed)
    share = mixed.share
    log_p = (logits[12:] + mixer.drawn.marginal.log().float()).log_softmax(1)
    rows = torch.arange(12)
    own, other = log_p[rows, labels], log_p[rows, labels[mixed.partner]]
    torch.testing.assert_close(loss, -((1 - share) * own + share * other).mean())
    plain_clean, _ = mixer_of().loss(logits, mixed)
    torch.testing.assert_close(clean, plain_clean)
    again = mixer_of(rule=Rule(partner="inverse"))
    again.load_state_dict(mixer.state_dict())
    assert torch.equal(again.loss(logits, mixed)[1], loss)


# the mass on neither class


def example() -> tuple[Tensor, MixedBatch]:
    """Probabilities (1/2, 1/4, 1/8, 1/8) of a mix of classes 0 and 1, and (1/4, 1/4, 1/4, 1/4) of class 2 with itself."""
    logits = torch.tensor([[4.0, 2, 1, 1], [1, 1, 1, 1]]).log()
    return logits, MixedBatch(torch.empty(0), torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))


def test_the_mass_inside_by_hand() -> None:
    logits, mixed = example()
    torch.testing.assert_close(inside(logits, mixed.labels, torch.tensor([1, 2])), torch.tensor([0.75, 0.25]))
    assert not inside(logits.requires_grad_(), mixed.labels, torch.tensor([1, 2])).requires_grad


def test_weighed_and_smoothed_losses_by_hand() -> None:
    logits, _ = example()
    log2 = float(torch.tensor(2.0).log())
    mixed = MixedBatch(torch.empty(0), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0.5, 0.25]))
    # losses of labels: (1, 2, 3, 3) log 2 and (2, 2, 2, 2) log 2; inside 3/4 and 1/2; of the mixed labels 1.5 log 2 and 2 log 2
    zeros = torch.zeros(4)
    plain = mixed_loss(logits, mixed, zeros, 0.0, "ignore")
    weighed = mixed_loss(logits, mixed, zeros, 0.0, "weigh")
    smoothed = mixed_loss(logits, mixed, zeros, 0.0, "smooth")
    assert float(plain) == pytest.approx((1.5 + 2) / 2 * log2)
    assert float(weighed) == pytest.approx((0.75 * 1.5 + 0.5 * 2) / 2 * log2)
    assert float(smoothed) == pytest.approx((0.75 * 1.5 + 0.25 * 2.25 + 2) / 2 * log2)


@pytest.mark.parametrize("loss", ["ce", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mass_only_inside_changes_nothing(loss: str, smoothing: float) -> None:
    clips, labels = batch()
    plain, weighed = mixer_of(loss=loss, label_smoothing=smoothing), mixer_of(
        loss=loss, label_smoothing=smoothing, rule=Rule(outside="weigh")
    )  # fmt: skip
    mixed = plain.mix(clips, labels, 5)
    logits = torch.full((24, 4), -40.0)
    logits[torch.arange(24), labels.repeat(2)] = 1.0
    logits[12 + torch.arange(12), labels[mixed.partner]] = 1.0
    torch.testing.assert_close(torch.stack(plain.loss(logits, mixed)), torch.stack(weighed.loss(logits, mixed)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_are_shares(dtype: torch.dtype) -> None:
    logits = 8 * torch.randn(200, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    labels, others = torch.randint(4, (2, 200), generator=torch.Generator().manual_seed(3))
    kept = inside(logits, labels, others)
    assert ((kept >= 0) & (kept <= 1)).all()
    torch.testing.assert_close(kept, inside(logits, others, labels))


def test_the_weight_carries_no_gradient() -> None:
    logits, mixed = example()
    mixed = mixed._replace(partner=torch.tensor([1, 0]))
    logits.requires_grad_()
    mixed_loss(logits, mixed, torch.zeros(4), 0.0, "weigh").backward()
    kept = inside(logits, mixed.labels, mixed.labels[mixed.partner])
    target = torch.tensor([[0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0]])
    expected = kept[:, None] * (logits.detach().softmax(1) - target) / 2
    torch.testing.assert_close(logits.grad, expected)


# the unit of the saliency


def test_a_unit_of_the_layout_is_two_average_parts() -> None:
    assert [scale_of("layout", layout) for layout in (NTU, UCLA)] == [10.0, 8.0]
    assert scale_of("ntu25", UCLA) == 10.0
    assert mixer_of(UCLA, rule=Rule(unit="layout")).class_saliency.scale == 8.0


@pytest.mark.parametrize("estimator", ["exact_subset", "pair_table"])
def test_a_unit_scales_the_table(estimator: str) -> None:
    clips, labels = batch(40, UCLA)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * FRAMES * 20 * 2, 4))
    tables = []
    for rule in (Rule(), Rule(unit="layout")):
        mixer = mixer_of(UCLA, rule=rule, estimator=estimator, replace_steps=5)
        mixer.observe(network, clips, labels, 0)
        measured = mixer.class_saliency.measured > 0
        tables.append((mixer.saliency[measured], mixer.class_saliency.squares[measured]))
    torch.testing.assert_close(tables[1][0], torch.where(tables[0][0] == 1e-6, 1e-6, tables[0][0] * 0.8))
    torch.testing.assert_close(tables[1][1], tables[0][1] * 0.64)


# alignment


def test_a_joint_hangs_from_the_first_joint_that_is_not_pasted() -> None:
    hip, knee, foot = range(3)
    assert anchors(CHAIN).tolist() == [
        [hip, knee, foot],  # nothing pasted
        [hip, knee, foot],  # the root has no other anchor than itself
        [hip, hip, foot],
        [hip, hip, foot],
        [hip, knee, knee],
        [hip, knee, knee],
        [hip, hip, hip],  # the foot hangs from the pasted knee, and that from the hip
        [hip, hip, hip],
    ]
    assert [tuple(UCLA.joints[joint] for joint in pair) for pair in siblings(UCLA)] == [
        ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"),
    ]  # fmt: skip


def test_a_pasted_foot_by_hand() -> None:
    """A partner of twice the size, elsewhere: its foot is drawn to the host's knee at half the length."""
    clips = torch.zeros(2, 2, FRAMES, 3, 1)
    clips[0, 1, :, :, 0] = torch.tensor([0.0, -1, -2])  # straight down
    clips[1, 0] = 5.0
    clips[1, 1, :, :, 0] = torch.tensor([7.0, 5, 5])
    clips[1, 0, :, 2] = 7.0  # the foot points to the side
    mixed = Aligner(CHAIN, 2, scores=False)(clips, plan_of(2, 0b100), CHAIN.part_of_joint)[2:]
    expected = clips[0].clone()
    expected[:, 4:12, 2, 0] = torch.tensor([1.0, -1])[:, None]
    torch.testing.assert_close(mixed[0], expected)


def poses(layout: Layout, n: int, dimension: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(n, dimension, FRAMES, layout.num_joints, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("layout", "dimension"), [(NTU, 3), (UCLA, 3), (COCO, 2)], ids=["ntu25", "ucla20", "coco17"])
@pytest.mark.parametrize("same", [True, False])
def test_a_copy_of_the_host_pasted_is_the_host(layout: Layout, dimension: int, same: bool) -> None:
    """Also a copy that stands elsewhere, is of another size and, in three dimensions, faces another way."""
    host = poses(layout, 1, dimension)[0]
    copies = [host]
    for number in range(1, 4):
        turned = host.clone()
        if dimension == 3 and not same:
            angle = 1.1 * number
            turned[0] = cos(angle) * host[0] + sin(angle) * host[2]
            turned[2] = cos(angle) * host[2] - sin(angle) * host[0]
        moved = torch.linspace(-3, 3, dimension).double().view(-1, 1, 1, 1) * number
        copies.append(host if same else turned * (1 + 0.5 * number) + moved)
    clips = torch.stack(copies)
    aligner = Aligner(layout, dimension, scores=False)
    for parts in layout.combinations.tolist():
        mixed = aligner(clips, plan_of(4, parts), layout.part_of_joint)[4:]
        torch.testing.assert_close(mixed, clips, atol=1e-9, rtol=0)


def test_no_bone_is_torn_and_the_rest_stays() -> None:
    clips = poses(UCLA, 5, 3)
    parts = 0b01010  # left arm and left leg
    mixed = Aligner(UCLA, 3, scores=False)(clips, plan_of(5, parts, source_start=0), UCLA.part_of_joint)[5:]
    pasted = (parts >> UCLA.part_of_joint & 1).bool()
    assert torch.equal(mixed[:, :, :, ~pasted], clips[:, :, :, ~pasted])
    assert torch.equal(mixed[:, :, :4], clips[:, :, :4])
    assert torch.equal(mixed[:, :, 12:], clips[:, :, 12:])
    child, parent = torch.tensor(UCLA.edges).T
    child, parent = child[pasted[child]], parent[pasted[child]]
    lengths = [(x[:, :, :, child] - x[:, :, :, parent]).norm(dim=1) for x in (mixed[:, :, 4:12], clips[[1, 2, 3, 4, 0], :, :8])]
    ratio = lengths[0] / lengths[1]  # the same for every bone and frame of a sample, also of the bones that tie the parts
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    sizes = [(x[:, :, :, torch.tensor(UCLA.edges)[:, 0]] - x[:, :, :, torch.tensor(UCLA.edges)[:, 1]]).norm(dim=1).sum((1, 2))
             for x in (clips[:, :, 4:12], clips[[1, 2, 3, 4, 0], :, :8])]  # fmt: skip
    torch.testing.assert_close(ratio[:, 0, 0], sizes[0] / sizes[1])


def test_absent_people_and_missing_joints_are_pasted_as_they_are() -> None:
    clips = poses(NTU, 3, 3).repeat(1, 1, 1, 1, 2)
    clips[1, :, :, :, 1] = 0  # the second person is absent
    mixed = Aligner(NTU, 3, scores=False)(clips, plan_of(3, 0b10), NTU.part_of_joint)[3:]
    pasted = mix_clips(clips, plan_of(3, 0b10), NTU.part_of_joint)[3:]
    assert torch.equal(mixed[:2, ..., 1], pasted[:2, ..., 1])  # as the partner of 0, and as the host of 1
    assert not torch.equal(mixed[2, ..., 1], pasted[2, ..., 1])
    coco = torch.cat([poses(COCO, 3, 2), torch.ones(3, 1, FRAMES, 17, 1)], dim=1)
    wrist = COCO.joints.index("left_wrist")
    elbow = COCO.parents[wrist]
    part = 1 << int(COCO.part_of_joint[wrist])
    anchor = int(anchors(COCO)[part, wrist])
    coco[1, :, :, wrist] = 0
    coco[2, :, 4:12, anchor] = 0
    mixed = Aligner(COCO, 3, scores=True)(coco, plan_of(3, part), COCO.part_of_joint)[3:]
    pasted = mix_clips(coco, plan_of(3, part), COCO.part_of_joint)[3:]
    assert not mixed[0, :, 4:12, wrist].any()
    assert not torch.equal(mixed[0, :2, 4:12, elbow], pasted[0, :2, 4:12, elbow])
    assert torch.equal(mixed[1:], pasted[1:])  # the anchor is missing in the partner of 1, and in 2
    assert torch.equal(mixed[:, 2], pasted[:, 2])  # scores are pasted


def test_blended_clips_are_those_of_mixup() -> None:
    clips, plan = poses(UCLA, 4, 3), plan_of(4, 0b10, blend=True)
    aligned = Aligner(UCLA, 3, scores=False)(clips, plan, UCLA.part_of_joint)
    torch.testing.assert_close(aligned, mix_clips(clips, plan, UCLA.part_of_joint))


def test_a_mixer_aligns() -> None:
    clips, labels = batch(layout=UCLA)
    plain, aligned = mixer_of(UCLA), mixer_of(UCLA, rule=Rule(align=True))
    assert plain.state_dict().keys() == aligned.state_dict().keys()
    for step in range(4):
        one, other = plain.mix(clips, labels, step), aligned.mix(clips, labels, step)
        assert torch.equal(one.share, other.share)
        pasted, moved = ((x.clips[12:] != clips).any(1).any(-1) for x in (one, other))  # [N, T, V]
        stays = torch.arange(20) == UCLA.root  # pasted, it is moved to where it was
        assert torch.equal(moved[:, :, ~stays], pasted[:, :, ~stays])
        assert torch.equal(one.clips, other.clips) == bool(pasted.all())  # blended


@pytest.mark.parametrize("rule", [Rule(partner="inverse"), Rule(align=True), Rule(outside="smooth"), Rule(windows="clip")])
def test_a_step_on_the_device_draws_the_same(rule: Rule) -> None:
    clips, labels = batch()
    logits = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    host, device = mixer_of(rule=rule), mixer_of(rule=rule)
    for step in range(3):
        one, other = host.mix(clips, labels, step), device.mix(clips, labels, step, counter=torch.tensor(step))
        assert torch.equal(one.clips, other.clips)
        assert torch.equal(torch.stack(host.loss(logits, one)), torch.stack(device.loss(logits, other)))


# windows of each clip's own


def test_windows_of_clips_are_drawn_as_those_of_batches() -> None:
    """The first clip of a batch has the window that the batch would have; together the clips of one step have them all."""
    clips = 4000
    each = draw_window(clips, 64, seed=5, step=7, each=True)
    one = draw_window(clips, 64, seed=5, step=7)
    assert each.shift.shape == ()
    assert int(each.shift) == int(one.shift)
    drawn = {name: getattr(each, name) for name in ("start", "length", "source_start", "source_length", "lam", "blend")}
    assert all(value.shape == (clips,) and value[0] == getattr(one, name) for name, value in drawn.items())
    steps = [draw_window(3, 64, seed=5, step=step) for step in range(clips)]
    for name, value in drawn.items():
        of_steps = torch.stack([getattr(window, name) for window in steps])
        if name != "lam":
            assert torch.equal(value.unique(), of_steps.unique())
        spread = float(of_steps.double().std())
        assert float(value.double().mean()) == pytest.approx(float(of_steps.double().mean()), abs=4 * spread * (2 / clips) ** 0.5)


@pytest.mark.parametrize("mix", ["shapmix", "stmix"])
@pytest.mark.parametrize("partner", ["shift", "inverse"])
def test_every_clip_draws_its_own_window(mix: str, partner: Any) -> None:
    clips, labels = batch(40)
    mixer = mixer_of(mix=mix, rule=Rule(windows="clip", partner=partner))
    mixed = mixer.mix(clips, labels, 3)
    assert torch.equal(mixed.clips[:40], clips)
    own = clips[:, :, :, :, 0]
    changed = (mixed.clips[40:, :, :, :, 0] != own).any(1)  # [N, T, V]
    pasted = changed.any(2).sum(1) < FRAMES  # a blend changes all frames
    assert 20 < int(pasted.sum()) < 40  # a quarter blends
    assert len({tuple(row.tolist()) for row in changed.any(2)[pasted]}) > 3
    assert len({tuple(row.tolist()) for row in changed.any(1)[pasted]}) > 3
    share = changed.double().mean((1, 2))
    torch.testing.assert_close(mixed.share[pasted].double(), share[pasted], atol=1e-6, rtol=0)
    blended = clips.lerp(clips[mixed.partner], mixed.share.view(-1, 1, 1, 1, 1))
    torch.testing.assert_close(mixed.clips[40:][~pasted], blended[~pasted])
    assert torch.equal(mixed.partner, mixer_of(mix=mix, rule=Rule(partner=partner)).mix(clips, labels, 3).partner)


# a second sampling


@pytest.mark.parametrize("rule", [Rule(fresh=True), Rule(fresh=True, align=True, partner="inverse")])
def test_a_second_sampling_is_mixed(rule: Rule) -> None:
    (clips, labels), second = batch(), torch.randn(12, 3, FRAMES, 25, 2, generator=torch.Generator().manual_seed(7))
    mixer = mixer_of(rule=rule)
    assert mixer.views == 2
    found = mixer.mix(clips, labels, 3, second=second)
    of_second = mixer_of(rule=replace(rule, fresh=False)).mix(second, labels, 3)
    assert torch.equal(found.clips[:12], clips)
    assert torch.equal(found.clips[12:], of_second.clips[12:])
    with pytest.raises(ValueError, match="mix 'shapmix' needs another as second"):
        mixer.mix(clips, labels, 3)


# what contradicts


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"partner": "inverse"}, {"compat": "official"}, "rule.partner: compat 'official' reproduces the published rule"),
    ({"fresh": True}, {"mix": "mixup"}, "rule.fresh: changes the rule of shapmix and stmix; mix 'mixup' has another"),
    ({"unit": "layout"}, {"mix": "stmix"}, "rule.unit: mix 'stmix' uses no saliency; leave it out"),
    ({"partner": "inverse"}, {"loss": "ce"}, "rule.partner: 'inverse' adjusts the mixed half of loss 'balanced'; loss 'ce'"),
    ({"outside": "weigh"}, {"loss": "focal"}, "rule.outside: 'weigh' is defined for the losses balanced and ce, not 'focal'"),
    ({"outside": "smooth"}, {"label_smoothing": 0.1}, "rule.outside: 'smooth' is a label smoothing of its own"),
    ({"align": True}, {"scores": True}, "rule.align: clips have 3 coordinates, the last a score, but layout 'ntu25' is for 3"),
]


@pytest.mark.parametrize(("rule", "options", "message"), REFUSED, ids=[message[:44] for *_, message in REFUSED])
def test_rules_that_make_no_sense_are_refused(rule: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mixer_of(rule=Rule(**rule), **options)


def test_a_layout_without_facing_and_an_unknown_choice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rule.align: layout 'chain' has no left-right pair of joints with one parent"):
        ShapMix(CHAIN, COUNTS, torch.zeros(3, FRAMES, 3, 1), rule=Rule(align=True))
    with pytest.raises(ValueError, match=r"rule.align: moves parts in 2 or 3 dimensions; the clips have 4"):
        ShapMix(CHAIN, COUNTS, torch.zeros(4, FRAMES, 3, 1), rule=Rule(align=True))
    with pytest.raises(ValueError, match=r"rule.outside is 'wiegh'; did you mean 'weigh'"):
        mixer_of(rule=Rule(outside="wiegh"))
