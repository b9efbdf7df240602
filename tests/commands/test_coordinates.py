"""Clips with any number of coordinates, with and without scores, through `prepare`, training and every command."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapmix import ShapMix, evaluate, explain, export, predict, prepare, report, train
from shapmix.data.clips import ClipStore, join_clips
from shapmix.data.sampling import ClipSampler, NetworkStream, Pipeline, mean_motion
from shapmix.data.splits import store_splits
from shapmix.data.store import open_store
from shapmix.draws.augment import AugmentConfig
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.skeleton.layout import BUILT_IN, layout_toml, load_layout
from shapmix.training import build
from shapmix.training.build import make_sampler
from shapmix.training.options import TrainConfig
from shapmix.training.step import TrainingStep
from shapmix.training.trained import open_run

OPTIONS = ["--num-frames", "8", "--network.widths", "8", "--batch-size", "8", "--epochs", "2", "--saliency.warmup-epochs", "1"]
OPTIONS += ["--threads", "1", "--device", "cpu"]

pytestmark = pytest.mark.usefixtures("no_pictures")
LENGTHS = (1, 2, 9, 30)


@dataclass(frozen=True)
class Kind:
    layout: str
    coordinates: int
    scores: bool = False
    stream: str = "joint"


KINDS = {
    "xy": Kind("coco17", 2, stream="bone"),
    "xy and score": Kind("coco17", 3, scores=True, stream="bone_motion"),
    "x alone": Kind("coco17", 1),
    "x and score": Kind("coco17", 2, scores=True),
    "four": Kind("ntu25", 4),
    "xy of the NW-UCLA skeleton": Kind("ucla20", 2),
    "xyz and score": Kind("mediapipe33", 4, scores=True),
}


def recording(kind: Kind, label: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """[T, 2, V, C] pixels; every other clip has a second person, and one joint is undetected."""
    joints = generator.uniform(100, 900, size=(length, 2, load_layout(kind.layout).num_joints, kind.coordinates))
    joints[:, :, :, 0] += 300 * label
    if kind.scores:
        joints[..., -1] = generator.uniform(0.2, 1, size=joints.shape[:-1])
    joints[:, 1] *= length % 2
    joints[:, :, 3] = 0
    return joints.astype(np.float32)


def write_plain(folder: Path, kind: Kind) -> Path:
    """Clips of 1 to 30 frames of two people."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = ["name,label,split"]
    for number in range(36):
        split, label = ("train", "val", "test")[max(0, number // 6 - 3)], number % 3
        joints = recording(kind, label, LENGTHS[number % len(LENGTHS)], generator)
        np.save(folder / f"clip{number:02d}.npy", joints)
        rows.append(f"clip{number:02d},{'abc'[label]},{split}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def make_store(folder: Path, kind: Kind) -> Path:
    raw, dimension = write_plain(folder / "raw", kind), kind.coordinates - int(kind.scores)
    layout, scores = kind.layout, ["--scores"] if kind.scores else []
    if dimension not in load_layout(layout).dimensions:
        assert prepare.main([str(raw), str(folder / "store"), "--layout", layout, *scores]) == 2
        layout = str(folder / "own.toml")
        Path(layout).write_text(layout_toml(replace(load_layout(kind.layout), dimensions=(dimension,))))
    arguments = [str(raw), str(folder / "store"), "--layout", layout, *scores]
    assert prepare.main(arguments) == 0
    return folder / "store"


def train_on(store: Path, run: Path, stream: str = "joint", *options: str) -> int:
    arguments = ["--dataset", "store", "--data-root", str(store), "--run-dir", str(run), "--stream", stream]
    return train.main([*arguments, *OPTIONS, *options])


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request: pytest.FixtureRequest, no_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path, Path]:
    """A kind of clips, its store, and a run trained on it."""
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp("runs")
    store = make_store(folder, kind)
    assert train_on(store, folder / "run", kind.stream) == 0
    return kind, store, folder / "run"


def test_a_run_learns_finite_weights(trained: tuple[Kind, Path, Path]) -> None:
    kind, store, run = trained
    opened = open_run(run, "last")
    assert opened.scores == kind.scores
    assert opened.mean_motion.shape[0] == kind.coordinates
    assert all(value.isfinite().all() for value in opened.network.state_dict().values())
    assert open_store(store).clips.scores == kind.scores


def test_a_run_predicts_evaluates_and_is_exported(
    trained: tuple[Kind, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, store, run = trained
    np.save(tmp_path / "clip.npy", open_store(store).clips.clip(2).numpy())
    assert predict.main([str(run), str(tmp_path / "clip.npy"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(chance for _, chance in found["classes"]) == pytest.approx(1, abs=1e-5)
    assert sum(found["parts"].values()) + found["without"] == pytest.approx(found["classes"][0][1], abs=1e-5)
    assert evaluate.main([str(run), "--test-clips", "2", "--device", "cpu"]) == 0
    ending = ".onnx" if kind.scores else ".pt2"
    assert export.main([str(run), str(tmp_path / f"network{ending}")]) == 0


@pytest.mark.parametrize("trained", ["xy and score"], indirect=True)
def test_the_skeleton_of_training_is_assumed_and_said(
    trained: tuple[Kind, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, _, run = trained
    raw = write_plain(tmp_path / "raw", kind)
    with caplog.at_level("INFO"):
        assert predict.main([str(run), str(raw), "--no-parts"]) == 0
    assert f"{raw}: does not name its skeleton; assuming coco17, that of training (--layout names another)" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert predict.main([str(run), str(raw), "--no-parts", "--layout", "coco17"]) == 0
    assert "assuming" not in caplog.text


@pytest.mark.parametrize("trained", ["xy", "xy and score", "x alone"], indirect=True)
def test_a_run_is_explained_and_reported(trained: tuple[Kind, Path, Path]) -> None:
    _, _, run = trained
    assert explain.main([str(run), "--per-class", "1", "--threads", "1"]) == 0
    assert report.main([str(run), "--threads", "1"]) == 0
    assert (run / "report.html").exists()


@pytest.mark.parametrize(
    ("mix", "kind", "message"),
    [
        ("spatial_mix", KINDS["xy"], "'spatial_mix' projects clips of 3 coordinates, not 2"),
        ("spatial_mix", KINDS["xy and score"], "'spatial_mix' projects clips of 3 coordinates, not 2"),
        ("spatial_mix", KINDS["xyz and score"], "'spatial_mix' would mix the confidence score as a coordinate"),
        ("bone_mix", KINDS["xy and score"], "'bone_mix' would mix the confidence score as a coordinate"),
        ("partial_mixup", Kind("hand21", 2), "'partial_mixup' needs parts with 'leg' in their names; layout 'hand21' has thumb"),
    ],
)
def test_a_mixer_that_does_not_fit_the_clips_is_refused_before_training(
    mix: str, kind: Kind, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_on(make_store(tmp_path, kind), tmp_path / "run", "joint", "--mix", mix) == 2
    assert f"error: mix: {message}" in capsys.readouterr().err


NO_ROTATION = AugmentConfig(rotation=0.0)


def pixels(coordinates: int, *, scores: bool = False) -> ClipStore:
    torch.manual_seed(0)
    layout = replace(load_layout("coco17"), dimensions=())
    clips = [torch.rand(length, 2, layout.num_joints, coordinates) for length in LENGTHS]
    return join_clips(clips, [0, 1, 0, 1], list("abcd"), layout, ["x", "y"], scores=scores)


@pytest.mark.parametrize("stream", ["joint", "bone_motion"])
@pytest.mark.parametrize("pipeline", ["crop", "frames", "segments"])
@pytest.mark.parametrize("coordinates", [1, 2, 4])
def test_every_pipeline_takes_every_number_of_coordinates(coordinates: int, pipeline: Pipeline, stream: str) -> None:
    sampler = ClipSampler(pixels(coordinates), pipeline, stream, 8)
    chosen = torch.tensor([3, 0, 2])
    for clips in (sampler.training(chosen, 5), sampler.evaluation(chosen), sampler.crop(chosen, 1)):
        assert clips.shape == (3, coordinates, 8, 17, 2)
        assert clips.isfinite().all()


def test_the_step_that_samples_takes_the_same_crops() -> None:
    """Runs on the CPU the step that a GPU captures."""
    sampler = ClipSampler(pixels(2), "crop", "bone", 8)
    layout, chosen = sampler.store.layout, torch.tensor([0, 1, 2, 3])
    network = CTRGCN(layout, 2, num_people=2, in_channels=2, widths=(8,))
    mixer = ShapMix(layout, torch.tensor([2, 2]), mean_motion(sampler, chosen))
    step = TrainingStep(network, mixer, torch.optim.SGD(network.parameters(), lr=0.01), sampler, 4)
    assert step(chosen, 3).clean.isfinite()
    assert torch.equal(step._sampled(), sampler.training(chosen, 3))


def test_a_score_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_plain(tmp_path / "raw", Kind("coco17", 1))
    (raw / "layout.toml").write_text(layout_toml(replace(load_layout("coco17"), dimensions=())))
    assert prepare.main([str(raw), str(tmp_path / "store"), "--scores"]) == 2
    assert "one number per joint, which cannot be a score alone; omit --scores" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_layout_trains_a_step(name: str) -> None:
    """Draws a mix of clips of made-up skeletons and learns from it, in each dimension and with scores."""
    layout = load_layout(name)
    for dimension in layout.dimensions:
        for scores in (False, True):
            clips = [torch.rand(6, 1, layout.num_joints, dimension + scores) for _ in range(4)]
            store = join_clips(clips, [0, 1, 0, 1], list("abcd"), layout, ["x", "y"], scores=scores)
            sampler = make_sampler(replace(TrainConfig(), num_frames=8), store)
            chosen = torch.arange(4)
            network = CTRGCN(layout, 2, num_people=1, in_channels=dimension + scores, widths=(8,))
            mixer = ShapMix(layout, torch.tensor([2, 2]), mean_motion(sampler, chosen))
            batch = sampler.training(chosen, 0)
            mixer.observe(network, batch, store.labels, 0)
            mixed = mixer.mix(batch, store.labels, 0)
            losses = mixer.loss(network(mixed.clips), mixed)
            sum(losses).backward()
            assert all(loss.isfinite() for loss in losses)
            assert all(value.grad is None or value.grad.isfinite().all() for value in network.parameters())
            assert mixer.saliency.shape == (2, len(layout.combination_bits))


@pytest.mark.parametrize("pipeline", ["crop", "frames"])
def test_only_three_coordinates_are_turned(pipeline: Pipeline) -> None:
    """Rotation about the depth axis mixes x and y: a joint at y = 0 and z = 0 keeps both only without rotation."""
    for coordinates in (2, 3):
        store = pixels(coordinates)
        store = replace(store, frames=torch.cat([store.frames[..., :1], torch.zeros_like(store.frames[..., 1:])], -1))
        clips = ClipSampler(store, pipeline, "joint", 8).training(torch.tensor([2, 3]), 1)
        assert bool((clips[:, 1] != 0).any()) == (coordinates == 3)


@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
def test_three_coordinates_with_a_score_are_turned_and_the_score_is_kept(stream: NetworkStream) -> None:
    store = pixels(4, scores=True)
    sampler, chosen = ClipSampler(store, "segments", stream, 8), torch.tensor([3, 2])
    turned, again = sampler.training(chosen, 7), sampler.training(chosen, 7)
    assert torch.equal(turned, again)
    assert not torch.equal(turned, sampler.training(chosen, 8))
    still = replace(sampler, augment=NO_ROTATION).training(chosen, 7)  # the same frames, not turned
    assert torch.equal(turned[:, 3], still[:, 3])
    assert not torch.allclose(turned[:, :3], still[:, :3])
    torch.testing.assert_close(turned[:, :3].norm(dim=1), still[:, :3].norm(dim=1))
    flat = ClipSampler(pixels(3, scores=True), "segments", stream, 8)
    assert torch.equal(flat.training(chosen, 7), replace(flat, augment=NO_ROTATION).training(chosen, 7))


@pytest.mark.parametrize("pipeline", ["crop", "frames"])
def test_a_score_is_not_taken_for_a_coordinate(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match=f"pipeline '{pipeline}' would treat the confidence score .* choose 'segments'"):
        ClipSampler(pixels(3, scores=True), pipeline, "joint", 8)


@pytest.mark.parametrize("kind", [KINDS["xy"], Kind("ntu25", 3), Kind("ucla20", 3), KINDS["xy and score"]], ids=str)
def test_clips_that_are_zero_throughout_train_to_finite_weights(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store can contain such clips, for example if only people beyond the first ones move."""
    splits = store_splits(open_store(make_store(tmp_path, kind)))
    frames = splits.store.frames.clone()
    for clip in [*splits.train[:9].tolist(), int(splits.val[0]), int(splits.test[0])]:
        frames[splits.store.offsets[clip] : splits.store.offsets[clip + 1]] = 0
    still = replace(splits, store=replace(splits.store, frames=frames))
    monkeypatch.setattr(build, "read_splits", lambda config: still)
    assert train_on(tmp_path / "store", tmp_path / "run", kind.stream) == 0
    opened = open_run(tmp_path / "run", "last")
    assert all(value.isfinite().all() for value in opened.network.state_dict().values())
    assert opened.mean_motion.isfinite().all()
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss_clean"] + row["loss_mixed"]) for row in losses)
