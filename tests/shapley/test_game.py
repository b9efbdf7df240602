"""The part game on CTR-GCN and on any module: values, row counts, memory, restored state; captum as an oracle."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from shapmix.networks.ctrgcn import CTRGCN
from shapmix.reference import coalition_inputs
from shapmix.shapley.game import PartGame
from shapmix.shapley.values import shapley_values
from shapmix.skeleton.layout import load_layout

NTU = load_layout("ntu25")
MEAN = torch.randn(3, 8, 25, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def network(dtype: torch.dtype = torch.float64) -> CTRGCN:
    torch.manual_seed(0)
    return CTRGCN(NTU, 4, widths=(8, 16), num_people=1, graph_gain=1.0).to(dtype)


def clips_of(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, 8, 25, 1, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)


class Counting(nn.Module):
    """A third-party module: counts its forward passes and the largest one, draws random numbers, writes a buffer."""

    def __init__(self, largest: int = 1 << 30) -> None:
        super().__init__()
        self.classes = nn.Linear(3, 4).double()
        self.register_buffer("calls", torch.zeros(()))
        self.largest, self.sizes = largest, []

    def forward(self, clips: Tensor) -> Tensor:
        if len(clips) > self.largest:
            raise torch.OutOfMemoryError("no memory left")
        self.sizes.append(len(clips))
        self.calls += 1
        torch.rand(1)
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.classes(clips.mean((2, 3, 4)))


@pytest.mark.parametrize("output", ["probability", "logit", "log_prob"])
def test_a_table_holds_every_coalition(output: str) -> None:
    """The table column by column, with the plain op and one forward pass each."""
    model, clips, labels = network(), clips_of(3), torch.tensor([0, 3, 1])
    game = PartGame(model, NTU, MEAN, output)
    table, every = game.table(clips, labels), game.table(clips)
    assert table.shape == (3, 32)
    assert every.shape == (3, 32, 4)
    assert torch.equal(every.gather(2, labels.view(3, 1, 1).expand(-1, 32, 1))[..., 0], table)
    act = {"probability": lambda x: x.softmax(1), "logit": lambda x: x, "log_prob": lambda x: x.log_softmax(1)}[output]
    model.eval()
    with torch.no_grad():
        for coalition in range(32):
            rows = coalition_inputs(clips, MEAN, torch.tensor([coalition]), NTU.part_of_joint)
            torch.testing.assert_close(every[:, coalition], act(model(rows)), rtol=1e-10, atol=1e-12)


def test_rows_are_31_a_sample_and_one() -> None:
    model = Counting()
    game = PartGame(model, NTU, MEAN, max_rows=40)
    game.table(clips_of(5))
    assert game.rows_forwarded == sum(model.sizes) == 31 * 5 + 1
    assert max(model.sizes) <= 40


@pytest.mark.parametrize("max_rows", [1, 7, 31, 32, 62, 63, 1000])
def test_the_result_does_not_depend_on_the_chunks(max_rows: int) -> None:
    model, clips = network(torch.float32), clips_of(3, torch.float32)
    mean = MEAN.float()
    expected = PartGame(model, NTU, mean).table(clips)
    seen: list[tuple[int, int]] = []
    game = PartGame(model, NTU, mean, max_rows=max_rows)
    found = game.table(clips, progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert seen[-1] == (94, 94)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert all(right - left <= max_rows for (left, _), (right, _) in pairwise(seen))


def test_memory_that_runs_out_halves_the_chunks() -> None:
    model = Counting(largest=9)
    game = PartGame(model, NTU, MEAN, max_rows=62)
    found = game.table(clips_of(4))
    assert max(model.sizes) <= 9
    assert sum(model.sizes) == 31 * 4 + 1
    model.largest = 1 << 30
    torch.testing.assert_close(PartGame(model, NTU, MEAN).table(clips_of(4)), found, rtol=0, atol=1e-12)
    model.largest = 0
    with pytest.raises(torch.OutOfMemoryError):
        game.table(clips_of(4))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails: bool) -> None:
    model = Counting(largest=0 if fails else 1 << 30)
    model.train()
    model.classes.eval()  # modules have different modes
    torch.manual_seed(3)
    before = torch.get_rng_state()
    game = PartGame(model, NTU, MEAN)
    if fails:
        with pytest.raises(torch.OutOfMemoryError):
            game.table(clips_of(2))
    else:
        game.table(clips_of(2))
    assert model.training
    assert not model.classes.training
    assert float(model.calls) == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()


def test_autocast_stays_close() -> None:
    model, clips, mean = network(torch.float32), clips_of(2, torch.float32), MEAN.float()
    half = PartGame(model, NTU, mean, autocast=torch.bfloat16).table(clips)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, PartGame(model, NTU, mean).table(clips), rtol=0, atol=0.05)


def test_bad_arguments_are_named() -> None:
    model = Counting()
    with pytest.raises(ValueError, match="max_rows is 0"):
        PartGame(model, NTU, MEAN, max_rows=0)
    game = PartGame(model, NTU, MEAN)
    with pytest.raises(ValueError, match=r"clips has shape \[2, 3, 7, 25, 1\]; give \[N, 3, 8, 25, 1\]"):
        game.table(torch.zeros(2, 3, 7, 25, 1).double())
    with pytest.raises(ValueError, match=r"labels has shape \[3\]; give \[2\]"):
        game.table(clips_of(2), torch.zeros(3, dtype=torch.int64))


def test_captum_agrees() -> None:
    """Exact Shapley values with a feature mask of the parts, on the same network."""
    captum = pytest.importorskip("captum.attr", reason="captum is not installed (the 'oracles' extra)")
    model, clips, labels = network().eval(), clips_of(2), torch.tensor([1, 2])
    ours = shapley_values(PartGame(model, NTU, MEAN).table(clips, labels), 5)
    mask = NTU.part_of_joint.view(1, 1, 1, 25, 1).expand(1, 3, 8, 25, 1).contiguous()

    def probability(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return model(rows).softmax(1)

    explainer = captum.ShapleyValues(probability)
    # every order of the five parts: captum's exact mode
    theirs = explainer.attribute(clips, MEAN[None], target=labels, feature_mask=mask, perturbations_per_eval=1)
    joints = [int((NTU.part_of_joint == part).nonzero()[0]) for part in range(5)]
    assert theirs.shape == clips.shape
    # captum assigns the value of a part to each of its elements
    found = theirs[:, 0, 0, joints, 0].double()
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)
