"""Plots: orientation of poses, legible labels, and names drawn literally."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from shapmix.data.clips import ClipStore
from shapmix.pages import run
from shapmix.pictures import plots
from shapmix.skeleton.layout import load_layout

COCO, NTU = load_layout("coco17"), load_layout("ntu25")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The saved figures."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, *arguments: object, **options: object) -> None:
        figures.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return figures


def standing(channels: int, *, down: bool) -> torch.Tensor:
    """[C, 2, 17, 1]: nose above hips above ankles; y points down, as in an image."""
    pose = torch.rand(channels, 2, 17, 1, generator=torch.Generator().manual_seed(0))
    height = torch.tensor([5.0] + [5.2] * 4 + [4.0] * 6 + [3.0] * 2 + [1.5] * 2 + [0.0] * 2)
    pose[1] = (480 - 80 * height if down else height)[None, :, None]
    return pose


def store(channels: int, *, scores: bool) -> ClipStore:
    frames, offsets = torch.rand(3, 1, 17, channels), torch.tensor([0, 3])
    layout = replace(COCO, dimensions=())
    return ClipStore(frames, offsets, torch.zeros(1, dtype=torch.int64), ["clip"], layout, ["wave"], scores=scores)


@pytest.mark.parametrize(
    ("channels", "scores", "down"), [(3, True, True), (2, False, True), (3, False, False), (4, True, False), (1, False, False)]
)
def test_y_points_down_in_two_dimensions_unless_the_layout_says_otherwise(channels: int, scores: bool, down: bool) -> None:
    clips = store(channels, scores=scores)
    assert clips.up == (1, -1 if down else 1)
    assert replace(clips, layout=replace(clips.layout, up="y")).up == (1, 1)


def test_the_front_view_has_the_declared_axis_up() -> None:
    pose = torch.tensor([[1.0, 2.0, 3.0]])
    assert plots.front(pose, 1, up=(2, 1)).tolist() == [[1, 3]]
    assert plots.front(pose, 1, up=(1, -1)).tolist() == [[1, -2]]
    assert plots.front(pose, 1, up=(0, 1)).tolist() == [[2, 1]]
    assert plots.front(pose[:, :1], 1, up=(1, 1)).tolist() == [[1, 0]]


@pytest.mark.parametrize("down", [True, False])
def test_heads_are_up(down: bool, drawn: list[Figure], tmp_path: Path) -> None:
    clip = standing(2 if down else 3, down=down)
    values = torch.rand(1, 5)
    plots.plot_parts(tmp_path / "parts.png", values, values, clip[:, 0, :, 0].T, COCO, ["wave"], up=(1, -1 if down else 1))
    changed = {"mixed": torch.arange(2)[:, None].expand(2, 17) == 1}  # in the second frame
    clips = {"clip": clip, "mixed": clip}
    plots.plot_mixed_clip(tmp_path / "mixed.png", clips, changed, COCO, frames=2, up=(1, -1 if down else 1))
    colours = [{line.get_color() for line in axes.lines} for axes in drawn[-1].axes]
    assert colours == [{"#3b4a5a"}] * 3 + [{"#d95f02"}]
    assert len(drawn) == 2
    for figure in drawn:
        axes = next(found for found in (*figure.axes, *(child for each in figure.axes for child in each.child_axes)) if found.lines)
        # in COCO's joint order the first bone is eye to nose, the last ankle to knee
        first, last = axes.lines[0].get_ydata(), axes.lines[-1].get_ydata()
        assert axes.transData.transform((0, first[1]))[1] > axes.transData.transform((0, last[0]))[1]
    moving = run.moving("clip", clip, up=(1, -1 if down else 1))["frames"][0]
    assert moving[0][1] > moving[11][1] > moving[15][1]  # nose, hip, ankle; y points up on the page
    assert all(0 <= value <= 1 for joint in moving for value in joint)


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_labels_of_interactions_do_not_cover_each_other(drawn: list[Figure], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-4, 1e-3, 0.1, 3.0):
        plots.plot_interactions(tmp_path / "graph.png", scale * torch.randn(15, generator=generator), NTU)
        boxes = [text.get_window_extent() for text in texts(drawn[-1])]
        assert len(boxes) > 10
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_what_rounds_to_zero_has_no_label(drawn: list[Figure], tmp_path: Path) -> None:
    values = torch.tensor([0.2, -1e-5, 0.0, 0.1, -0.1] + [0.1] + [-1e-5, 1e-5] * 4 + [0.0])
    plots.plot_interactions(tmp_path / "graph.png", values, NTU)
    shown = [text.get_text() for text in texts(drawn[-1])]
    assert sum("\n" not in text for text in shown) == 1  # one pair
    assert not any("-0.000" in text for text in shown)
    plots.plot_interactions(tmp_path / "graph.png", torch.zeros(15), NTU)
    assert all("\n" in text for text in map(Text.get_text, texts(drawn[-1])))


def test_names_are_drawn_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["$\\nothing{", "a_b^c"]
    plots.plot_confusion(tmp_path / "confusion.png", torch.eye(2), names)
    values = torch.rand(2, 5)
    plots.plot_parts(tmp_path / "parts.png", values, values, standing(3, down=False)[:, 0, :, 0].T, COCO, names)
    assert [axes.get_title() for axes in drawn[1].axes] == names
