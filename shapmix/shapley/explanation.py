"""Explanations of clips: the exact game of each clip, and the values, rankings and faithfulness tests derived from it."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from shapmix.process.files import whole_file
from shapmix.reference import expected_marginals
from shapmix.shapley.game import Output, PartGame, Progress
from shapmix.shapley.interval import interval
from shapmix.shapley.values import Interaction, banzhaf_values, group_values, interactions, shapley_values
from shapmix.skeleton.layout import Layout

FORMAT = 1


class ByLabel(NamedTuple):
    """Per-class means over clips: labels [L] int64, mean [L, ...], its standard error (NaN for one clip), clips [L]."""

    labels: Tensor
    mean: Tensor
    standard_error: Tensor
    clips: Tensor


class Faithfulness(NamedTuple):
    """Insertion and deletion curves: does removing parts in ranked order cost more than in random order?

    Attributes:
        clips, labels: their numbers.
        ranked_by_others: True if each clip's parts are ranked by other clips of its label; False if by its own values.
        ranked, random: [2, P + 1], insertion and deletion curves, averaged along the ranking and over all orders.
        band: [2, 2, P + 1], 2.5% and 97.5% quantiles of the curves along random rankings.
        lost: additional loss of the ranking over a random order, averaged over the steps, with half its 95% interval.
        brought: v(all) - v(none), with half its 95% interval.
    """

    clips: int
    labels: int
    ranked_by_others: bool
    ranked: Tensor
    random: Tensor
    band: Tensor
    lost: tuple[float, float | None]
    brought: tuple[float, float | None]

    @property
    def sign(self) -> int:
        """1: significantly better than random; -1: significantly worse; 0: statistically indistinguishable.

        Also 0 if v(all) is not significantly above v(none), as for a network at chance: then the parts contribute nothing.
        """
        lost, margin = self.lost
        if not self.ranked_by_others or margin is None:
            return 0
        return -1 if lost + margin < 0 else int(lost - margin > 0 and self.clips_bring)

    @property
    def clips_bring(self) -> bool:
        """Whether v(all) is significantly above v(none)."""
        brought, margin = self.brought
        return margin is not None and brought - margin > 0

    def verdict(self, unit: str) -> str:
        """The conclusion from the intervals, as text for the page."""
        of = f"{self.clips} clips of {self.labels} classes" if self.labels > 1 else f"{self.clips} clips of one class"
        if not self.ranked_by_others:
            return (
                "No class has a second clip to rank the parts by: the curves follow each clip's own values, which would look "
                "faithful even for noise. Give --per-class 2 or more."
            )
        unknown = f"The ranking is not distinguishable from random with {of}"
        said = {
            1: "The ranking is clearly better than random.",
            0: f"{unknown}."
            if self.clips_bring
            else f"{unknown}: the contribution of the whole clips is not distinguishable from zero, as at chance.",
            -1: f"The ranking is worse than random, with {of}.",
        }[self.sign]
        return (
            f"The parts of each clip are ranked by the other clips of its class. Removing them in this order costs "
            f"{_with_margin(self.lost)} more {unit} than removing them in a random order (mean over the steps, 95% interval); "
            f"the whole clips add {_with_margin(self.brought)} to the mean motion. {said} The band contains 95% of random "
            "rankings."
        )


def _with_margin(value: tuple[float, float | None]) -> str:
    middle, margin = value
    return f"{middle:+.2g} ± {'unknown' if margin is None else f'{margin:.2g}'}"


@dataclass(frozen=True)
class Explanation:
    """Exact values of all coalitions of some clips; indexing selects clips.

    Attributes:
        games: [N, 2^P] float64, v of each coalition in bit-set order.
        labels: [N] int64, the explained class.
        names: N clip names.
        layout: its parts are the players.
        output: the definition of v.
        rows_forwarded: number of clips forwarded by the network.
    """

    games: Tensor
    labels: Tensor
    names: list[str]
    layout: Layout
    output: Output
    rows_forwarded: int

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, clips: int | slice | list[int]) -> Explanation:
        index = torch.arange(len(self))[[clips] if isinstance(clips, int) else clips]
        return replace(
            self, games=self.games[index], labels=self.labels[index], names=[self.names[clip] for clip in index.tolist()]
        )

    @property
    def base_values(self) -> Tensor:
        """[N]: v(none), the value of the mean motion."""
        return self.games[:, 0]

    @property
    def full_values(self) -> Tensor:
        """[N]: v(all), the value of the clip."""
        return self.games[:, -1]

    @property
    def parts(self) -> Tensor:
        """[N, P]: Shapley values; their sum is v(all) - v(none)."""
        return shapley_values(self.games, self.layout.num_parts)

    @property
    def banzhaf(self) -> Tensor:
        """[N, P]: Banzhaf values."""
        return banzhaf_values(self.games, self.layout.num_parts)

    @property
    def combinations(self) -> Tensor:
        """[N, Q]: generalised Shapley values of the layout's combinations."""
        return group_values(self.games, self.layout.combinations, self.layout.num_parts)

    @property
    def rectified(self) -> Tensor:
        """[N, Q]: mean rectified marginals of the combinations, which the saliency in training estimates."""
        return expected_marginals(self.games, self.layout.combinations, self.layout.num_parts)

    def interactions(self, index: Interaction = "sii", order: int = 2) -> Tensor:
        """[N, I]: interactions of the sets in `shapmix.shapley.values.interaction_sets`."""
        return interactions(self.games, self.layout.num_parts, index, order)

    def by_label(self, values: Tensor) -> ByLabel:
        """Means of [N, ...] over the clips of each label."""
        labels = self.labels.unique()
        groups = [values[self.labels == label] for label in labels]
        return ByLabel(
            labels,
            torch.stack([group.mean(0) for group in groups]),
            torch.stack(
                [group.std(0) / len(group) ** 0.5 if len(group) > 1 else torch.full_like(group[0], torch.nan) for group in groups]
            ),
            torch.tensor([len(group) for group in groups]),
        )

    def curves(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Insertion and deletion curves [N, P + 1] along a ranking [N, P] of the parts of each clip.

        Entry s of an insertion shows the first s parts, entry s of a deletion hides them.
        """
        shown = torch.cat([torch.zeros_like(order[:, :1]), (1 << order).cumsum(1)], 1)  # [N, P + 1] bit sets
        return self.games.gather(1, shown), self.games.gather(1, self.layout.all_parts ^ shown)

    def mean_curve(self) -> Tensor:
        """[N, P + 1]: mean insertion curve over all orders; the mean deletion curve is its mirror image."""
        size = torch.tensor([bits.bit_count() for bits in range(1 << self.layout.num_parts)])
        return torch.stack([self.games[:, size == s].mean(1) for s in range(self.layout.num_parts + 1)], 1)

    def others_ranking(self) -> Tensor:
        """[N, P]: parts ranked by their mean value over the other clips of the label, or by the clip's own value without others.

        A clip's own values come from the same forward passes as its curves, so a ranking by them looks faithful even for noise.
        """
        parts, order = self.parts, torch.empty(len(self), self.layout.num_parts, dtype=torch.int64)
        for label in self.labels.unique():
            own = self.labels == label
            others = parts[own].sum(0) - parts[own] if int(own.sum()) > 1 else parts[own]
            order[own] = others.argsort(1, descending=True)
        return order

    def faithfulness(self, *, random_orders: int = 200, seed: int = 0) -> Faithfulness:
        """Compares the curves along `others_ranking` with random rankings, which share one order per label."""
        labels, of_label, counts = self.labels.unique(return_inverse=True, return_counts=True)
        several = torch.nonzero(counts[of_label] > 1).flatten().tolist()
        if 0 < len(several) < len(self):  # the only clip of a label has no other clips to be ranked by
            return self[several].faithfulness(random_orders=random_orders, seed=seed)
        insertion, deletion = self.curves(self.others_ranking())
        shown, generator = self.mean_curve(), torch.Generator().manual_seed(seed)
        draws = torch.rand(random_orders, len(labels), self.layout.num_parts, generator=generator).argsort(2)
        random = [torch.stack([self._middle(curve) for curve in self.curves(draw[of_label])]) for draw in draws]
        lost = (shown.flip(1) - deletion)[:, 1:-1].mean(1)  # both ends are the same in every order
        brought = self.full_values - self.base_values
        return Faithfulness(
            clips=len(self),
            labels=len(labels),
            ranked_by_others=bool(several),
            ranked=torch.stack([self._middle(insertion), self._middle(deletion)]),
            random=torch.stack([self._middle(shown), self._middle(shown.flip(1))]),
            band=torch.stack(random).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0),
            lost=self._interval(lost),
            brought=self._interval(brought),
        )

    def _middle(self, values: Tensor) -> Tensor:
        """Mean of the per-label means of [N, ...]."""
        return self.by_label(values).mean.mean(0)

    def _interval(self, values: Tensor) -> tuple[float, float | None]:
        """Interval of [N] over labels, since clips of one label are correlated; over clips if there is one label."""
        units = self.by_label(values).mean if len(self.labels.unique()) > 1 else values
        found = interval(units.tolist())
        assert found is not None
        return found

    def save(self, path: Path) -> None:
        """Writes one .npz file atomically, without pickle."""
        about = {
            "format": FORMAT,
            "names": self.names,
            "layout": self.layout.name,
            "parts": list(self.layout.parts),
            "output": self.output,
            "rows_forwarded": self.rows_forwarded,
        }
        with whole_file(path) as file:
            np.savez_compressed(file, games=self.games.numpy(), labels=self.labels.numpy(), about=json.dumps(about))

    @classmethod
    def load(cls, path: Path, layout: Layout) -> Explanation:
        """Reads a file written by `save`.

        Raises:
            ValueError: the file is not an explanation, or belongs to a different layout.
        """
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                games, labels, about = file["games"], file["labels"], json.loads(str(file["about"]))
            if about["format"] != FORMAT:
                raise ValueError(f"it has format {about['format']}; this version reads format {FORMAT}")
            name, parts, names, output, rows = (about[key] for key in ("layout", "parts", "names", "output", "rows_forwarded"))
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: not an explanation: {error}") from error
        if (name, parts) != (layout.name, list(layout.parts)):
            raise ValueError(f"{path}: belongs to layout '{name}' with parts {parts}, not to '{layout.name}'")
        return cls(torch.from_numpy(games), torch.from_numpy(labels), names, layout, output, rows)


def explain(game: PartGame, clips: Tensor, labels: Tensor, names: list[str], *, progress: Progress | None = None) -> Explanation:
    """Forwards every coalition of the clips [N, C, T, V, M] and keeps the values of their labels [N]."""
    games = game.table(clips, labels, progress=progress)
    return Explanation(games.double().cpu(), labels.cpu(), names, game.layout, game.output, game.rows_forwarded)
