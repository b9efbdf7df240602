"""The mixers that Shap-Mix is compared with: what their definitions promise."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from shapmix import ShapMix, load_layout
from shapmix.draws.philox import random_words
from shapmix.mixing.losses import LOSSES
from shapmix.mixing.mixers import MIXERS, Draws, MixedBatch
from shapmix.skeleton.layout import Layout, parse_layout

N, FRAMES = 24, 16
COUNTS = torch.tensor([300, 90, 60, 8])
LABELS = torch.arange(N) % 4
NTU = load_layout("ntu25")
ODD = parse_layout(
    """
name = "odd"
joints = ["foot", "hip", "hand"]
centre = "hip"
[parents]
foot = "hip"
hand = "hip"
[parts]
legs = ["foot"]
rest = ["hip", "hand"]
"""
)
NAMES = [f"leg_{joint}" for joint in range(70)] + [f"arm_{joint}" for joint in range(63)]
MANY = parse_layout(  # more joints than a draw has words at first
    f"name = 'many'\njoints = {NAMES}\ncentre = 'leg_0'\n[parents]\n"
    + "\n".join(f"{name} = 'leg_0'" for name in NAMES[1:])
    + f"\n[parts]\nlegs = {NAMES[:70]}\narms = {NAMES[70:]}\n"
)
RIVALS = [name for name, mixer in MIXERS.items() if not mixer.on_device and mixer.views == 1]
PASTING = ("cutmix", "cmo", "skelemix", "partial_mixup")


def mixed(name: str, step: int = 0, layout: Layout = NTU) -> tuple[torch.Tensor, MixedBatch]:
    """Clips, and what a mixer makes of them, without the clean half."""
    generator = torch.Generator().manual_seed(step)
    clips = torch.randn(N, 3, FRAMES, layout.num_joints, 2, generator=generator, dtype=torch.float64)
    return clips, mixed_clips(name, clips, layout, 0, step)


def mixed_clips(name: str, clips: torch.Tensor, layout: Layout, seed: int, step: int) -> MixedBatch:
    batch = ShapMix(layout, COUNTS, clips.mean(0), mix=name, seed=seed).mix(clips, LABELS, step)
    return batch._replace(clips=batch.clips[N:])


def test_a_row_of_more_words_begins_with_the_same() -> None:
    long, short = (Draws(3, 5, 4, torch.device("cpu")) for _ in range(2))
    words = long.next(150)
    assert words.shape == (4, 150)
    assert torch.equal(torch.cat([short.next(64), short.next(30), short.next(56)], 1), words)
    assert torch.equal(words[:, :64], random_words(3, 6, 5, 4, 64))


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("layout", [NTU, ODD, MANY], ids=["ntu25", "odd", "133 joints"])
def test_mixes_are_functions_of_the_step(name: str, layout: Layout) -> None:
    clips, found = mixed(name, 3, layout)
    again = mixed_clips(name, clips, layout, 0, 3)
    assert all(torch.equal(one, other) for one, other in zip(found[:4], again[:4], strict=True))
    others = [mixed_clips(name, clips, layout, seed, step) for seed, step in ((0, 4), (1, 3), (2, 3), (3, 3), (4, 3))]
    assert any(not torch.equal(found.clips, other.clips) for other in others)
    assert found.clips.shape == clips.shape
    assert found.clips.dtype == clips.dtype
    assert found.clips.isfinite().all()
    assert found.share.dtype == torch.float32
    assert ((found.share >= 0) & (found.share <= 1)).all()
    if name != "cmo":  # a clip of a rare class may be its own partner
        assert (found.partner != torch.arange(N)).all()


@pytest.mark.parametrize("name", PASTING)
def test_what_is_pasted_is_the_share(name: str) -> None:
    for step in range(5):
        clips, found = mixed(name, step)
        theirs = found.clips == clips[found.partner]
        mine = found.clips == clips
        assert (theirs | mine).all()
        pasted = theirs.all(1).all(-1) & ~mine.all(1).all(-1)  # [N, T, V]
        window, joints = pasted.any(2), pasted.any(1)
        assert torch.equal(pasted, window[:, :, None] & joints[:, None])
        starts = torch.nn.functional.pad(window.int(), (1, 0)).diff(dim=1).eq(1).sum(1)
        assert (starts <= 1).all()
        share = pasted.float().mean((1, 2))
        itself = found.partner == torch.arange(N)
        plain = found.share[~itself]
        if name == "partial_mixup":
            mine_count, their_count = COUNTS[LABELS].double(), COUNTS[LABELS[found.partner]].double()
            share = torch.where(mine_count > 3 * their_count, 1.0, torch.where(their_count > 3 * mine_count, 0.0, share.double()))
        torch.testing.assert_close(plain, share[~itself].float())


def test_cmo_draws_the_tail() -> None:
    drawn = torch.cat([LABELS[mixed("cmo", step, ODD)[1].partner] for step in range(200)])
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = (1 / COUNTS.double()) / (1 / COUNTS.double()).sum()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4 * (0.25 / len(drawn)) ** 0.5)


def test_remix_gives_the_label_to_the_rare_class() -> None:
    for step in range(10):
        clips, found = mixed("remix", step, ODD)
        blended = (found.clips - clips)[:, 0, 0, 0, 0] / (clips[found.partner] - clips)[:, 0, 0, 0, 0]
        for row in range(N):
            ratio = float(COUNTS[LABELS[row]] / COUNTS[LABELS[found.partner[row]]])
            share = float(blended[row])
            expected = 1.0 if ratio >= 3 and share > 0.5 else 0.0 if ratio <= 1 / 3 and share < 0.5 else share
            assert float(found.share[row]) == pytest.approx(expected, abs=1e-5)


def test_spatial_mix_puts_projections_together() -> None:
    seen = set()
    for step in range(40):
        clips, found = mixed("spatial_mix", step, ODD)
        other = clips[found.partner]
        weight = ((found.clips - clips) / (other - clips))[0].mean((1, 2, 3))  # of each coordinate
        theirs = round(float(found.share[0]) * 3)
        assert float(weight.sum()) == pytest.approx(theirs)
        assert sorted(weight.round(decimals=6).tolist()) == sorted(
            [0.0, 0.5, 0.5] if theirs == 1 else [0.5, 0.5, 1.0] if theirs == 2 else [theirs / 3] * 3
        )
        seen.add(theirs)
    assert seen == {0, 1, 2, 3}


def test_temporal_mix_shows_both_clips_whole() -> None:
    for step in range(5):
        clips, found = mixed("temporal_mix", step, ODD)
        own = round(FRAMES * (1 - float(found.share[0])))
        flat = clips.permute(0, 1, 3, 4, 2).reshape(N, -1, FRAMES)
        for part, source in ((found.clips[:, :, :own], flat), (found.clips[:, :, own:], flat[found.partner])):
            expected = interpolate(source, size=part.shape[2], mode="linear", align_corners=False)
            torch.testing.assert_close(part.permute(0, 1, 3, 4, 2).reshape(N, -1, part.shape[2]), expected)


def test_bone_mix_keeps_the_bodys_bones() -> None:
    clips, found = mixed("bone_mix", 2)
    parents = torch.tensor(NTU.parents)
    before, after, other = (x - x[:, :, :, parents] for x in (clips, found.clips, clips[found.partner]))
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    root = NTU.root
    assert torch.equal(found.clips[:, :, :, root], clips[:, :, :, root])
    moved = [joint for joint in range(25) if joint != root]
    unit = [bone[:, :, :, moved] / bone[:, :, :, moved].norm(dim=1, keepdim=True) for bone in (before, after, other)]
    share = found.share.double().view(-1, 1, 1, 1, 1)
    blend = unit[0] * (1 - share) + unit[2] * share
    torch.testing.assert_close(unit[1], blend / blend.norm(dim=1, keepdim=True))


def test_what_a_mixer_cannot_do_is_said() -> None:
    clips = torch.randn(N, 2, FRAMES, 3, 1)
    with pytest.raises(ValueError, match="mix 'spatial_mix' projects clips of 3 coordinates, not 2"):
        mixed_clips("spatial_mix", clips, ODD, 0, 0)
    armless = Layout("a", ODD.joints, ODD.parents, ODD.flips, {"low": (0,), "high": (1, 2)}, 1)
    with pytest.raises(ValueError, match="mix 'partial_mixup' needs parts with 'leg' in their names; layout 'a' has low, high"):
        mixed_clips("partial_mixup", clips, armless, 0, 0)
    for name in ("bone_mix", "spatial_mix"):
        motion = torch.zeros(4 if name == "spatial_mix" else 3, FRAMES, 3, 1)
        with pytest.raises(ValueError, match=f"mix '{name}' would mix the confidence score as a coordinate"):
            ShapMix(ODD, COUNTS, motion, mix=name, scores=True)


@pytest.mark.parametrize("mode", RIVALS)
@pytest.mark.parametrize("loss", sorted({*LOSSES} - {"balanced", "ce"}))
def test_the_plug_in_trains_with_each(mode: str, loss: str) -> None:
    clips = torch.randn(N, 3, FRAMES, 25, 2)
    mixer = ShapMix(NTU, COUNTS, clips.mean(0), mix=mode, loss=loss, deferred_steps=1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(clips[0].numel(), 4))
    for step in range(2):
        mixer.observe(network, clips, LABELS, step)
        batch = mixer.mix(clips, LABELS, step)
        assert torch.equal(batch.clips[:N], clips)
        sum(mixer.loss(network(batch.clips), batch)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    with pytest.raises(ValueError, match="draws on the host"):
        mixer.mix(clips, LABELS, 0, counter=torch.tensor(0))
