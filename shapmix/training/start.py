"""Starts a run from weights that were trained before: what is loaded, what starts anew, and what does not fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from torch import Tensor, nn

from shapmix.data.clips import ClipStore
from shapmix.networks.backbones import BACKBONES, find_backbone
from shapmix.networks.frozen import matching
from shapmix.networks.head import ScaledLinear, fold_scale, head_of
from shapmix.networks.published import INPUT_NORM, fit_people, our_names
from shapmix.process.errors import RunError
from shapmix.training.build import make_network
from shapmix.training.checkpoint import CheckpointError, load_weights
from shapmix.training.options import NetworkConfig, TrainConfig
from shapmix.training.state import Training
from shapmix.training.weights import Weights, read_saliency, read_weights

log = logging.getLogger("shapmix")

SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Loaded:
    """Names of the network's tensors that a file gave, those that start anew with the reason, and those of the file that are not
    used; `notes` says what was adapted."""

    given: list[str]
    anew: dict[str, str]
    left: list[str]
    notes: list[str]

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.anew.items():
            reasons.setdefault(reason, []).append(name)
        parts = [f"{len(self.given)} tensors loaded", *self.notes]
        parts += [f"{shown(names)} reset ({reason})" for reason, names in reasons.items()]
        parts += [f"{shown(self.left)} left over"] if self.left else []
        return "; ".join(parts)


def shown(names: list[str]) -> str:
    """The first names, and how many there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def start(run: Training, config: TrainConfig, store: ClipStore) -> dict[str, dict[str, str]]:
    """Loads the weights and the saliency that the configuration starts from, before the first step, and logs what was done.

    Returns:
        option -> file and SHA-256, to be recorded.

    Raises:
        CheckpointError: a file cannot be read or does not fit; the message says what does.
        RunError: a pattern of `reset` matches nothing.
    """
    record = {}
    if config.init_from is not None:
        weights = read_weights(config.init_from)
        log.info("%s: %s", weights.path, load_network(run.network, weights, config, store))
        if run.average is not None:
            run.average.module.load_state_dict(run.network.state_dict())
        record["init_from"] = weights.record
    if config.saliency_from is not None:
        record["saliency_from"] = _load_saliency(run, config, store)
    return record


def load_network(network: nn.Module, weights: Weights, config: TrainConfig, store: ClipStore) -> Loaded:
    """Loads weights into a network of the configuration; what `reset` names keeps its initial values.

    The head also does if the file has none, or one of other classes.

    Raises:
        CheckpointError: other tensors are missing in the file, or have other shapes.
        RunError: a pattern of `reset` matches nothing.
    """
    ours, (given, notes) = network.state_dict(), _translated(weights, network, config, store)
    try:
        head = head_of(network, store.num_classes)
        if not isinstance(network.get_submodule(head), ScaledLinear) and fold_scale(given, head):
            notes.append("the factors of its classes are multiplied into its head")
        anew = dict.fromkeys(matching("reset", config.reset, list(ours), head), "as asked for") if config.reset else {}
    except ValueError as error:
        raise RunError(str(error)) from error
    anew |= {name: reason for name, reason in _head_anew(ours, given, head, weights, store).items() if name not in anew}
    anew |= {name: "not in the file" for name in ours if name.endswith(".num_batches_tracked") and name not in {*given, *anew}}
    missing = [name for name in ours if name not in given and name not in anew]
    others = [name for name in ours if name in given and name not in anew and given[name].shape != ours[name].shape]
    if missing or others:
        raise CheckpointError(_misfit(weights, config, store, given, ours, missing, others))
    taken = [name for name in ours if name not in anew]
    load_weights(network, {**ours, **{name: given[name] for name in taken}}, weights.path)
    return Loaded(taken, anew, [name for name in given if name not in ours], notes)


