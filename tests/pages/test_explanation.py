"""Explanations: values of known games, loading and saving, and the HTML page of a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shapmix import explain
from shapmix.shapley.explanation import Explanation
from shapmix.skeleton.layout import load_layout
from shapmix.train import main as train

NTU, COCO = load_layout("ntu25"), load_layout("coco17")


def explanation(n: int = 6) -> Explanation:
    games = torch.rand(n, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Explanation(games, torch.arange(n) % 2, [f"clip{i}" for i in range(n)], NTU, "probability", 31 * n + 1)


def test_values_add_up() -> None:
    found = explanation()
    torch.testing.assert_close(found.base_values + found.parts.sum(1), found.full_values)
    pairs = found.interactions("k_sii", 2)
    assert pairs.shape == (6, 15)
    torch.testing.assert_close(pairs.sum(1), found.full_values - found.base_values)
    assert found.combinations.shape == found.rectified.shape == (6, 20)
    assert bool((found.rectified >= found.combinations.relu() - 1e-12).all())


def test_slices_are_explanations_of_their_clips() -> None:
    found = explanation()
    for index, names in ((2, ["clip2"]), (slice(1, 3), ["clip1", "clip2"]), ([5, 0], ["clip5", "clip0"])):
        part = found[index]
        assert part.names == names
        torch.testing.assert_close(part.parts, torch.stack([found.parts[int(name[4:])] for name in names]))


def test_means_by_label_have_their_errors() -> None:
    found = explanation(5)  # labels 0 1 0 1 0
    mean = found.by_label(found.parts)
    assert mean.labels.tolist() == [0, 1]
    assert mean.clips.tolist() == [3, 2]
    torch.testing.assert_close(mean.mean[1], found.parts[[1, 3]].mean(0))
    torch.testing.assert_close(mean.standard_error[0], found.parts[[0, 2, 4]].std(0) / 3**0.5)
    assert bool(found[[0, 1, 3]].by_label(found[[0, 1, 3]].parts).standard_error[0].isnan().all())  # one clip has none


def test_curves_follow_the_ranking() -> None:
    """v counts the best parts shown: insertion rises immediately, deletion falls immediately."""
    found = explanation(1)
    count = torch.tensor([(bits & 1) + (bits >> 3 & 1) for bits in range(32)], dtype=torch.float64)
    found = replace(found, games=count[None])
    insertion, deletion = found.curves(found.parts.argsort(1, descending=True))
    mean = found.mean_curve()
    assert insertion[0].tolist() == [0, 1, 2, 2, 2, 2]
    assert deletion[0].tolist() == [2, 1, 0, 0, 0, 0]
    torch.testing.assert_close(mean[0], torch.arange(6, dtype=torch.float64) * 2 / 5)


def planted(n: int, labels: int, spread: float, *, of: str) -> Explanation:
    """Additive games in which one part per label (or none) contributes 0.3, plus noise of size `spread`."""
    generator = torch.Generator().manual_seed(1)
    label = torch.arange(n) % labels
    value = spread * torch.randn(n, 5, generator=generator, dtype=torch.float64)
    if of == "label":
        value[torch.arange(n), label % 5] += 0.3
    if of == "half":  # the contribution changes sign between the two clips of a label
        value[:, 0] += torch.where(torch.arange(n) < n // 2, 0.3, -0.3)
    member = (torch.arange(32)[:, None] >> torch.arange(5) & 1).double()
    return Explanation(value @ member.T, label, [f"clip{i}" for i in range(n)], NTU, "probability", 31 * n + 1)


def test_a_part_that_matters_is_ranked_better_than_random() -> None:
    for labels in (5, 1):  # resampling labels; resampling the clips of one label
        found = planted(30, labels, 0.05, of="label").faithfulness()
        assert found.sign == 1
        assert "The ranking is clearly better than random." in found.verdict("probability")
        assert labels == 1 or bool(found.ranked[1, 1] < found.band[0, 1, 1])  # below the band of random rankings
        assert found.lost[0] == pytest.approx(0.3 / 2, abs=0.02)  # a random order shows the part in half of the steps
    torch.testing.assert_close(found.ranked[:, [0, -1]], found.random[:, [0, -1]])


def test_noise_is_not_told_from_random_although_each_clips_own_ranking_follows_it() -> None:
    found = planted(60, 6, 0.1, of="nothing")
    _, own = found.curves(found.parts.argsort(1, descending=True))
    assert float((found.mean_curve().flip(1) - own).mean()) > 0.05
    assert found.faithfulness().sign == 0
    assert "not distinguishable from random with 60 clips of 6 classes" in found.faithfulness().verdict("probability")


def test_a_ranking_that_others_contradict_is_worse() -> None:
    found = planted(12, 6, 0.001, of="half").faithfulness()
    assert found.sign == -1
    assert "The ranking is worse than random, with 12 clips of 6 classes." in found.verdict("probability")


def test_clips_without_others_of_their_label_do_not_count() -> None:
    alone = planted(4, 4, 0.05, of="label").faithfulness()
    assert (alone.sign, alone.ranked_by_others) == (0, False)
    assert "Give --per-class 2 or more" in alone.verdict("probability")
    assert planted(7, 4, 0.05, of="label").faithfulness().clips == 6
    one = planted(1, 1, 0.05, of="label").faithfulness()
    assert one.lost[1] is None
    assert one.sign == 0


def test_files_hold_everything_and_no_pickle(tmp_path: Path) -> None:
    found = explanation()
    found.save(tmp_path / "some.npz")
    again = Explanation.load(tmp_path / "some.npz", NTU)
    assert torch.equal(again.games, found.games)
    assert torch.equal(again.labels, found.labels)
    assert (again.names, again.output, again.rows_forwarded) == (found.names, found.output, found.rows_forwarded)
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]
    with np.load(tmp_path / "some.npz", allow_pickle=False) as file:
        assert sorted(file) == ["about", "games", "labels"]
    with pytest.raises(ValueError, match="belongs to layout 'ntu25' with parts"):
        Explanation.load(tmp_path / "some.npz", COCO)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "some.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut\.npz: not an explanation"):
        Explanation.load(tmp_path / "cut.npz", NTU)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({}, "'format'"),
        ({"format": 1}, "'layout'"),
        ({"format": 2}, "it has format 2; this version reads format 1"),
        (3, "not subscriptable"),
    ],
)
def test_files_of_another_kind(about: Any, reason: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", games=np.zeros((1, 32)), labels=np.zeros(1, dtype=np.int64), about=json.dumps(about))
    with pytest.raises(ValueError, match=rf"other\.npz: not an explanation: .*{reason}"):
        Explanation.load(tmp_path / "other.npz", NTU)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("empty", "array.npy", "missing"):
        with pytest.raises(ValueError, match=f"{name}: not an explanation"):
            Explanation.load(tmp_path / name, NTU)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on a few clips of the synthetic data."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["--run-dir", str(path), "--n-max", "8", "--imbalance", "4", "--epochs", "1", "--saliency.warmup-epochs", "0"]
    assert train([*options, "--network.widths", "8", "16", "--network.halve", "0", "1"]) == 0
    return path


def test_a_run_is_explained_in_one_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main([str(run), "--per-class", "2", "--out", str(tmp_path)]) == 0
    assert "index.html" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<img") == 5
    # one epoch on 8 clips per class: the network is at chance level
    assert "The ranking is not distinguishable from random with 48 clips of 24 classes: the contribution of" in page
    assert "faithful." not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # no external resources
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    found = Explanation.load(tmp_path / "explanation.npz", NTU)
    assert len(found) == 48
    assert found.rows_forwarded == 31 * 48 + 1
    assert page.count("<tr>") == 25
    one = tmp_path / "one"
    assert explain.main([str(run), "--clips", found.names[3], "--out", str(one), "--output", "logit"]) == 0
    assert Explanation.load(one / "explanation.npz", NTU).names == [found.names[3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips", "nobody"], "--clips: unknown clip 'nobody'; the first clip of the data set is"),
        (["--per-class", "0"], "--per-class: must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_explained_is_said(run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main([str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main([str(tmp_path)]) == 2
    assert "config.yaml: cannot read the configuration" in capsys.readouterr().err


def test_the_page_opens_in_a_browser_without_a_word(run: Path, tmp_path: Path) -> None:
    """Headless Chromium: no console messages, and a screenshot that is not blank."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    assert explain.main([str(run), "--per-class", "1", "--out", str(tmp_path)]) == 0
    shot = tmp_path / "shot.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--enable-logging=stderr",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,2400"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (tmp_path / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert shot.stat().st_size > 50_000
