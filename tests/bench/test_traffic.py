"""The model of a pass's traffic: its limits, which every change that lowers them lowers, and the laws that it must keep."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import instruction_counts, traffic

pytest.importorskip("triton", reason="triton is not installed")

LIMITS = {  # launches and GB in bfloat16 at 128 clips, in training and in eval mode
    True: (200, 22.9),
    False: (36, 3.06),
}
LAYERS = [f"l{index + 1}" for index in range(len(traffic.WIDTHS))]


@pytest.mark.parametrize("training", list(LIMITS))
def test_a_pass_keeps_within_its_limits(training: bool) -> None:
    moves, _ = traffic.count(True, torch.bfloat16, 128, training)
    total = traffic.total_of(moves)
    launches, gigabytes = LIMITS[training]
    assert total.launches <= launches
    assert total.bytes_moved <= gigabytes * 1e9
    assert total.bytes_moved >= traffic.floor_bytes(torch.bfloat16, 128, training)
    assert {move.layer for move in moves} >= set(LAYERS)


def test_training_takes_at_most_half_of_the_references_memory() -> None:
    (_, ours), (_, reference) = (traffic.count(ours, torch.bfloat16, 128, True) for ours in (True, False))
    assert ours <= 0.5 * reference


def test_twice_the_clips_move_twice_the_activations() -> None:
    """Weights and partial sums do not grow with the clips."""
    few, many = (traffic.total_of(traffic.count(True, torch.float32, clips, True)[0]) for clips in (64, 128))
    assert few.launches == many.launches
    assert 1.9 <= many.bytes_moved / few.bytes_moved <= 2.0


def test_torchs_operations_are_counted_as_they_launch() -> None:
    counted = traffic.TorchOps()
    with FakeTensorMode():
        x, w, b = torch.empty(2, 8, 3, 5), torch.empty(4, 8, 1, 1), torch.empty(4)
        with counted:
            y = torch.conv2d(x, w, b)
            y.view(-1).relu_()
            y[:, :2].expand(2, 2, 3, 5) + 1
    kinds = [(move.name, move.read, move.written) for move in counted.moves]
    size = 2 * 4 * 15 * 4
    assert kinds == [
        ("convolution", 2 * 8 * 15 * 4 + 4 * 8 * 4, size),
        ("convolution: bias", size, size),
        ("relu_", size, size),
        ("add", size // 2, size // 2),
    ]
    assert counted.peak == size + size // 2


def test_every_graph_unit_of_a_step_has_its_instructions() -> None:
    """In bfloat16 with 128 clips; they take longer than bytes and products."""
    counts = instruction_counts.read()
    for clips, training in traffic.passes_of("step", 128):
        moves = traffic.with_instructions(traffic.count(True, torch.bfloat16, clips, training)[0], counts)
        units = [move for move in moves if "graph_unit" in move.name]
        assert units
        assert all(move.instructions for move in units)
        assert sum(move.seconds for move in units) > sum(move.seconds_but_for_instructions for move in units)
        assert all(line.endswith(traffic.MARK) for line in traffic.table(units, lambda move: move.name))


@pytest.mark.parametrize("is_stale", [False, True])
def test_stale_counts_are_not_predicted_from(
    is_stale: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_stale:
        monkeypatch.setattr(instruction_counts, "digest", lambda _modules: "")
    traffic.main(["--mode", "coalitions", "--clips", "125"])
    out = capsys.readouterr().out
    assert ("count again with" in out) == is_stale
    assert (traffic.MARK in out) != is_stale


def test_the_command_ends_with_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    traffic.main(["--clips", "4", "--mode", "step", "--dtype", "fp32"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("total: ")
    assert " launches, " in lines[-1]
    assert lines[-1].endswith(" ms")


@pytest.mark.parametrize(("backbone", "gigabytes"), [("stgcn", 39.0), ("aagcn", 93.7)])
def test_other_backbones_move_less_than_as_modules(backbone: str, gigabytes: float) -> None:
    """In training, where their norms take shortcut and ReLU along."""
    ours, reference = (
        traffic.total_of(traffic.count(fused, torch.bfloat16, 128, True, backbone)[0]).bytes_moved for fused in (True, False)
    )
    assert ours <= gigabytes * 1e9
    assert ours <= 0.82 * reference
