"""Shap-Mix in a plain PyTorch loop: any network, any data. `python examples/plain_loop.py` trains for half a minute."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shapmix import ShapMix
from shapmix.data.sampling import ClipSampler
from shapmix.data.synthetic import make_synthetic


class TemporalNetwork(nn.Module):
    """A custom network: clips [N, C, T, V, M] -> logits [N, K]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(channels, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 64, 5, padding=2), nn.ReLU()
        )
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Treats joints, people and coordinates as the channels of a time series."""
        series = clips.permute(0, 1, 3, 4, 2).flatten(1, 3)
        return self.classifier(self.features(series).mean(2))


def main(epochs: int = 8, n_max: int = 60) -> float:
    """Trains on a subset of the embedded data; returns the test accuracy."""
    torch.manual_seed(0)
    splits = make_synthetic(num_classes=8, n_max=n_max, imbalance=10)
    sampler = ClipSampler(splits.store, "crop", "joint", num_frames=32)
    clips, labels = sampler.evaluation(splits.train), splits.store.labels[splits.train]
    loader = DataLoader(TensorDataset(clips, labels), batch_size=16, shuffle=True, drop_last=True)

    network = TemporalNetwork(clips[0, :, 0].numel(), splits.store.num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    mixer = ShapMix(splits.store.layout, splits.class_counts(), clips.mean(0), warmup_steps=len(loader))
    step = 0
    for epoch in range(epochs):
        network.train()
        for x, y in loader:
            mixer.observe(network, x, y, step)
            batch = mixer.mix(x, y, step)
            clean, mixed = mixer.loss(network(batch.clips), batch)
            optimizer.zero_grad()
            (clean + mixed).backward()
            optimizer.step()
            step += 1
        print(f"epoch {epoch + 1}: loss {float(clean.detach() + mixed.detach()):.3f}")

    network.eval()
    with torch.no_grad():
        right = network(sampler.evaluation(splits.test)).argmax(1) == splits.store.labels[splits.test]
    print(f"test accuracy {100 * right.float().mean():.1f}%")
    return float(right.float().mean())


if __name__ == "__main__":
    main()
