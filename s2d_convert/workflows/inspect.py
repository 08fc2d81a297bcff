"""A description of a model for a conversion: channel classes, opaque nodes, candidate taps. Plain data, no printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, ChannelClass, Channels
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.image_scale import at_scale, fixed_by, offered_scales, scaled_sides
from s2d_convert.channels.kinds import Kind
from s2d_convert.channels.macs import node_macs, total_macs
from s2d_convert.errors import ModelError
from s2d_convert.exporting.provenance import model_facts
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.network.converters.lower import lower
from s2d_convert.network.staged_net import unsupported_nodes
from s2d_convert.plans.exit_points import candidate_taps

HOLDS_LOGITS = "holds the logits"
ONE_CHANNEL = "one channel"
TIED_BY = "one unit, tied by "
CHEAP = (Kind.MAP, Kind.MOVE)  # listed last


def describe(model: AnalysedModel) -> dict[str, Any]:
    """Return a JSON-able description of a model: input, output, classes of channels, opaque nodes and candidate taps.

    Every share of multiply-accumulates ("macs", "macs_before", "splittable_macs") is one of the whole model's, 0 to 1.
    """
    facts, classes = model_facts(model), _classes(model)
    taps, last = _stretches(model)
    return {
        "input": {"name": model.graph.image, "shape": ["N", *model.graph.shapes[model.graph.image]]},
        "output": {
            "name": model.graph.output,
            "shape": ["N", *model.graph.answer_shape],
            "kind": model.graph.output_kind,
        },
        "opset": model.graph.source_opset,
        "simplified_opset": model.graph.opset,
        "nodes": len(model.graph.nodes),
        "macs": facts["static_macs"],
        "parameters": facts["static_parameters"],
        "splittable_macs": sum((c["macs"] for c in classes if c["splittable"]), 0.0),
        "classes": classes,
        "opaque": _opaque(model, classes),
        "unsupported": unsupported(model.graph),
        "taps": taps,
        "last_stretch": last,
        "sizes": _sizes(model),
        "size_fixed_by": fixed_by(model),
    }


def _sizes(model: AnalysedModel) -> list[dict[str, Any]]:
    """Return the smaller sizes at which a first chain can read the image, with the share of the MACs that is left."""
    total = max(1, total_macs(model.graph))
    return [
        {
            "scale": scale,
            "sides": list(scaled_sides(model, scale)),
            "macs": total_macs(at_scale(model, scale).graph) / total,
        }
        for scale in offered_scales(model)
    ]


def unsupported(graph: Graph) -> list[dict[str, str]]:
    """Return every node that cannot be converted, with the reason: no converter for its operator, or one that rejects it."""
    without = {n.name for n in unsupported_nodes(graph)}
    entries = []
    for node in graph.nodes:
        reason = "the operator has no torch counterpart" if node.name in without else _refusal(graph, node)
        if reason:
            entries.append({"node": node.name, "op": node.op, "reason": reason})
    return entries


def _refusal(graph: Graph, node: Node) -> str:
    try:
        lower(node, graph.constants)
    except ModelError as error:
        return str(error).removeprefix(f"{node}: ")
    return ""


# --- channel classes --------------------------------------------------------------------------------


def _classes(model: AnalysedModel) -> list[dict[str, Any]]:
    macs, makers = _macs_by_class(model), _opaque_by_class(model)
    entries = []
    for index, group in enumerate(model.channels.classes):
        reason, tied_by = _why_whole(model, group, makers.get(index, []))
        entries.append(
            {
                "name": group.name,
                "units": len(group.units),
                "channels": group.width,
                "producers": list(group.producers),
                "macs": macs[index],
                "splittable": group.splittable,
                "reason": reason,
                "tied_by": tied_by,
            }
        )
    return entries


def _macs_by_class(model: AnalysedModel) -> list[float]:
    """Return the share of each class in the MACs. A node's MACs are divided among the classes of its output channels."""
    macs = node_macs(model.graph)
    total = max(1, sum(macs.values()))
    shares = [0.0] * len(model.channels.classes)
    for node in model.graph.nodes:
        if node.name in macs:
            units = model.channels.layouts[node.outputs[0]].units
            known = units[units != FREE]
            for index, count in zip(*np.unique(model.channels.class_of[known], return_counts=True), strict=True):
                shares[index] += macs[node.name] * count / len(units) / total
    return shares


def _anchored_macs(model: AnalysedModel) -> float:
    """Return the share of the MACs for channels of no unit, which are computed in the first stage that needs them."""
    macs = node_macs(model.graph)
    anchored = (
        n for n in model.graph.nodes if n.name in macs and (model.channels.layouts[n.outputs[0]].units == FREE).all()
    )
    return sum(macs[n.name] for n in anchored) / max(1, sum(macs.values()))