def _translated(weights: Weights, network: nn.Module, config: TrainConfig, store: ClipStore) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names of the network, with its number of people, and notes on what was adapted."""
    if weights.class_names is not None:
        given, notes = (
            dict(weights.tensors),
            []
            if weights.layout == store.layout.name
            else [f"they were trained on layout '{weights.layout}', the data has '{store.layout.name}'"],
        )
    else:
        try:
            translate = find_backbone(config.network.backbone).from_published
            given, notes = our_names(weights.tensors, translate, network.state_dict().keys()), []
        except ValueError as error:
            raise CheckpointError(f"{weights.path}: {error}") from error
    norm = network.state_dict().get(INPUT_NORM[0])
    if norm is not None and norm.dim() == 1:
        note = fit_people(given, len(norm), store.layout.num_joints * store.num_coordinates)
        notes += [note] if note else []
    return given, notes


def _head_anew(ours: dict[str, Tensor], given: dict[str, Tensor], head: str, weights: Weights, store: ClipStore) -> dict[str, str]:
    """The tensors of the head that cannot be those of the file, with the reason."""
    names = [name for name in ours if name.startswith(f"{head}.")]
    theirs = given.get(f"{head}.weight")
    if theirs is None:
        return dict.fromkeys(names, "the file has no head")
    if len(theirs) != store.num_classes:
        return dict.fromkeys(names, f"{len(theirs)} classes there, {store.num_classes} here")
    if weights.class_names is not None and weights.class_names != store.class_names:
        label = next(k for k, (a, b) in enumerate(zip(weights.class_names, store.class_names, strict=True)) if a != b)
        return dict.fromkeys(names, f"class {label} is '{weights.class_names[label]}' there, '{store.class_names[label]}' here")
    return {f"{head}.scale": "not in the file"} if f"{head}.scale" in names and f"{head}.scale" not in given else {}


def _misfit(
    weights: Weights,
    config: TrainConfig,
    store: ClipStore,
    given: dict[str, Tensor],
    ours: dict[str, Tensor],
    missing: list[str],
    others: list[str],
) -> str:
    """What does not fit, and what would."""
    parts = []
    if others:
        shapes = [f"'{name}' is {list(given[name].shape)} there and {list(ours[name].shape)} here" for name in others[:SHOWN]]
        parts.append(f"{len(others)} of {len(ours)} tensors have another shape: {'; '.join(shapes)}")
    if missing:
        parts.append(f"{len(missing)} of {len(ours)} are not in it: {shown(missing)}")
        parts.append(f"its tensors are such as {shown(list(weights.tensors))}")
    if INPUT_NORM[0] in others:
        people, joints, coordinates = store.num_people, store.layout.num_joints, store.num_coordinates
        parts.append(
            f"data_bn has a channel per person, joint and coordinate, here {people} x {joints} x {coordinates}: choose "
            "--num-people, or data of the skeleton that the weights were trained on"
        )
    fits = sum(name in given and given[name].shape == value.shape for name, value in ours.items())
    parts.append(_nearest(weights, config, store, fits) or "--reset PATTERN starts tensors anew")
    return f"{weights.path}: does not fit network.backbone '{config.network.backbone}': {'; '.join(parts)}"


def _nearest(weights: Weights, config: TrainConfig, store: ClipStore, fits: int) -> str:
    """The registered network, as published, of which more tensors fit than `fits`; an empty string if there is none."""
    best = ""
    for name, found in BACKBONES.items():
        wanted = replace(config, network=NetworkConfig(backbone=name))
        try:
            network = make_network(wanted, store)
            given, _ = _translated(weights, network, wanted, store)
        except (ValueError, RuntimeError, CheckpointError):  # not made for this skeleton, or for another form of weights
            continue
        ours = network.state_dict()
        fitting = sum(each in given and given[each].shape == value.shape for each, value in ours.items())
        if fitting > fits:
            size = " --network.widths None" if "widths" in found.options and config.network.widths else ""
            best, fits = f"the nearest is --network.backbone {name}{size}, of whose {len(ours)} tensors {fitting} fit", fitting
    return best


def _load_saliency(run: Training, config: TrainConfig, store: ClipStore) -> dict[str, str]:
    assert config.saliency_from is not None
    table = run.mixer.class_saliency
    columns = len(store.layout.combinations)
    found, record = read_saliency(config.saliency_from, store.layout.name, store.class_names, columns)
    if table.averages_pairs and "pairs" not in found:
        raise CheckpointError(
            f"{config.saliency_from}: saliency.estimator '{run.mixer.estimator}' averages pairs of coalitions, which the file does "
            "not have; choose another estimator, such as exact_subset"
        )
    for name, buffer in table.named_buffers():
        if name in found and found[name].shape == buffer.shape:
            buffer.copy_(found[name])
    log.info("%s: saliency of %d classes loaded; mixing is guided from the first step", record["file"], store.num_classes)
    return record
