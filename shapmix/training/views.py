"""Views of a test clip, whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shapmix.data.sampling import ClipSampler
from shapmix.networks.modes import isolated_eval_mode
from shapmix.training.options import ConfigError, TrainConfig


class Views(NamedTuple):
    """How a clip is tested: the evaluation view for 1 clip, otherwise so many random crops (or selections of frames).

    With `mirror`, each view is also taken with left and right swapped.
    """

    clips: int = 1
    mirror: bool = False

    @staticmethod
    def of_run(config: TrainConfig) -> Views:
        """The views of a run's final test."""
        return Views(config.test_clips, config.test_mirror)

    def of(self, sampler: ClipSampler, clips: Tensor) -> Iterator[Tensor]:
        """The views of clips [N], each [N, C, T, V, M].

        Raises:
            DataError: clips that cannot be mirrored.
        """
        for number in range(self.clips):
            for mirrored in (False, True) if self.mirror else (False,):
                if self.clips == 1:
                    yield sampler.evaluation(clips, mirrored=mirrored)
                else:
                    yield sampler.crop(clips, number, mirrored=mirrored)

    def check(self, sampler: ClipSampler) -> None:
        """Takes the views of one clip, so that clips that cannot be mirrored are reported before the training.

        Raises:
            DataError: clips that cannot be mirrored.
        """
        for _ in self.of(sampler, torch.zeros(1, dtype=torch.int64)):
            pass

    def __str__(self) -> str:
        return ("single crop" if self.clips == 1 else f"{self.clips} crops") + (" and mirrored" if self.mirror else "")


ONE_VIEW = Views()


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The views that a command tests a clip with."""

    test_clips: int | None = None
    """Views of a clip whose probabilities are averaged, as --test-clips of training; None: as many as in the run."""

    test_mirror: bool | None = None
    """Also average over each view with left and right swapped, as --test-mirror of training; None: as in the run."""

    def views(self, run: TrainConfig) -> Views:
        """The views that are asked for, or else those of the run."""
        return Views(
            run.test_clips if self.test_clips is None else self.test_clips,
            run.test_mirror if self.test_mirror is None else self.test_mirror,
        )

    def check_views(self) -> None:
        """Raises ConfigError for a number of views below 1."""
        if self.test_clips is not None and self.test_clips < 1:
            raise ConfigError(f"test_clips: must be at least 1, not {self.test_clips}")


AS_IN_THE_RUN = ViewOptions()


@torch.no_grad()
def predict_views(
    network: nn.Module, sampler: ClipSampler, clips: Tensor, batch_size: int, device: torch.device, views: Views = ONE_VIEW
) -> Tensor:
    """[N, K] float64 probabilities of the store's clips [N], averaged over their views."""
    with isolated_eval_mode(network):
        return torch.cat([mean_over_views(network, views.of(sampler, part), device) for part in clips.split(batch_size)])


@torch.no_grad()
def mean_over_views(network: nn.Module, views: Iterator[Tensor], device: torch.device) -> Tensor:
    """[N, K] float64, on the CPU: the mean of the probabilities that a network in eval mode gives the views [N, C, T, V, M]."""
    each = [network(view.to(device)).float().cpu().double().softmax(1) for view in views]
    return torch.stack(each).mean(0)
