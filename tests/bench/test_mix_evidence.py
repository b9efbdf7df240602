"""bench.mix_evidence on networks with a known answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.mix_evidence import averaged, evidence
from shapmix import load_layout
from shapmix.mixing.rule import Aligner
from shapmix.reference import mix_clips

UCLA = load_layout("ucla20")


class Place(nn.Module):
    """Class k with the logit 0 where the clip's joints are at place k on average, less 2 |distance| for the others."""

    def forward(self, clips: Tensor) -> Tensor:
        return -2 * (clips[:, 0].mean((1, 2, 3))[:, None] - torch.arange(4)).abs()


def clips() -> tuple[Tensor, Tensor]:
    """One pose, in four places by class."""
    labels = torch.arange(40) % 4
    pose = torch.randn(1, 3, 16, 20, 1, generator=torch.Generator().manual_seed(0))
    pose = pose - pose.mean((2, 3, 4), keepdim=True)
    place = torch.zeros(40, 3, 1, 1, 1)
    place[:, 0] = labels.view(-1, 1, 1, 1)
    return pose + place, labels


def test_parts_that_differ_in_place_alone_carry_nothing_once_they_are_aligned() -> None:
    some, labels = clips()
    pasted = evidence(Place(), some, labels, UCLA, mix_clips)
    aligned = evidence(Place(), some, labels, UCLA, Aligner(UCLA, 3, scores=False))
    assert pasted["label"] == aligned["label"]
    assert pasted["share"] > aligned["share"] + 0.1
    host = Place()(some[:4]).double().softmax(1)  # an aligned copy of the host is the host
    assert aligned["host"] == pytest.approx(float(host.diagonal().mean()), abs=0.02)
    for found in (pasted, aligned):
        assert found["host"] + found["partner"] + found["neither"] == pytest.approx(1)


def test_a_network_that_knows_nothing_leaves_half_outside() -> None:
    some, labels = clips()

    class Nothing(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            return torch.zeros(len(clips), 4)

    found = evidence(Nothing(), some, labels, UCLA, mix_clips)
    assert [found[name] for name in ("host", "partner", "neither", "share")] == pytest.approx([0.25, 0.25, 0.5, 0.5])


def test_runs_are_averaged() -> None:
    runs = [{"accuracy": value, "pasted": {"host": value}, "aligned": {"host": 1 - value}} for value in (0.2, 0.6)]
    assert averaged(runs) == {
        "runs": 2,
        "accuracy": pytest.approx(0.4),
        "pasted": {"host": pytest.approx(0.4)},
        "aligned": {"host": pytest.approx(0.6)},
    }
