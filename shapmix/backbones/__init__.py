"""Networks that Shap-Mix is compared on beside CTR-GCN: `python -m shapmix.train --network.backbone shapmix.backbones:stgcn`.

Each maps clips [N, C, T, V, M] of any layout to logits [N, K], and is written plainly: no kernel is behind them.
"""

from shapmix.backbones.aagcn import aagcn
from shapmix.backbones.attention import attention
from shapmix.backbones.stgcn import stgcn

__all__ = ["aagcn", "attention", "stgcn"]
