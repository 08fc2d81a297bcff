"""Where exits can be read: tensors that carry all that later nodes need."""

from __future__ import annotations

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.kinds import Kind

NOWHERE = "the model has no tensor at which an exit could be put; `s2d inspect` shows why"


def pooled_axis(model: AnalysedModel, tap: str) -> int | None:
    """Return the channel axis at which an exit head can read `tap` (pooling every other axis), None if it cannot."""
    layout, shape = model.channels.layouts.get(tap), model.graph.shapes.get(tap, ())
    if (
        layout is None
        or tap in model.graph.folded
        or tap in model.graph.types
        or len(shape) not in (1, 3)
        or layout.axis not in (0, len(shape) - 1)
    ):
        return None
    return layout.axis


def candidate_taps(model: AnalysedModel) -> tuple[str, ...]:
    """Return the tensors that carry all that later nodes need, in order; of each run without a mixing operator only the last,
    and none of the one that ends in the logits.

    A tensor qualifies when, right after its node, every tensor still to be read shows only channels of the same roots. So a
    DenseNet's growing Concat qualifies, and the inside of a residual block does not.
    """
    last_use = {name: index for index, node in enumerate(model.graph.nodes) for name in model.graph.computed(node)}
    live: set[str] = set()
    taps: list[str] = []
    mixed_since = True
    for index, node in enumerate(model.graph.nodes):
        live.update(o for o in node.outputs if last_use.get(o, -1) > index)
        live = {name for name in live if last_use[name] > index}
        if model.channels.roles[node.name].kind in (Kind.MIX, Kind.GROUPED, Kind.OPAQUE):
            mixed_since = True
        name = node.outputs[0]
        if name not in live or pooled_axis(model, name) is None:
            continue
        roots = set(model.channels.layouts[name].roots)
        if all(
            other in model.channels.layouts and roots.issuperset(model.channels.layouts[other].roots) for other in live
        ):
            if not mixed_since and taps:
                taps.pop()
            taps.append(name)
            mixed_since = False
    if not mixed_since and taps:  # what it holds are the logits, but for their shape
        taps.pop()
    return tuple(t for t in taps if t != model.graph.output)
