"""Edge cases of the ops' arguments: fake tensors, subclasses, lazy negation, buffers that overlap or are tracked by autograd,
double backward, and the device of a launch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from shapmix import kernels
from shapmix.kernels import dispatch
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.reference import AugmentPlan, CropPlan, MixPlan
from shapmix.skeleton.layout import load_layout
from tests.kernels.examples import (
    augment_plan,
    crop_problem,
    graph_arguments,
    loss_arguments,
    mix_problem,
    plan_arguments,
    update_arguments,
)

NTU = load_layout("ntu25")


def norm_arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x, shortcut = torch.randn(2, 3, 6, 2, 2, generator=generator, dtype=dtype)
    lowest = torch.tensor([0.0, 0.0, 0.0, -torch.inf, -torch.inf, 0.0], dtype=dtype)
    line = torch.linspace(-1, 2, 6, dtype=dtype)
    return {"x": x, "weight": line, "bias": line.flip(0), "lowest": lowest, "shortcut": shortcut}


def branch_arguments() -> dict[str, Any]:
    x = torch.randn(4, 2, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    named = dict(zip(("narrow", "wide", "middle", "skip"), x, strict=True))
    return named | {"scale": torch.linspace(-1, 2, 8), "offset": torch.ones(8)}


def coalition_arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    clips, mean_motion, coalitions, part_of_joint, _, _ = mix_problem(dtype)
    return {"clips": clips, "mean_motion": mean_motion, "coalitions": coalitions, "part_of_joint": part_of_joint}


def mix_arguments(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    problem = mix_problem(dtype)
    return {"clips": problem.clips, "plan": problem.plan, "part_of_joint": problem.part_of_joint}


def crop_arguments() -> dict[str, Any]:
    return crop_problem(3)._replace(augment=augment_plan(3))._asdict()


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "graph_conv": lambda: graph_arguments(torch.float32),
    "batch_norm": norm_arguments,
    "join_branches": branch_arguments,
    "coalition_inputs": coalition_arguments,
    "mix_clips": mix_arguments,
    "balanced_mix_loss": loss_arguments,
    "sample_clips": crop_arguments,
    "draw_plan": plan_arguments,
    "saliency_update": update_arguments,
}
FILLED = {"coalition_inputs": "clips", "mix_clips": "clips", "sample_clips": "frames"}


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to every tensor of an argument or result."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, MixPlan | CropPlan | AugmentPlan):
        return type(value)(**changed(vars(value), change))
    if isinstance(value, dict):
        return {name: changed(each, change) for name, each in value.items()}
    return tuple(changed(each, change) for each in value) if isinstance(value, tuple) else value


def tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    changed(value, lambda tensor: (found.append(tensor), tensor)[1])
    return found


def call(op: str, arguments: dict[str, Any], **options: Any) -> Any:
    return getattr(kernels, op)(**arguments, **options)


def assert_same(found: Any, expected: Any) -> None:
    pairs = list(zip(tensors_of(found), tensors_of(expected), strict=True))
    assert pairs
    for left, right in pairs:
        torch.testing.assert_close(left.as_subclass(Tensor), right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", CALLS)
def test_fake_tensors_give_fake_results_of_the_same_kind(op: str) -> None:
    expected = tensors_of(call(op, CALLS[op]()))
    arguments = CALLS[op]()
    with FakeTensorMode() as mode:
        found = tensors_of(call(op, changed(arguments, mode.from_tensor)))
    assert all(isinstance(tensor, FakeTensor) for tensor in found)
    assert [(x.shape, x.dtype, x.device) for x in found] == [(x.shape, x.dtype, x.device) for x in expected]


@pytest.mark.parametrize("op", FILLED)
def test_fake_buffers_are_filled_by_fake_results(op: str) -> None:
    arguments = CALLS[op]()
    shape = call(op, arguments).shape
    with FakeTensorMode() as mode:
        fake, out = changed(arguments, mode.from_tensor), torch.empty(shape)
        assert call(op, fake, out=out) is out
        with pytest.raises(ValueError, match="out has shape"):
            call(op, fake, out=torch.empty(1))


def test_a_network_in_eval_mode_takes_fake_clips() -> None:
    network = CTRGCN(NTU, num_classes=7, num_people=1, in_channels=3).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        found = network(torch.empty(2, 3, 16, 25, 1))
    assert isinstance(found, FakeTensor)
    assert found.shape == (2, 7)


class Plain(Tensor):
    """A subclass without changes in behaviour."""


@pytest.mark.parametrize("op", CALLS)
def test_subclasses_give_the_same_values(op: str) -> None:
    expected = call(op, CALLS[op]())
    assert_same(call(op, changed(CALLS[op](), lambda tensor: tensor.as_subclass(Plain))), expected)


def negated(tensor: Tensor) -> Tensor:
    """The same values with the lazy negative bit set."""
    return torch._neg_view(tensor.neg()) if tensor.dtype != torch.bool else tensor


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", CALLS)
def test_lazy_negation_is_resolved(op: str, backend: str) -> None:
    expected = call(op, CALLS[op](), backend=backend)
    arguments = {name: changed(value, negated) if name != "table" else value for name, value in CALLS[op]().items()}
    assert any(tensor.is_neg() for tensor in tensors_of(arguments))
    assert_same(call(op, arguments, backend=backend), expected)


def test_negated_buffers_are_written_as_they_read_and_tables_refused() -> None:
    clips = mix_arguments()
    expected = call("mix_clips", clips)
    out = torch._neg_view(torch.empty_like(expected))
    assert torch.equal(call("mix_clips", clips, out=out), expected)
    with pytest.raises(ValueError, match="table has the lazy negative bit set"):
        call("saliency_update", update_arguments(table=negated(torch.ones(3, 4))))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", FILLED)
def test_a_buffer_may_overlap_no_argument(op: str, backend: str) -> None:
    """Also if two storages share the same memory."""
    arguments = CALLS[op]()
    result = call(op, arguments)
    for name, value in vars(arguments["plan"]).items() if "plan" in arguments else arguments.items():
        if not isinstance(value, Tensor):
            continue
        memory = np.zeros(result.nbytes + value.nbytes, dtype=np.uint8)
        out = torch.from_numpy(memory)[: result.nbytes].view(result.dtype).view(result.shape)
        begin = (result.nbytes - 1) // 8 * 8
        inside = torch.from_numpy(memory[begin : begin + value.nbytes]).view(value.dtype).view(value.shape).copy_(value)
        given = arguments | {name: inside}
        if "plan" in arguments:
            given = arguments | {"plan": type(arguments["plan"])(**vars(arguments["plan"]) | {name: inside})}
        with pytest.raises(ValueError, match=f"out overlaps {name} in memory; give a separate buffer"):
            call(op, given, backend=backend, out=out)


def test_a_table_may_overlap_no_argument() -> None:
    block = torch.rand(8, 3)
    with pytest.raises(ValueError, match="table overlaps logits in memory"):
        call("saliency_update", update_arguments(table=block.view(-1)[:12].view(3, 4), logits=block[3:]))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", FILLED)
def test_a_gradient_notices_that_a_buffer_was_written(op: str, backend: str) -> None:
    arguments = CALLS[op]()
    out = torch.ones_like(call(op, arguments))
    leaf = torch.ones_like(out, requires_grad=True)
    product = leaf * out
    call(op, arguments, backend=backend, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x.as_subclass(Plain)], ids=["plain", "subclass"])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_gradient_notices_that_a_table_was_written(backend: str, change: Callable[[Tensor], Tensor]) -> None:
    arguments = update_arguments()
    arguments["table"] = change(arguments["table"])
    leaf = torch.ones_like(arguments["table"], requires_grad=True)
    product = leaf * arguments["table"]
    call("saliency_update", arguments, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("op", FILLED)
def test_a_buffer_that_wants_a_gradient_is_refused(op: str) -> None:
    arguments = CALLS[op]()
    out = torch.ones_like(call(op, arguments), requires_grad=True)
    with pytest.raises(ValueError, match="out requires a gradient"):
        call(op, arguments, out=out)
    with torch.no_grad():
        assert torch.equal(call(op, arguments, out=out), call(op, arguments))
    with pytest.raises(ValueError, match="table requires a gradient"):
        call("saliency_update", update_arguments(table=torch.ones(3, 4, requires_grad=True)))


def float64(op: str) -> tuple[Callable[..., Any], list[Tensor]]:
    """An op as a function of the tensors it is differentiated with respect to, and those tensors."""
    arguments: dict[str, Any] = {
        "graph_conv": graph_arguments,
        "batch_norm": lambda: norm_arguments(torch.float64),
        "coalition_inputs": lambda: coalition_arguments(torch.float64),
        "mix_clips": lambda: mix_arguments(torch.float64),
        "balanced_mix_loss": lambda: loss_arguments(3, 4, torch.float64),
        "join_branches": lambda: changed(branch_arguments(), lambda x: x.double()),
    }[op]()
    if op == "graph_conv":  # small enough for finite differences of finite differences
        small = {"features": [..., slice(2), slice(3)], "relation_terms": [slice(None), slice(3)]}
        small |= {"shared": [slice(None), slice(3), slice(3)]}
        arguments = {name: value[tuple(small.get(name, [...]))] for name, value in arguments.items()}
    fixed = {"lowest", "log_prior", "lam"}
    names = [name for name, value in arguments.items() if name not in fixed and value_is_real(value)]

    def run(*leaves: Tensor, backend: str | None = None) -> Any:
        result = call(op, arguments | dict(zip(names, leaves, strict=True)), backend=backend)
        return result[0] if op == "batch_norm" else result

    return run, [arguments[name].clone().requires_grad_() for name in names]


def value_is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("op", [op for op in CALLS if op not in ("sample_clips", "draw_plan", "saliency_update")])
def test_gradients_of_gradients(op: str, backend: str) -> None:
    """Compared with finite differences in a random direction."""
    run, leaves = float64(op)
    assert torch.autograd.gradgradcheck(lambda *tensors: run(*tensors, backend=backend), leaves, fast_mode=True)


def test_gradients_of_gradients_of_the_registered_loss() -> None:
    _, leaves = float64("balanced_mix_loss")
    rest = [value for name, value in loss_arguments(3, 4, torch.float64).items() if name != "logits"]
    assert torch.autograd.gradgradcheck(lambda x: torch.ops.shapmix.balanced_mix_loss(x, *rest, None)[0], leaves, fast_mode=True)


def test_a_gradient_penalty_is_not_lost() -> None:
    """With a second loss term whose gradient is known, which would hide a penalty without a gradient."""
    arguments = loss_arguments(dtype=torch.float64)
    logits = arguments["logits"].requires_grad_()
    (slope,) = torch.autograd.grad(sum(call("balanced_mix_loss", arguments)), logits, create_graph=True)
    (found,) = torch.autograd.grad(slope.square().sum() + 0 * logits.sum(), logits)
    assert found.abs().max() > 1e-4


def fields_of(op: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the C++ kernel of an op is called with."""
    calls: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "kernel_of", lambda *_: lambda **fields: calls.append(fields))
        call(op, CALLS[op](), backend="cpp")
    (fields,) = calls
    return fields


