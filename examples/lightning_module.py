"""Shap-Mix in a LightningModule (`pip install lightning`); the mixer is a submodule, so its saliency is checkpointed."""

from __future__ import annotations

import lightning
import torch
from plain_loop import TemporalNetwork
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shapmix import ShapMix
from shapmix.data.sampling import ClipSampler
from shapmix.data.synthetic import make_synthetic


class MixedTraining(lightning.LightningModule):
    """Any network with Shap-Mix; with several devices, each mixes and measures its own shard of the batch."""

    def __init__(self, network: nn.Module, mixer: ShapMix) -> None:
        super().__init__()
        self.network, self.mixer = network, mixer

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The three calls of every loop: measure, mix, loss."""
        clips, labels = batch
        self.mixer.observe(self.network, clips, labels, self.global_step)
        mixed = self.mixer.mix(clips, labels, self.global_step)
        return torch.stack(self.mixer.loss(self.network(mixed.clips), mixed)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Optimises the network only: the mixer has no parameters."""
        return torch.optim.AdamW(self.network.parameters(), lr=2e-3)


def main(epochs: int = 8, n_max: int = 60) -> MixedTraining:
    """Trains on a subset of the embedded data."""
    lightning.seed_everything(0, verbose=False)
    splits = make_synthetic(num_classes=8, n_max=n_max, imbalance=10)
    sampler = ClipSampler(splits.store, "crop", "joint", num_frames=32)
    clips, labels = sampler.evaluation(splits.train), splits.store.labels[splits.train]
    loader = DataLoader(TensorDataset(clips, labels), batch_size=16, shuffle=True, drop_last=True)
    mixer = ShapMix(splits.store.layout, splits.class_counts(), clips.mean(0), warmup_steps=len(loader))
    training = MixedTraining(TemporalNetwork(clips[0, :, 0].numel(), splits.store.num_classes), mixer)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, loader)
    return training


if __name__ == "__main__":
    main()
