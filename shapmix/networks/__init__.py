"""Networks for skeleton clips: CTR-GCN with fused kernels, ST-GCN, AAGCN and attention.

Each maps clips [N, C, T, V, M] of any layout to logits [N, K]. Those exported here are baselines in plain PyTorch, for
`python -m shapmix.train --network.backbone shapmix.networks:stgcn`.
"""

from shapmix.networks.aagcn import aagcn
from shapmix.networks.attention import attention
from shapmix.networks.stgcn import stgcn

__all__ = ["aagcn", "attention", "stgcn"]
