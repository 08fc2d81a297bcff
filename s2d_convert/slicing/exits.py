"""Exit heads as ONNX nodes: from the features of a tap to the logits of a stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2d_convert.plans.weights import ExitHead
from s2d_convert.slicing.pieces import Pieces
from s2d_convert.slicing.stage_graph import StageGraph


def exit_logits(pieces: Pieces, stage: int, tap: str, head: ExitHead) -> str:
    """Add the logits of an exit: means over the cells of the tap, then the layers of the head. Returns their runtime name."""
    graph, layout, builder = pieces.graph, pieces.channels.layouts[tap], pieces.stages[stage - 1]
    source, order = pieces.fetch(stage, tap, pieces.demand.readable(tap, stage))
    if len(graph.shapes[tap]) == 3:
        source = _pooled(builder, graph.shapes[tap], layout.axis, source, len(order), cell=head.cell)
    first = head.first_weight(len(layout.units))[:, order]
    weights = [first.reshape(len(first), -1), *(weight for weight, _ in head.layers[1:])]
    for number, (weight, (_, bias)) in enumerate(zip(weights, head.layers, strict=True), start=1):
        name, shape = ("exit.logits" if number == len(weights) else f"exit.hidden{number}"), [len(weight)]
        source = builder.op("Gemm", [source, weight, bias], name, shape, attrs={"transB": 1})
        if number < len(weights):
            source = builder.op("Relu", [source], f"{name}.relu", shape)
        builder.macs += int(weight.size)
    shape = list(graph.shapes[graph.output])
    if len(shape) > 1:
        source = builder.op("Reshape", [source, np.array([0, *shape])], "exit.shaped", shape)
    return source


def _pooled(
    builder: StageGraph, form: Sequence[int], axis: int, source: str, count: int, *, cell: tuple[int, int] | None
) -> str:
    """Add the features of a head: the means over the cells of a map of this `form` with `count` channels along `axis`."""
    shape = list(form)
    if cell is None and axis == 2:
        return builder.reduce("ReduceMean", source, [1, 2], [count])
    if axis == 2:
        shape = [shape[2], *shape[:2]]
        source = builder.op("Transpose", [source], "exit.map", [count, *shape[1:]], attrs={"perm": [0, 3, 1, 2]})
    grid = [1, 1] if cell is None else [side // step for side, step in zip(shape[1:], cell, strict=True)]
    if cell is None:
        source = builder.op("GlobalAveragePool", [source], "exit.pooled", [count, *grid])
    elif cell != (1, 1):
        steps = {"kernel_shape": list(cell), "strides": list(cell)}
        source = builder.op("AveragePool", [source], "exit.pooled", [count, *grid], attrs=steps)
    return builder.op("Flatten", [source], "exit.features", [count * int(np.prod(grid))], attrs={"axis": 1})
