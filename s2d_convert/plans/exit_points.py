"""Where exits can be read: tensors that carry all that later nodes need."""

from __future__ import annotations

from s2d_convert.channels.analysis import Channels
from s2d_convert.channels.rules import Kind
from s2d_convert.frontend.graph import Graph


def pooled_axis(graph: Graph, channels: Channels, tap: str) -> int | None:
    """The channel axis at which an exit head can read `tap` (pooling every other axis), None if it cannot."""
    layout, shape = channels.layouts.get(tap), graph.shapes.get(tap, ())
    if (
        layout is None
        or tap in graph.folded
        or tap in graph.types
        or len(shape) not in (1, 3)
        or layout.axis not in (0, len(shape) - 1)
    ):
        return None
    return layout.axis


def candidate_taps(graph: Graph, channels: Channels) -> tuple[str, ...]:
    """Tensors that carry all that later nodes need, in order; the last of each run without a mixing operator.

    A tensor qualifies when, right after its node, every tensor still to be read shows only channels of
    the same roots (so a DenseNet's growing Concat qualifies, the inside of a residual block does not).
    """
    last_use = {name: index for index, node in enumerate(graph.nodes) for name in graph.computed(node)}
    live: set[str] = set()
    taps: list[str] = []
    mixed_since = True
    for index, node in enumerate(graph.nodes):
        live.update(o for o in node.outputs if last_use.get(o, -1) > index)
        live = {name for name in live if last_use[name] > index}
        if channels.roles[node.name].kind in (Kind.MIX, Kind.GROUPED, Kind.OPAQUE):
            mixed_since = True
        name = node.outputs[0]
        if name not in live or pooled_axis(graph, channels, name) is None:
            continue
        roots = set(channels.layouts[name].roots)
        if all(other in channels.layouts and roots.issuperset(channels.layouts[other].roots) for other in live):
            if not mixed_since and taps:
                taps.pop()
            taps.append(name)
            mixed_since = False
    return tuple(t for t in taps if t != graph.output)
