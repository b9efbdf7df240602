"""Networks that Shap-Mix is compared on beside CTR-GCN: `python -m shapmix.train --network.backbone shapmix.networks:stgcn`.

Each maps clips [N, C, T, V, M] of any layout to logits [N, K], and is written plainly: no kernel is behind them.
"""

from shapmix.networks.aagcn import aagcn
from shapmix.networks.attention import attention
from shapmix.networks.stgcn import stgcn

__all__ = ["aagcn", "attention", "stgcn"]
