"""State dicts as others publish them, under our names.

Three steps, each of which leaves alone what it does not know:

1. `unwrapped`: the state dict inside a file's dict.
2. the network's own `from_published` (see `shapmix.networks.backbones.backbone`): the names of its layers, and whatever else its
   published form computes differently. It gets all tensors under the file's names, such as `backbone.gcn.0.gcn.A`, returns them
   under ours, keeps those that it does not know, and raises ValueError for weights that compute something else.
3. `our_names` calls it, and before and after it takes care of the names around the layers: the prefixes of DataParallel and
   torch.compile, and the two parts of the networks of PYSKL and MMAction2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from shapmix.networks.backbones import Translation

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
WRAPPERS = ("module.", "_orig_mod.", "model.")  # around every name
PREFIXES = {"cls_head.fc_cls.": "fc.", "cls_head.fc.": "fc.", "backbone.": ""}  # PYSKL and MMAction2 -> ours
INPUT_NORM = ("data_bn.weight", "data_bn.bias", "data_bn.running_mean", "data_bn.running_var")


def unwrapped(content: Any) -> dict[str, Tensor]:
    """The state dict in the content of a file: the content itself, or what one of `CONTAINERS` holds.

    Raises:
        ValueError: there is none, or it holds something that is no dense tensor.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict; write torch.save(network.state_dict(), FILE)")
    state = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"there is no state dict in it; its keys are {', '.join(map(repr, list(content)[:8])) or 'none'}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"its state dict holds {name!r}, which is a {type(value).__name__} and not a tensor")
        if value.is_sparse or value.is_quantized or value.is_complex():
            raise ValueError(f"'{name}' is a sparse, quantized or complex tensor; weights are dense tensors of real numbers")
    return dict(state)


def our_names(state: dict[str, Tensor], translate: Translation | None, known: Collection[str]) -> dict[str, Tensor]:
    """A state dict of `unwrapped` under the names `known` to our network, whose `from_published` is `translate`.

    Raises:
        ValueError: the weights compute something else than the network; or two of them would have the same name.
    """
    while (prefix := next((each for each in WRAPPERS if all(name.startswith(each) for name in state)), "")) and not (
        any(name in known for name in state)
    ):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    state = state if translate is None else translate(state)
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        theirs = "" if name in known else next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        ours = PREFIXES.get(theirs, "") + name.removeprefix(theirs)
        if ours in renamed:
            raise ValueError(f"'{name}' and another of its tensors would both be '{ours}' here")
        renamed[ours] = value
    return renamed


def fit_people(state: dict[str, Tensor], channels: int, of_person: int) -> str | None:
    """Fits the input norm of a state dict, in place, to `channels`, of which a person has `of_person`; its channels are ordered by
    (person, joint, coordinate). Returns what was done, None for nothing.

    A norm of more people keeps the first ones. A norm of one person is that of each. Any other norm is left as it is.
    """
    theirs = len(state["data_bn.weight"]) if "data_bn.weight" in state and state["data_bn.weight"].dim() == 1 else channels
    people, wanted = theirs // of_person, channels // of_person
    if theirs == channels or theirs % of_person or channels % of_person or not (people > wanted or people == 1):
        return None
    for name in INPUT_NORM:
        if name in state and len(state[name]) == theirs:
            state[name] = state[name][:channels] if people > wanted else state[name].repeat(wanted)
    if people > wanted:
        return f"the input norm is of {people} people, of whom the first {'one is' if wanted == 1 else f'{wanted} are'} used"
    return f"the input norm of one person is used for each of {wanted}"
