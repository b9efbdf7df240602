"""The steps of CTR-GCN's fused layers in Triton: the functions of `shapmix.reference.layer`, with the same signatures."""

from __future__ import annotations

from .triton_unit_clips import input_rows
from .triton_unit_folded import folded_temporal_unit
from .triton_unit_graph import folded_graph_unit, graph_unit, graph_unit_backward
from .triton_unit_input import layer_input_backward
from .triton_unit_norm import finish_layer, finish_layer_backward, join_moments, join_parts, merge_moments
from .triton_unit_product import reduce_branches, reduce_branches_backward, row_product, row_product_backward
from .triton_unit_relations import relations, relations_backward
from .triton_unit_temporal import temporal_branches, temporal_branches_backward
from .triton_unit_weights import pack, running_norms, update_statistics

__all__ = [
    "finish_layer",
    "finish_layer_backward",
    "folded_graph_unit",
    "folded_temporal_unit",
    "graph_unit",
    "graph_unit_backward",
    "input_rows",
    "join_moments",
    "join_parts",
    "layer_input_backward",
    "merge_moments",
    "pack",
    "reduce_branches",
    "reduce_branches_backward",
    "relations",
    "relations_backward",
    "row_product",
    "row_product_backward",
    "running_norms",
    "temporal_branches",
    "temporal_branches_backward",
    "update_statistics",
]
