"""Multiply-accumulates of a graph, node by node."""

from __future__ import annotations

import numpy as np

from s2d_convert.frontend.graph import Graph, Node

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def macs_of(node: Node, graph: Graph) -> int:
    """Return the multiply-accumulates per image of a node whose operator is one of `PRODUCTS`."""
    out, rows = graph.shapes[node.outputs[0]], graph.folded.get(node.outputs[0], 1)
    for name in node.inputs[1::-1]:
        if name in graph.constants:
            other = node.inputs[0] if name == node.inputs[1] else node.inputs[1]
            return round(graph.constants[name].size * macs_per_weight(node, graph.shapes[other], out) * rows)
    return round(int(np.prod(out)) * (graph.shapes[node.inputs[0]] or (1,))[-1] * rows)


def macs_per_weight(node: Node, shape_in: tuple[int, ...], shape_out: tuple[int, ...]) -> int:
    """Return how many multiply-accumulates one entry of the [O, I, *kernel] weight takes per image."""
    if node.op == "ConvTranspose":
        return int(np.prod(shape_in[1:]))
    if node.op == "Conv":
        return int(np.prod(shape_out[1:]))
    return int(np.prod(shape_out[:-1]))


def node_macs(graph: Graph) -> dict[str, int]:
    """Return multiply-accumulates per image of every convolution and matrix product, by node name."""
    return {n.name: macs_of(n, graph) for n in graph.nodes if n.op in PRODUCTS}


def total_macs(graph: Graph) -> int:
    """Return multiply-accumulates per image of the whole graph."""
    return sum(node_macs(graph).values())
