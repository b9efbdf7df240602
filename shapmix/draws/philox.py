"""Counter-based random numbers: Philox-4x32-10.

A draw is a pure function of (seed, purpose, step, row). A run resumes without saved generator state, no draw depends on previous
draws, and a kernel that implements the same ten rounds produces the same numbers.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011; tested against its known answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, key: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """Ten rounds on [..., 4] int64 counters of 32-bit words, with a key of two such words (or of two tensors [...]); same shape."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        # 32 x 32-bit products overflow int64, but the 64 bits are correct: shift, then mask off the sign extension
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], -1)


def random_words(seed: int, purpose: int, step: int | Tensor, rows: int, words: int, device: torch.device | None = None) -> Tensor:
    """[rows, words] int64, uniform on 0 .. 2^32 - 1.

    Args:
        seed: any non-negative 64-bit integer (the key).
        purpose: a small number that identifies the kind of draw, so that different kinds are independent.
        step: training step; a 0-dim int64 tensor on `device` avoids a host sync.
        rows: number of samples.
        words: words per row, a multiple of 4.
        device: device of the result.
    """
    blocks = words // 4
    counter = torch.empty(rows, blocks, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(rows, device=device)[:, None]
    counter[..., 1] = torch.arange(blocks, device=device)
    counter[..., 2] = step & _MASK
    counter[..., 3] = purpose
    return philox(counter, (seed & _MASK, seed >> 32 & _MASK)).reshape(rows, words)


def uniform(words: Tensor) -> Tensor:
    """Words -> float64 strictly between 0 and 1."""
    return (words.double() + 0.5) * 2.0**-32


def integers(words: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Words -> int64 uniform on low .. high (inclusive), from the high half of the product; ranges below 2^31."""
    return low + (words * (high - low + 1) >> 32)
