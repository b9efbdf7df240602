"""Scores of trained networks on named clips, and tools for ensembles."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from shapmix.data.clips import Splits
from shapmix.data.sampling import ClipSampler
from shapmix.pictures import plots
from shapmix.process import cpu
from shapmix.process.errors import RunError
from shapmix.process.files import whole_file, write_whole
from shapmix.process.parallel import SharedForward
from shapmix.training import metrics
from shapmix.training.adjustment import adjusted, find_tau
from shapmix.training.build import PRECISIONS, load_splits, make_network, make_sampler
from shapmix.training.checkpoint import load_checkpoint, load_weights
from shapmix.training.options import Adjustment, TrainConfig
from shapmix.training.tau_norm import normalise_head
from shapmix.training.trained import Checkpoint, config_with_data
from shapmix.training.views import AS_IN_THE_RUN, ViewOptions, Views, predict_views

log = logging.getLogger("shapmix")


@dataclass(frozen=True)
class Scores:
    """Probabilities [N, K] of named clips, with their labels."""

    names: list[str]
    labels: Tensor
    probabilities: Tensor
    class_counts: Tensor
    class_names: list[str]
    lengths: Tensor
    """[N] int64 recorded frames; clips with the same name but different lengths are different clips."""
    tau: float | None = None
    """Of post-hoc logit adjustment, None without it."""
    tau_norm: float | None = None
    """Of tau-normalisation of the head, None without it."""


class Member(NamedTuple):
    """A run's network and data."""

    splits: Splits
    forward: SharedForward
    sampler: ClipSampler
    batch_size: int
    views: Views
    device: torch.device
    tau: float | None = None
    tau_norm: float | None = None

    @property
    def adapted(self) -> str:
        """What was done to the trained network or its logits, for a title."""
        parts = [f", tau-norm {self.tau_norm:g}"] if self.tau_norm is not None else []
        return "".join([*parts, f", tau {self.tau:g}"] if self.tau is not None else parts)

    def probabilities(self, clips: Tensor) -> Tensor:
        """[N, K] of the store's clips [N], without adjustment of the logits."""
        return predict_views(self.forward, self.sampler, clips, self.batch_size, self.device, self.views)

    def score(self, clips: Tensor) -> Scores:
        """Scores of the store's clips [N]."""
        store, counts = self.splits.store, self.splits.class_counts()
        return Scores(
            [store.names[clip] for clip in clips.tolist()],
            store.labels[clips],
            adjusted(self.probabilities(clips), counts, self.tau),
            counts,
            store.class_names,
            store.lengths[clips],
            self.tau,
            self.tau_norm,
        )


def open_member(
    run: Path,
    checkpoint: Checkpoint,
    device: torch.device,
    views: ViewOptions = AS_IN_THE_RUN,
    adjustment: Adjustment | None = None,
    tau_norm: Adjustment | None = None,
    data_root: Path | None = None,
) -> Member:
    """Reads a run's checkpoint and data; without `adjustment`, logits are adjusted as in the run's own test. With `tau_norm` the
    head is tau-normalised.

    Raises:
        ConfigError, CheckpointError, DataError: the run cannot be read.
        RunError: there are no validation clips to choose the tau of logit adjustment on.
    """
    trained = config_with_data(run, data_root)
    splits = load_splits(trained)
    store = splits.store
    path = run / "checkpoints" / f"{checkpoint}.pt"
    state = load_checkpoint(path, layout=store.layout.name, class_names=store.class_names)
    network = make_network(trained, store)
    load_weights(network, state["network"], path)
    sampler = make_sampler(trained, store)
    network.to(device)
    tau = None if tau_norm is None else normalise_head(network, tau_norm, splits, sampler, trained.batch_size)
    forward = as_trained(network, trained, device, run)
    member = Member(splits, forward, sampler, trained.batch_size, views.views(trained), device, tau_norm=tau)
    asked = trained.logit_adjustment if adjustment is None else adjustment
    return member._replace(tau=find_tau(asked, splits, member.probabilities))


def as_trained(network: nn.Module, trained: TrainConfig, device: torch.device, run: Path) -> SharedForward:
    """The network in the precision of its training, or in fp32 on a CPU without products of bf16, which is logged."""
    precision = PRECISIONS[trained.precision]
    if precision is not None and device.type == "cpu" and cpu.multiplies_bf16() is False:
        log.warning("%s: was trained in bf16, of which this CPU has no products; it is measured in fp32, which is faster here", run)
        precision = None
    return SharedForward(network, precision)