def _opaque_by_class(model: AnalysedModel) -> dict[int, list[Node]]:
    """Return the opaque nodes by the index of the class that they tie, or -1 where their channels are anchored.

    All channels around an opaque node are one unit, so it belongs to one class, which has no other unit.
    """
    by_class: dict[int, list[Node]] = {}
    for node in model.graph.nodes:
        if model.channels.roles[node.name].kind is Kind.OPAQUE:
            unit = int(model.channels.layouts[node.outputs[0]].units[0])
            by_class.setdefault(-1 if unit == FREE else int(model.channels.class_of[unit]), []).append(node)
    return by_class


def _why_whole(model: AnalysedModel, group: ChannelClass, opaque: Sequence[Node]) -> tuple[str | None, list[str]]:
    """Return why a class cannot be split (None if it can), and the names of the nodes that tie its channels."""
    names = [n.name for n in opaque]
    if group.splittable:
        return None, names
    if not set(model.channels.layouts[model.graph.output].units.tolist()).isdisjoint(group.units):
        return HOLDS_LOGITS, names
    if opaque:
        return TIED_BY + "opaque nodes", names
    if group.width == 1:
        return ONE_CHANNEL, []
    around = [n for n in model.graph.nodes if _touches(model.channels, n, group)]
    grouped = [n for n in around if _keeps_groups(model, n)]
    if grouped:
        return f"{TIED_BY}{grouped[0].op} on groups of channels", [n.name for n in grouped]
    joins = [n.name for n in around if model.channels.roles[n.name].kind is Kind.JOIN]
    return TIED_BY + "operands with their channels in other orders", joins


def _touches(channels: Channels, node: Node, group: ChannelClass) -> bool:
    layout = channels.layouts.get(node.outputs[0])
    return layout is not None and bool(np.isin(layout.units, group.units).any())


def _keeps_groups(model: AnalysedModel, node: Node) -> bool:
    """Return whether a node ties neighbouring channels in groups. A depthwise convolution does not: its groups have one
    channel."""
    role = model.channels.roles[node.name]
    if role.kind is not Kind.GROUPED:
        return False
    return max(model.graph.shapes[node.inputs[0]][0], model.graph.shapes[node.outputs[0]][0]) > int(node.attrs["group"])


def _opaque(model: AnalysedModel, classes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every opaque node with its reason, the class that it ties, and the share of the MACs that it keeps whole.

    Nodes that tie the same class have this share in common, because the class stays whole until all of them are gone. For
    the class of the logits, which cannot be split anyway, the share is 0. Nodes whose channels are anchored belong to no
    class (None) and have the share of all anchored channels in common.
    """
    entries = {}
    for index, nodes in _opaque_by_class(model).items():
        if index < 0:
            name, cost = None, _anchored_macs(model)
        else:
            name, cost = classes[index]["name"], classes[index]["macs"]
            cost = 0.0 if classes[index]["reason"] == HOLDS_LOGITS else cost
        for node in nodes:
            reason = model.channels.roles[node.name].reason
            facts = {"node": node.name, "op": node.op, "reason": reason}
            entries[node.name] = {**facts, "class": name, "macs": cost}
    return [entries[n.name] for n in model.graph.nodes if n.name in entries]


# --- taps -------------------------------------------------------------------------------------------


def _stretches(model: AnalysedModel) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the candidate taps, each with the part of the graph before it, and the part between the last tap and the
    logits."""
    macs = node_macs(model.graph)
    total = max(1, sum(macs.values()))
    seen: set[str] = set()
    rows = []
    for tensor in (*candidate_taps(model), model.graph.output):
        nodes = _new_ancestors(model.graph, tensor, seen)
        rows.append(
            {
                "tensor": tensor,
                "shape": list(model.graph.shapes[tensor]),
                "macs_before": sum(macs.get(name, 0) for name in seen) / total,
                "operators": _operators(nodes, model.channels),
            }
        )
    return rows[:-1], {"operators": rows[-1]["operators"]}


def _new_ancestors(graph: Graph, tensor: str, seen: set[str]) -> list[Node]:
    """Return the nodes that a tensor depends on and that are not in `seen`, in order, and add them to `seen`."""
    pending, ancestors = [tensor], set()
    while pending:
        node = graph.producer.get(pending.pop())
        if node is not None and node.name not in seen:
            seen.add(node.name)
            ancestors.add(node.name)
            pending.extend(graph.computed(node))
    return [n for n in graph.nodes if n.name in ancestors]


def _operators(nodes: Sequence[Node], channels: Channels) -> dict[str, int]:
    """Return the number of occurrences of each operator, the most significant operators first."""
    counts: dict[str, int] = {}
    for node in sorted(nodes, key=lambda n: _rank(channels.roles[n.name].kind)):
        counts[node.op] = counts.get(node.op, 0) + 1
    return counts


def _rank(kind: Kind) -> tuple[bool, int]:
    return kind in CHEAP, list(Kind).index(kind)
