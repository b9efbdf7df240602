"""What body parts said of clips: the exact game of each clip, and everything that follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from shapmix.game import Output, PartGame, Progress
from shapmix.layout import Layout
from shapmix.reference import expected_marginals
from shapmix.shapley import Interaction, banzhaf_values, group_values, interactions, shapley_values

FORMAT = 1


class ByLabel(NamedTuple):
    """Means over the clips of a class: labels [L] int64, mean [L, ...], standard error of the mean (NaN of one clip), clips [L]."""

    labels: Tensor
    mean: Tensor
    standard_error: Tensor
    clips: Tensor


@dataclass(frozen=True)
class Explanation:
    """Exact values of all coalitions for some clips; indexing takes some of the clips.

    Attributes:
        games: [N, 2^P] float64, v of each coalition in bit-set order.
        labels: [N] int64, the class whose value was taken.
        names: N clip names.
        layout: its parts are the players.
        output: what v is.
        rows_forwarded: clips that the network saw for this.
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
        """[N]: v(none), what the network says of the mean motion."""
        return self.games[:, 0]

    @property
    def full_values(self) -> Tensor:
        """[N]: v(all), what it says of the clip."""
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
        """[N, Q]: mean rectified marginals of the combinations, what the training's saliency estimates."""
        return expected_marginals(self.games, self.layout.combinations, self.layout.num_parts)

    def interactions(self, index: Interaction = "sii", order: int = 2) -> Tensor:
        """[N, I]: interactions of the sets of `shapmix.shapley.interaction_sets`."""
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

    def curves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Insertion, deletion [N, P + 1] along each clip's own ranking of parts, and the mean over all orders [N, P + 1].

        Entry s of an insertion shows the s best parts, entry s of a deletion hides them; the mean over all orders is of s parts
        shown. A ranking is faithful where insertion lies above that mean and deletion below its mirror image.
        """
        order = self.parts.argsort(1, descending=True)
        shown = torch.cat([torch.zeros_like(order[:, :1]), (1 << order).cumsum(1)], 1)  # [N, P + 1] bit sets
        size = torch.tensor([bits.bit_count() for bits in range(1 << self.layout.num_parts)])
        mean = torch.stack([self.games[:, size == s].mean(1) for s in range(self.layout.num_parts + 1)], 1)
        return self.games.gather(1, shown), self.games.gather(1, self.layout.all_parts ^ shown), mean

    def save(self, path: Path) -> None:
        """Writes one .npz, which holds no pickle."""
        about = {
            "format": FORMAT,
            "names": self.names,
            "layout": self.layout.name,
            "parts": list(self.layout.parts),
            "output": self.output,
            "rows_forwarded": self.rows_forwarded,
        }
        temporary = path.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, games=self.games.numpy(), labels=self.labels.numpy(), about=json.dumps(about))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, layout: Layout) -> Explanation:
        """Reads what `save` wrote.

        Raises:
            ValueError: not such a file, or one of another layout.
        """
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                games, labels, about = file["games"], file["labels"], json.loads(str(file["about"]))
        except (OSError, KeyError, ValueError, BadZipFile) as error:
            raise ValueError(f"{path}: not an explanation: {error}") from error
        if (about["layout"], about["parts"]) != (layout.name, list(layout.parts)):
            raise ValueError(f"{path}: of layout '{about['layout']}' with parts {about['parts']}, not '{layout.name}'")
        return cls(
            torch.from_numpy(games), torch.from_numpy(labels), about["names"], layout, about["output"], about["rows_forwarded"]
        )


def explain(game: PartGame, clips: Tensor, labels: Tensor, names: list[str], *, progress: Progress | None = None) -> Explanation:
    """Forwards every coalition of the clips [N, C, T, V, M] and keeps the values of their labels [N]."""
    games = game.table(clips, labels, progress=progress)
    return Explanation(games.double().cpu(), labels.cpu(), names, game.layout, game.output, game.rows_forwarded)