def weight_clips(splits: Sequence[Splits], runs: Sequence[Path]) -> list[Tensor]:
    """The clips to fit ensemble weights on, per run: validation clips of any run that no run trains or tests on.

    Runs with the same list share their validation clips. With different seeds, the validation clips of one run may be training
    clips of another.

    Raises:
        RunError: there are no such clips.
    """
    index = [{name: clip for clip, name in enumerate(each.store.names)} for each in splits]
    common = set(index[0]).intersection(*index[1:])
    validated, taken = set[str](), set[str]()
    for each in splits:
        names = each.store.names
        validated.update(names[clip] for clip in each.val.tolist())
        taken.update(names[clip] for clip in [*each.train.tolist(), *each.test.tolist()])
    chosen = sorted((validated & common) - taken, key=index[0].__getitem__)
    if not chosen:
        raise RunError(f"{', '.join(map(str, runs))} have no validation clip that no run trains on; give --weights")
    return [torch.tensor([clips[name] for name in chosen]) for clips in index]


def align(scores: list[Scores], runs: Sequence[Path]) -> list[Scores]:
    """The scores of all runs, with clips in the order of the first run.

    Raises:
        RunError: clips, labels or classes differ; names the first difference.
    """
    first, aligned = scores[0], []
    for run, each in zip(runs, scores, strict=True):
        if each.class_names != first.class_names:
            raise RunError(f"{run}: its classes differ from those of {runs[0]}; an ensemble needs runs of one data set")
        row = {name: index for index, name in enumerate(each.names)}
        missing, more = set(first.names) - set(row), set(row) - set(first.names)
        if missing or more:
            raise RunError(
                f"{run}: clip '{min(missing or more)}' is tested {'not here but in' if missing else 'here but not in'} {runs[0]}"
            )
        order = torch.tensor([row[name] for name in first.names])
        if not torch.equal(each.labels[order], first.labels):
            clip = int((each.labels[order] != first.labels).nonzero()[0])
            raise RunError(f"{run}: clip '{first.names[clip]}' has a different label than in {runs[0]}")
        if not torch.equal(each.lengths[order], first.lengths):
            clip = int((each.lengths[order] != first.lengths).nonzero()[0])
            frames = f"{int(each.lengths[order][clip])} frames, in {runs[0]} {int(first.lengths[clip])}"
            raise RunError(f"{run}: clip '{first.names[clip]}' has {frames}; the runs use different recordings")
        mine = replace(each, names=first.names, labels=first.labels, lengths=first.lengths)
        aligned.append(replace(mine, probabilities=each.probabilities[order]))
    return aligned


def fit_weights(probabilities: Tensor, labels: Tensor, steps: int = 200) -> Tensor:
    """[R, N, K] validation probabilities of R runs -> [R] non-negative weights with sum 1 that minimise the log loss."""
    free = torch.zeros(len(probabilities), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        mixed = torch.einsum("r,rnk->nk", free.softmax(0), probabilities)
        value = nll_loss(mixed.clamp(min=1e-12).log(), labels) + 1e-6 * free.square().sum()  # keeps a weight of 0 finite
        value.backward()
        return value

    search.step(loss)
    return free.detach().softmax(0)


def accuracy_of(scores: Scores) -> metrics.Accuracy:
    """The same accuracies as in training."""
    return replace(metrics.accuracy(scores.probabilities, scores.labels, scores.class_counts), tau=scores.tau)


def write_tables(out: Path, scores: Scores, about: dict[str, object]) -> None:
    """Writes `result.json` (accuracies, calibration errors, `about`), `per_class.csv`, `confusion.csv`, `confusion.png`."""
    out.mkdir(parents=True, exist_ok=True)
    confusion = metrics.confusion_matrix(scores.probabilities, scores.labels)
    metrics.write_class_table(out / "per_class.csv", confusion, scores.class_counts, scores.class_names)
    plots.plot_confusion(out / "confusion.png", confusion, scores.class_names)
    metrics.write_confusion(out / "confusion.csv", confusion, scores.class_names)
    normalised = {} if scores.tau_norm is None else {"tau_norm": scores.tau_norm}
    result = {**accuracy_of(scores).as_dict(), **normalised, **about}
    write_whole(out / "result.json", json.dumps(result, indent=2) + "\n")


def save_scores(path: Path, scores: Scores) -> None:
    """Writes names [N], labels [N], probabilities [N, K] and class names [K] atomically, without pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez(
            file,
            names=np.array(scores.names),
            labels=scores.labels.numpy(),
            probabilities=scores.probabilities.numpy(),
            class_names=np.array(scores.class_names),
        )
