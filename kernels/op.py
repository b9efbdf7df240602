"""The declaration of an op: its checks and outputs, from which the registered torch op, its gradient and the call follow.

The function under `@op` has the public signature. Its body checks the arguments and returns the outputs, unwritten, so it serves as
allocation and as fake kernel alike. The kernels of an op stand beside their code (see `dispatch.kernel`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from . import dispatch
from .checks import Layout, check_no_overlap, check_not_negated

P = ParamSpec("P")
R = TypeVar("R")
FLAT_TYPES = {Tensor: "Tensor", int: "SymInt", float: "float", bool: "bool", str: "str"}


class Gradient(NamedTuple):
    """How an op is differentiated.

    Attributes:
        of: the arguments that receive a gradient.
        saves: the tensors (arguments, plans, outputs) that `backward` reads; it also finds every other argument that is no tensor,
            and in `wanted` the arguments whose gradient is wanted.
        backward: (gradient of the first output, saved values) -> gradients of `of`. Only the first output is differentiable. If
            torch.is_grad_enabled(), it must use torch ops that autograd records, for double backward.
        apart: the op returns the elements of its first output, as tensors of their own, instead of its outputs.
    """

    of: tuple[str, ...]
    saves: tuple[str, ...]
    backward: Callable[[Tensor, Any], tuple[Tensor | None, ...]]
    apart: bool = False


def op(
    *,
    reference: Callable[..., Any],
    outputs: tuple[str, ...] = ("out",),
    layouts: Mapping[str, Layout] | None = None,
    check_values: str | None = None,
    chosen_by: str | None = None,
    mutates: tuple[str, ...] = (),
    gradient: Gradient | None = None,
    without_gradient: tuple[str, ...] = (),
    traced_reference: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares the decorated function as an op, registered as torch.ops.shapmix.<name>.

    The function takes tensors, dataclasses of tensors (or None for one whose tensors are optional), numbers and strings, a keyword
    `backend` and, if it returns one tensor, optionally a keyword `out`. Kernels and the registered op receive dataclasses as their
    fields, everything by name.

    Args:
        reference: computes the outputs from the same arguments.
        outputs: the names under which kernels find the outputs.
        layouts: how kernels read a tensor, if not contiguous: (tensor, first tensor) -> tensor.
        check_values: the function of the C++ module that checks values on CPU tensors, where another back end runs.
        chosen_by: the tensor whose device and dtype select the back end; by default the first.
        mutates: arguments that are written in place.
        gradient: None if the outputs have no gradient.
        without_gradient: optional arguments that are only allowed where no gradient is recorded.
        traced_reference: autograd and torch.compile see the reference, for an op that is fast only in inference.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        declared = Op(function, reference, outputs, layouts or {}, chosen_by, mutates, gradient)
        declared.check_values, declared.without_gradient = check_values, without_gradient
        declared.traced_reference = traced_reference

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return cast(R, declared(args, kwargs))

        return call

    return declare


class Op:
    """One op: the gate between a plain call, autograd and the registered op."""

    check_values: str | None
    without_gradient: tuple[str, ...]
    traced_reference: bool

    def __init__(
        self,
        function: Callable[..., Any],
        reference: Callable[..., Any],
        outputs: tuple[str, ...],
        layouts: Mapping[str, Layout],
        chosen_by: str | None,
        mutates: tuple[str, ...],
        gradient: Gradient | None,
    ) -> None:
        self.name = function.__name__.lstrip("_")
        self.function, self.reference, self.outputs, self.mutates, self.gradient = function, reference, outputs, mutates, gradient
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
        self.names = tuple(parameters)
        self.defaults = {name: value.default for name, value in parameters.items() if value.default is not value.empty}
        self.required = parameters.keys() - self.defaults.keys()
        self.takes_out = "out" in parameters and parameters["out"].kind is inspect.Parameter.KEYWORD_ONLY
        self.options = {"backend", "out"} if self.takes_out else {"backend"}
        arguments = {name: hints[name] for name in self.names if name not in self.options}
        self.plans = {name: plan for name, kind in arguments.items() if (plan := _plan_type(kind))}
        self.fields = {name: tuple(field.name for field in fields(plan)) for name, plan in self.plans.items()}
        flat: dict[str, Any] = {}
        for name, kind in arguments.items():
            flat |= get_type_hints(self.plans[name]) if name in self.plans else {name: kind}
        self.flat = tuple(flat)
        self.tensors = tuple(name for name, kind in flat.items() if kind in (Tensor, Tensor | None))
        self.layouts = tuple((name, layouts[name]) for name in self.tensors if name in layouts)
        self.contiguous = tuple(name for name in self.tensors if name not in layouts)
        self.first = chosen_by or self.tensors[0]
        self.differentiable = gradient.of if gradient else ()
        self.apart = gradient is not None and gradient.apart
        self.saved = tuple(part for name in (gradient.saves if gradient else ()) for part in self.fields.get(name, (name,)))
        self.numbers = tuple(name for name in self.flat if name not in self.tensors)
        returned = ", ".join(["Tensor"] * len(outputs))
        inputs = ", ".join(f"{_schema_type(kind, name in mutates)} {name}" for name, kind in flat.items())
        schema = f"({inputs}, str? backend) -> {returned if len(outputs) == 1 else f'({returned})'}"
        registered = torch.library.custom_op(f"shapmix::{self.name}", self._registered, mutates_args=mutates, schema=schema)
        registered.register_fake(self._fake)
        if gradient:
            registered.register_autograd(self.backward, setup_context=self.setup)
        self.torch_op = getattr(torch.ops.shapmix, self.name)
        if not self.name.endswith("_backward"):
            dispatch.OPS[self.name] = reference

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**self.defaults, **dict(zip(self.names, args)), **kwargs}  # noqa: B905  the call of `function` checks the number
        if len(given) != len(self.names) or not self.required <= given.keys():
            inspect.signature(self.function).bind(*args, **kwargs)  # raises TypeError
        backend, out = given.pop("backend"), given.pop("out") if self.takes_out else None
        flat = self._flat(given) if self.plans else given
        tensors = [flat[name] for name in self.tensors]
        if self.mutates and not torch.compiler.is_compiling():
            for name in self.mutates:
                check_not_negated(name, given[name])
        traced = dispatch.needs_registered_op(tensors if out is None else (*tensors, out))
        if self.traced_reference and (traced or dispatch.wants_gradient(tensors)):
            return self.reference(**self._structured(flat))
        recorded = out is None and self.differentiable and dispatch.wants_gradient([flat[name] for name in self.differentiable])
        if recorded and self.without_gradient and not torch.compiler.is_compiling():
            self._check_without_gradient(given)
        if traced:
            inputs = (*(flat[name] for name in self.flat), backend)
            if out is None:
                found = self.torch_op(*inputs)
                return _elements(found[0]) if self.apart else found
            with torch.no_grad():
                self.function(*args, **kwargs)  # checks the buffer
                return out.copy_(self.torch_op(*inputs))
        results = self.function(*args, **kwargs)
        if recorded:
            return _Recorded.apply(self, [results], *(flat[name] for name in self.flat), backend)  # type: ignore[no-untyped-call]
        found = self._compute(results, flat, backend, out)
        return found[0].unbind() if self.apart else found

    def _compute(self, results: Any, flat: dict[str, Any], backend: str | None, out: Tensor | None) -> Any:
        """Writes the results, and returns them."""
        several = results if isinstance(results, tuple) else (results,)
        first = flat[self.first]
        overwrites = self.mutates or out is not None
        if overwrites:
            self._check_overlaps(flat, out)
        chosen = dispatch.choose(self.name, first, backend)
        if self.check_values and chosen != "cpp" and first.is_cpu:
            dispatch.check_values(self.check_values, self._prepared(flat))
        if chosen == "reference":
            with torch.no_grad():
                found = self.reference(**self._structured(flat))
            if out is not None:
                return out.copy_(found)
            return _in_layout(found, several)
        named = self._prepared(flat)
        named.update(zip(self.outputs, several, strict=True))
        run = dispatch.kernel_of(self.name, chosen)
        if first.is_cuda:
            with torch.cuda.device(first.device):  # Triton launches on the current device, not on the device that owns the tensors
                run(**named)
        else:
            run(**named)
        if overwrites:
            for written in (out, *(flat[name] for name in self.mutates)):
                if written is not None:  # a backward pass that saved the old contents then raises
                    torch.autograd.graph.increment_version(written)
        return results

    def _prepared(self, flat: dict[str, Any]) -> dict[str, Any]:
        """The arguments in the layout that kernels read."""
        ready = dict(flat)
        first = ready[self.first]
        for name, layout in self.layouts:
            if ready[name] is not None:
                ready[name] = layout(ready[name], first)
        for name in self.contiguous:
            value = ready[name]
            if value is not None and not value.is_contiguous():
                ready[name] = value.contiguous()
        return ready

    def _check_overlaps(self, flat: dict[str, Any], out: Tensor | None) -> None:
        written = {name: flat[name] for name in self.mutates} | ({} if out is None else {"out": out})
        for name, value in written.items():
            check_no_overlap(name, value, **{other: flat[other] for other in self.tensors if other not in self.mutates})

    def _check_without_gradient(self, given: dict[str, Any]) -> None:
        for name in self.without_gradient:
            if given[name] is not None:
                raise ValueError(
                    f"{self.name}: {name} is given but a gradient is required; use torch.no_grad(), or leave {name} out"
                )

    def _flat(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments with plans replaced by their fields."""
        flat = dict(given)
        for name, parts in self.fields.items():
            plan = flat.pop(name)
            for part in parts:
                flat[part] = None if plan is None else getattr(plan, part)
        return flat

    def _structured(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the function, with their plans, but without `backend` and `out`."""
        found = {}
        for name in self.names:
            if name in self.plans:
                parts = [flat[part] for part in self.fields[name]]
                found[name] = None if all(part is None for part in parts) else self.plans[name](*parts)
            elif name not in self.options:
                found[name] = flat[name]
        return found

    def _registered(self, *values: Any) -> Any:
        """The registered op. Its outputs have the layout of the fake ones."""
        flat = dict(zip(self.flat, values))  # noqa: B905  the last value is `backend`
        return self._compute(self._fake(*values), flat, values[-1], None)

    def _fake(self, *values: Any) -> Any:
        flat = dict(zip((*self.flat, "backend"), values, strict=True))
        return self.function(**self._structured(flat), backend=flat["backend"])

    def setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Saves for the backward pass what the gradient names."""
        values = dict(zip((*self.flat, "backend"), inputs, strict=True))
        if self.without_gradient:
            self._check_without_gradient(values)
        outputs = output if isinstance(output, tuple) else (output,)
        if len(outputs) > 1 and not (self.apart and getattr(ctx, "op", None) is self):  # where the function does not return them
            ctx.mark_non_differentiable(*outputs[1:])
        values.update(zip(self.outputs, outputs, strict=True))
        ctx.save_for_backward(*[values[name] for name in self.saved])
        ctx.numbers = {name: values[name] for name in (*self.numbers, "backend")}

    def backward(self, ctx: Any, grad: Tensor | None, *_others: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of all flat arguments and of `backend`."""
        assert self.gradient is not None
        if grad is None:
            return (None,) * (len(self.flat) + 1)
        saved = SimpleNamespace(**ctx.numbers, **dict(zip(self.saved, ctx.saved_tensors, strict=True)))
        for name, kind in self.plans.items():
            if name in self.gradient.saves:
                setattr(saved, name, kind(*(getattr(saved, part) for part in self.fields[name])))
        needed = ctx.needs_input_grad[-len(self.flat) - 1 :]  # of the flat arguments and of `backend`
        saved.wanted = {name for name, wanted in zip(self.flat, needed, strict=False) if wanted}
        gradients = dict(zip(self.gradient.of, self.gradient.backward(grad, saved), strict=True))
        return *(gradients.get(name) for name in self.flat), None


class _Recorded(torch.autograd.Function):
    """The gradient of an op in eager mode, where the overhead of a registered op exceeds the time of the kernels."""

    @staticmethod
    def forward(ctx: Any, declared: Op, results: list[Any], *inputs: Any) -> Any:
        *values, backend = inputs
        found = declared._compute(results[0], dict(zip(declared.flat, values, strict=True)), backend, None)
        ctx.op = declared
        ctx.set_materialize_grads(False)
        declared.setup(ctx, inputs, found)
        return _elements(found[0]) if declared.apart else found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.op.apart:
            given = [grad for grad in grads if grad is not None]
            if 0 < len(given) < len(grads):
                given = [torch.zeros_like(given[0]) if grad is None else grad for grad in grads]
            grads = (torch.stack(given) if given else None,)
        return None, None, *ctx.op.backward(ctx, *grads)


def _plan_type(kind: Any) -> Any:
    """The dataclass that an argument is, or may be; None for other arguments."""
    return next((each for each in (kind, *get_args(kind)) if is_dataclass(each)), None)


def _elements(values: Tensor) -> tuple[Tensor, ...]:
    """The elements as tensors of their own: autograd forbids in-place changes of one of several views."""
    return tuple(value.clone() for value in values.unbind())


def _in_layout(found: Any, declared: tuple[Tensor, ...]) -> Any:
    """The reference's results with the strides that the op declares."""
    several = found if isinstance(found, tuple) else (found,)
    same = [left if left.stride() == right.stride() else right.copy_(left) for left, right in zip(several, declared, strict=True)]
    return tuple(same) if isinstance(found, tuple) else same[0]


def _schema_type(kind: Any, mutated: bool) -> str:
    """The schema's name of a type."""
    if get_origin(kind) is Literal:
        kind = str
    if type(None) in get_args(kind):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
        return f"{FLAT_TYPES[kind]}?"
    return "Tensor(a!)" if mutated else FLAT_TYPES[kind]
