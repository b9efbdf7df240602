"""State dicts as others publish them, under our names."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from shapmix import load_layout, networks
from shapmix.networks.backbones import find_backbone
from shapmix.networks.published import fit_people, our_names, unwrapped

STATE = {"l1.weight": torch.ones(2), "fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict((f"module.{name}", value) for name, value in STATE.items()),
        {"state_dict": {f"_orig_mod.module.{name}": value for name, value in STATE.items()}, "epoch": 3},
        {"model": {f"model.{name}": value for name, value in STATE.items()}, "optimizer": {"lr": 1}},
        {
            "meta": {"epoch": 1, "config": "text"},
            "state_dict": {"backbone.l1.weight": STATE["l1.weight"]}
            | {f"cls_head.fc_cls.{name}": STATE[f"fc.{name}"] for name in ("weight", "bias")},
        },
        {
            "state_dict": {"module.backbone.l1.weight": STATE["l1.weight"]}
            | {f"module.cls_head.{name}": STATE[name] for name in ("fc.weight", "fc.bias")}
        },
    ],
)
def test_what_lies_around_a_state_dict_is_taken_off(content: dict) -> None:
    found = our_names(unwrapped(content), None, STATE.keys())
    assert found.keys() == STATE.keys()
    assert all(found[name] is value for name, value in STATE.items())


def test_names_that_the_network_has_are_kept() -> None:
    known = {"model.backbone.l1.weight": torch.ones(1)}  # a network that wraps another
    assert our_names(dict(known), None, known) == known
    with pytest.raises(ValueError, match=r"'backbone\.l1\.weight' and another of its tensors would both be 'l1\.weight'"):
        our_names({"l1.weight": torch.ones(1), "backbone.l1.weight": torch.ones(1)}, None, ())


def test_a_network_translates_its_published_names() -> None:
    def translate(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("backbone.gcn.0", "l1"): value for name, value in state.items()}

    state = {"module.backbone.gcn.0.weight": torch.ones(2), "module.cls_head.fc.weight": torch.ones(3, 2)}
    assert our_names(unwrapped(state), translate, STATE.keys()).keys() == {"l1.weight", "fc.weight"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "it holds a Tensor, not a state dict"),
        ({"epoch": 1, "names": ["a"]}, "there is no state dict in it; its keys are 'epoch', 'names'"),
        ({}, "its keys are none"),
        ({"state_dict": {"a": torch.ones(1), "b": 3}}, "its state dict holds 'b', which is a int and not a tensor"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' is a sparse"),
    ],
)
def test_what_is_no_state_dict_says_so(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unwrapped(content)


def test_an_input_norm_is_fitted_to_the_people() -> None:
    names = ("weight", "bias", "running_mean", "running_var")

    def norm(channels: int) -> dict[str, torch.Tensor]:
        return {f"data_bn.{name}": torch.arange(channels) for name in names} | {"data_bn.num_batches_tracked": torch.tensor(5)}

    state = norm(12)  # two people of six channels
    assert "first one is used" in (fit_people(state, 6, 6) or "")
    assert all(torch.equal(state[f"data_bn.{name}"], torch.arange(6)) for name in names)
    assert fit_people(state, 6, 6) is None
    assert "of one person is used for each of 2" in (fit_people(state, 12, 6) or "")
    assert all(torch.equal(state[f"data_bn.{name}"], torch.arange(6).repeat(2)) for name in names)
    for theirs, channels in ((12, 18), (10, 6), (12, 5)):  # more people than are known, and other joints
        state = norm(theirs)
        assert fit_people(state, channels, 6 if channels != 5 else 5) is None
        assert len(state["data_bn.weight"]) == theirs
    assert fit_people({}, 6, 6) is None


def test_a_norm_of_one_person_computes_the_same_for_two() -> None:
    torch.manual_seed(0)
    one, two = (networks.CTRGCN(load_layout("ucla20"), 3, num_people=people, widths=(8,)).eval() for people in (1, 2))
    nn.init.normal_(one.data_bn.running_mean)
    state = one.state_dict()
    fit_people(state, 2 * 60, 60)
    two.load_state_dict(state)
    clips = torch.randn(2, 3, 8, 20, 2)
    with torch.no_grad():
        expected = (one(clips[..., :1]) + one(clips[..., 1:])) / 2
        torch.testing.assert_close(two(clips), expected)


def test_the_ctrgcn_of_pyskl_is_refused_since_it_computes_something_else() -> None:
    translate = find_backbone("ctrgcn").from_published
    with pytest.raises(ValueError, match="one ReLU more in each layer"):
        our_names({"backbone.net.0.gcn1.A": torch.ones(3, 2, 2)}, translate, ())
