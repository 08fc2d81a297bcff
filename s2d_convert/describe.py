"""What a model offers to a conversion: channel classes, opaque nodes, places for exits. Plain data, no printing."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2d_convert.channels import FREE, Channels
from s2d_convert.graph import Graph
from s2d_convert.plan import candidate_taps
from s2d_convert.rules import Kind
from s2d_convert.space import mac_shares, node_macs, total_macs
from s2d_convert.staged import unsupported_nodes


def describe(graph: Graph, channels: Channels) -> dict[str, Any]:
    """A JSON-able description of a model: input, output, classes of channels, opaque nodes and candidate taps."""
    macs, facts = node_macs(graph, channels), model_facts(graph, channels)
    total = max(1, facts["static_macs"])
    by_class = _macs_by_class(graph, channels, macs)
    taps = candidate_taps(graph, channels)
    shares = mac_shares(graph, channels, taps)
    return {
        "input": {"name": graph.image, "shape": ["N", *graph.shapes[graph.image]]},
        "output": {"name": graph.output, "shape": ["N", *graph.shapes[graph.output]], "kind": graph.output_kind},
        "opset": graph.opset,
        "nodes": len(graph.nodes),
        "macs": facts["static_macs"],
        "parameters": facts["static_parameters"],
        "splittable_macs": sum(by_class[i] for i, c in enumerate(channels.classes) if c.splittable) / total,
        "classes": [
            {
                "name": c.name,
                "units": len(c.units),
                "channels": c.width,
                "producers": list(c.producers),
                "macs": by_class[i] / total,
                "splittable": c.splittable,
            }
            for i, c in enumerate(channels.classes)
        ],
        "opaque": [
            {"node": n.name, "op": n.op, "reason": channels.roles[n.name].reason}
            for n in graph.nodes
            if channels.roles[n.name].kind is Kind.OPAQUE
        ],
        "unsupported": [{"node": n.name, "op": n.op} for n in unsupported_nodes(graph)],
        "taps": [{"tensor": t, "shape": list(graph.shapes[t]), "macs_before": shares[t]} for t in taps],
    }


def model_facts(graph: Graph, channels: Channels) -> dict[str, int]:
    """The static model's multiply-accumulates per image and its number of parameters."""
    parameters = sum(int(v.size) for v in graph.constants.values() if v.dtype == np.float32 and v.ndim)
    return {"static_macs": total_macs(graph, channels), "static_parameters": parameters}


def _macs_by_class(graph: Graph, channels: Channels, macs: dict[str, int]) -> list[float]:
    """Multiply-accumulates of each class: those of the nodes that make it, divided by their channels."""
    found = [0.0] * len(channels.classes)
    for node in graph.nodes:
        if node.name in macs:
            units = channels.layouts[node.outputs[0]].units
            known = units[units != FREE]
            for index, count in zip(*np.unique(channels.class_of[known], return_counts=True), strict=True):
                found[index] += macs[node.name] * count / len(units)
    return found
