"""Networks for skeleton clips: CTR-GCN with fused kernels, ST-GCN, ST-GCN++, DG-STGCN, ProtoGCN, AAGCN, BlockGCN, HD-GCN and attention.

Each maps clips [N, C, T, V, M] of any layout to logits [N, K], and is one function or class that `backbone` registers in its file.
"""

from shapmix.networks.aagcn import aagcn
from shapmix.networks.attention import attention
from shapmix.networks.blockgcn import BlockGCN
from shapmix.networks.ctrgcn import CTRGCN
from shapmix.networks.dgstgcn import dgstgcn
from shapmix.networks.hdgcn import hdgcn
from shapmix.networks.protogcn import protogcn
from shapmix.networks.stgcn import stgcn
from shapmix.networks.stgcnpp import stgcnpp

__all__ = ["CTRGCN", "BlockGCN", "aagcn", "attention", "dgstgcn", "hdgcn", "protogcn", "stgcn", "stgcnpp"]