@pytest.mark.parametrize("op", CALLS)
def test_the_native_code_names_every_field_that_is_wrong(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, unknown, of another type, dtype or number of axes, or without memory."""
    fields = fields_of(op, monkeypatch)
    run = dispatch.kernel_of(op, "cpp")
    with pytest.raises(TypeError, match=f"{op}: colour is no field of the op"):
        run(**fields, colour=1)
    with pytest.raises(TypeError, match=r"positional|incompatible"):
        run(*fields.values())
    for name, value in fields.items():
        wrong: dict[str, Any] = {}
        with pytest.raises(TypeError, match=f"{op}: {name} is missing; given are "):
            run(**{other: fields[other] for other in fields if other != name})
        if not isinstance(value, Tensor):
            continue
        named = f"{op}: {name}"
        wrong[f"{named} is torch.int32; give "] = value.int()
        wrong[f"{named} has {value.dim() + 3} axes; give "] = value[None, None, None]
        wrong[f"{named} is a tensor without memory"] = torch.empty_like(value, device="meta")
        wrong[f"{named} is 3; give a tensor"] = 3
        for message, given in wrong.items():
            with pytest.raises((TypeError, ValueError), match=message):
                run(**fields | {name: given})
    run(**fields)


def in_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


class Guards(list[torch.device]):
    """Replaces torch.cuda.device and records the requested devices."""

    def __call__(self, device: torch.device) -> Any:
        self.append(device)
        return nullcontext()


@pytest.mark.parametrize("op", CALLS)
def test_every_launch_is_made_on_the_device_of_its_tensors(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors on cuda:1, which need no GPU, and a back end that only inspects them."""
    guards, launched = Guards(), []
    import_module("torch._dynamo")  # it must see the true torch.cuda.device when fake tensors import it
    monkeypatch.setattr(torch.cuda, "device", guards)
    monkeypatch.setattr(dispatch, "kernel_of", lambda *_: lambda **fields: launched.append(len(guards)))
    monkeypatch.setattr(dispatch, "choose", lambda *_: "triton")
    monkeypatch.setattr(dispatch, "needs_registered_op", lambda *_: False)
    declaration = import_module("shapmix.kernels.op")
    monkeypatch.setattr(declaration, "check_no_overlap", lambda *_, **__: None)  # fake tensors have no addresses
    arguments = CALLS[op]()
    if op in ("graph_conv", "batch_norm", "join_branches"):
        arguments = changed(arguments, in_channels_last)
    with FakeTensorMode() as mode:
        call(op, changed(arguments, lambda tensor: mode.from_tensor(tensor).to("cuda:1")))
    assert launched == [1]
    assert guards == [torch.device("cuda:1")]


def test_no_guard_is_paid_for_on_the_cpu_and_no_other_place_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    guards = Guards()
    monkeypatch.setattr(torch.cuda, "device", guards)
    call("mix_clips", mix_arguments())
    assert not guards
    folder = Path(dispatch.__file__).parent
    assert sorted(path.name for path in folder.glob("*.py") if "kernel_of(" in path.read_text()) == ["dispatch.py", "op.py"]


def test_a_triton_launch_takes_any_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid axes other than the first are limited to 65,535 programs."""
    pytest.importorskip("triton", reason="triton is not installed")
    module = import_module("shapmix.kernels.triton_clips")
    grids: list[tuple[int, ...]] = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *_, **__: None

    monkeypatch.setattr(module, "sample_kernel", Recorder())
    names = ("offsets", "clip", "start", "length", "parents")
    nothing = dict.fromkeys(names, torch.empty(0, dtype=torch.int64, device="meta"))
    off = dict.fromkeys(field.name for field in fields(AugmentPlan))
    out = torch.empty(70_000, 3, 64, 25, 2, device="meta")
    angles = torch.empty(0, 3, device="meta")
    module.sample_clips(out=out, frames=out, angles=angles, stream="joint", num_frames=64, **nothing, **off)
    assert grids == [(13 * 70_000,)]
