"""Networks of the user's own, `module:function`: imported, called and tried out, with one clear error for what is wrong."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shapmix.networks.arguments import check_logits
from shapmix.networks.modes import isolated_eval_mode
from shapmix.process.choices import nearest
from shapmix.process.errors import RunError

TRIED = 2  # clips that a network is tried out on


def imported(name: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        RunError: no such module or function, or one that cannot be imported or called.
    """
    where = f"network.backbone '{name}'"
    module, _, function = name.partition(":")
    if not module or not function:
        raise RunError(f"{where}: give MODULE:FUNCTION, the importable module and its function that makes the network")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise RunError(f"{where}: {error}; start in the folder of '{error.name}', or add it to PYTHONPATH") from error
        raise RunError(f"{where}: importing '{module}' failed: {_said(error)}") from error
    make = getattr(found, function, None)
    if make is None:
        raise RunError(f"{where}: module '{module}' has no '{function}'{nearest(function, vars(found))}")
    if not callable(make):
        raise RunError(f"{where}: '{function}' is of type {type(make).__name__}; give a function that returns a torch module")
    called: Callable[..., Any] = make
    return called


def called(name: str, make: Callable[..., Any], arguments: dict[str, Any]) -> nn.Module:
    """The network that the function makes.

    Raises:
        RunError: the function does not take these arguments, fails, or returns something else.
    """
    where = f"network.backbone '{name}'"
    try:
        signature = inspect.signature(make)
    except ValueError:  # a class or function in C has none
        signature = None
    try:
        if signature is not None:
            signature.bind(**arguments)
    except TypeError as error:
        shown = f"{getattr(make, '__name__', name)}({', '.join(signature.parameters) if signature else ''})"
        raise RunError(f"{where}: {shown} {error}; it is called with {', '.join(arguments)}, by name") from error
    try:
        network = make(**arguments)
    except Exception as error:
        raise RunError(f"{where} failed in {_place(error)}: {_said(error)}") from error
    if not isinstance(network, nn.Module):
        raise RunError(f"{where} made a {type(network).__name__}, not a torch module")
    return network


def try_out(name: str, network: nn.Module, shape: Sequence[int], num_classes: int, device: torch.device) -> None:
    """Forwards clips of zeros [N, C, T, V, M] in eval mode, which also gives lazy layers their size; `shape` is [C, T, V, M].

    Raises:
        RunError: the network fails, or its output is no logits [N, K].
    """
    clips = torch.zeros(TRIED, *shape, device=device)
    try:
        with isolated_eval_mode(network), torch.no_grad():
            logits = network(clips)
    except Exception as error:
        failed = f"cannot forward clips [N, C, T, V, M] = {list(clips.shape)}: {_said(error)}, in {_place(error)}"
        raise RunError(f"network.backbone '{name}' {failed}") from error
    try:
        check_logits("output", logits, TRIED, num_classes)
    except (TypeError, ValueError) as error:
        raise RunError(f"network.backbone '{name}': its {error}") from error


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _place(error: Exception) -> str:
    """File and line of the innermost frame that is not of torch or of this file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if not frame.filename.startswith(str(Path(torch.__file__).parent))] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "C code"
