"""Scores runs on their test split, individually and as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shapmix.training.options import Adjustment
from shapmix.training.scores import Scores, align, fit_weights, open_member, weight_clips
from shapmix.training.trained import Checkpoint
from shapmix.training.views import AS_IN_THE_RUN, ViewOptions


class Measured(NamedTuple):
    """`rows`: title -> scores of each run and of the ensemble; `whole`: the ensemble or the single run; `weights` [R] sum to 1."""

    rows: dict[str, Scores]
    whole: Scores
    weights: Tensor
    views: str


def score_runs(
    runs: Sequence[Path],
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    views: ViewOptions = AS_IN_THE_RUN,
    weights: Sequence[float] | None = None,
    fit: bool = False,
    adjustment: Adjustment | None = None,
    tau_norm: Adjustment | None = None,
    data_root: Path | None = None,
) -> Measured:
    """Scores of the test clips for each run, and for the average of their probabilities weighted with `weights`.

    Without `weights` the runs are weighted equally; with `fit` the weights are fitted on validation clips. The logits of each run
    are adjusted (`adjustment`; None: as in the run's own test) with its own class counts, before they are averaged. With `tau_norm`
    the head of each run is tau-normalised. Each run's classes are many, medium or few by its own training clips, those of the
    ensemble by the first run's.

    Raises:
        ConfigError, CheckpointError, DataError: a run cannot be read.
        RunError: the runs have different clips, labels or classes.
    """
    members = [open_member(run, checkpoint, device, views, adjustment, tau_norm, data_root) for run in runs]
    tests = align([member.score(member.splits.test) for member in members], runs)
    shares = torch.tensor(weights or [1.0] * len(tests), dtype=torch.float64)
    if fit:
        chosen = weight_clips([member.splits for member in members], runs)
        validations = align([member.score(clips) for member, clips in zip(members, chosen, strict=True)], runs)
        shares = fit_weights(torch.stack([each.probabilities for each in validations]), validations[0].labels)
    shares = shares / shares.sum()
    seen = [str(member.views) for member in members]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # such as the baselines "plain" of two runs
        names = [str(run) for run in runs]
    titles = [f"{name} {checkpoint}, {each}{member.adapted}" for name, each, member in zip(names, seen, members, strict=True)]
    rows = dict(zip(titles, tests, strict=True))
    whole = tests[0]
    if len(tests) > 1:
        mixed = torch.einsum("r,rnk->nk", shares, torch.stack([each.probabilities for each in tests]))
        whole = replace(whole, probabilities=mixed, tau=None, tau_norm=None)
        shown = " ".join(f"{share:.3f}" for share in shares.tolist())
        rows[f"ensemble ({'fitted' if fit else 'given' if weights else 'equal'} weights {shown})"] = whole
    return Measured(rows, whole, shares, ", ".join(dict.fromkeys(seen)))
