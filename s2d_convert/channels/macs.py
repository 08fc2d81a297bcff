"""Multiply-accumulates of a graph, node by node."""

from __future__ import annotations

from s2d_convert.channels.rules import PRODUCTS, macs_of
from s2d_convert.frontend.graph import Graph


def node_macs(graph: Graph) -> dict[str, int]:
    """Multiply-accumulates per image of every convolution and matrix product, by node name."""
    return {n.name: macs_of(n, graph) for n in graph.nodes if n.op in PRODUCTS}


def total_macs(graph: Graph) -> int:
    """Multiply-accumulates per image of the whole graph."""
    return sum(node_macs(graph).values())
