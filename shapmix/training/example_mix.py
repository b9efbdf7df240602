"""A mixed clip to look at."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from shapmix.data.clips import Splits
from shapmix.data.order import epoch_batches, epoch_order
from shapmix.data.sampling import ClipSampler
from shapmix.mixing.mixer import ShapMix
from shapmix.mixing.mixers import MIXERS
from shapmix.pictures import plots
from shapmix.training.options import TrainConfig


class MixExample(NamedTuple):
    """A clip, its partner and their mix: title -> [C, T, V, M] in joint space, and where [T, V] the mix is not the clip."""

    clips: dict[str, Tensor]
    changed: Tensor


def draw_mixing(path: Path, config: TrainConfig, splits: Splits, sampler: ClipSampler, mixer: ShapMix) -> None:
    """Draws `example_mix`, where there is one."""
    found = example_mix(config, splits, sampler, mixer)
    if found is not None:
        changed = {list(found.clips)[-1]: found.changed}
        plots.plot_mixed_clip(path, found.clips, changed, sampler.store.layout, up=sampler.store.up)


def example_mix(config: TrainConfig, splits: Splits, sampler: ClipSampler, mixer: ShapMix) -> MixExample | None:
    """The first clip in the order of an epoch in which the rarer class keeps, or brings, the parts that its saliency ranks first.

    Without saliency the first that pastes a window; None where no clip of the epoch is one, or none are mixed.
    """
    if not MIXERS[config.mix].mixes:
        return None
    sampler, store, layout = replace(sampler, stream="joint"), sampler.store, sampler.store.layout
    mixer = deepcopy(mixer).cpu()
    favourite = layout.combinations[mixer.saliency.argmax(1)]  # [K]
    order = epoch_order(splits.train, config.seed, config.epochs)
    for index, chosen in enumerate(epoch_batches(order, config.batch_size)):
        labels = store.labels[chosen]
        clips = sampler.evaluation(chosen).cpu()
        batch = mixer.mix(clips, labels, mixer.warmup_steps + index, second=clips if mixer.views == 2 else None)
        clean, mixed = batch.clips.chunk(2)
        changed = (mixed != clean).any(1).any(-1)  # [N, T, V]
        sizes, priority = mixer.class_counts[labels], mixer.priority[labels]
        for row, partner in enumerate(batch.partner.tolist()):
            pasted = sum(1 << part for part in layout.part_of_joint[changed[row].any(0)].unique().tolist())
            if changed[row].any(1).all() or not pasted:
                continue  # blended, or nothing to see
            brings = bool(priority[row] > priority[partner])
            kept = pasted if brings else layout.all_parts ^ pasted
            if MIXERS[config.mix].guided and kept != int(favourite[labels[partner if brings else row]]):
                continue
            titles = [
                f"{kind}: {store.class_names[int(labels[of])]} ({int(sizes[of])} training clips)"
                for kind, of in (("clip", row), ("partner", partner))
            ]
            share = float(batch.share[row])
            titles.append(f"mixed: {1 - share:.2f} of the clip's label, {share:.2f} of the partner's")
            return MixExample(dict(zip(titles, (clean[row], clean[partner], mixed[row]), strict=True)), changed[row])
    return None
