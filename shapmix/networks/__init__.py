"""Networks for skeleton clips: CTR-GCN with fused kernels, seven other graph networks, SkateFormer and attention.

Each maps clips [N, C, T, V, M] of any layout to logits [N, K], and is one function or class that `backbone` registers in its file.
"""

from shapmix.networks.aagcn import aagcn
from shapmix.networks.attention import attention
from shapmix.networks.blockgcn import BlockGCN
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.networks.dgstgcn import dgstgcn
from shapmix.networks.hdgcn import hdgcn
from shapmix.networks.protogcn import protogcn
from shapmix.networks.skateformer import SkateFormer
from shapmix.networks.stgcn import stgcn
from shapmix.networks.stgcnpp import stgcnpp

__all__ = ["CTRGCN", "BlockGCN", "SkateFormer", "aagcn", "attention", "dgstgcn", "hdgcn", "protogcn", "stgcn", "stgcnpp"]
