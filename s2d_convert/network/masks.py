"""What a plan does to a staged network: masks of weights, columns of heads, and the levels of norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.kinds import Kind
from s2d_convert.channels.pointwise import UNDEFINED_AT_ZERO
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.assignment import Effective

# How a plan shows in the one dense pass, by what a node does to channels: in single `links` of a weight, in whole `rows`
# of it, in the `levels` that a node is computed in one after the other, or not at all, because what it reads is masked.
# TIE is missing, because a finished analysis has none: see `kinds.FINAL_KINDS`.
SHOWN: Mapping[Kind, Literal["links", "rows", "levels", "inputs"]] = {
    Kind.MIX: "links",
    Kind.GROUPED: "rows",
    Kind.MAP: "inputs",
    Kind.JOIN: "inputs",
    Kind.NORM: "levels",
    Kind.REDUCE: "levels",
    Kind.MOVE: "inputs",
    Kind.OPAQUE: "inputs",
}


@dataclass(frozen=True)
class Level:
    """What one stage computes of a NORM or REDUCE node: the channels it reads, those it makes, and where they lie
    among those that it reads; int64 vectors."""

    read: Tensor
    made: Tensor
    place: Tensor


@dataclass(frozen=True)
class Masks:
    """What a plan does to a StagedNet: per MIX node the mask [O, I, 1...] and the rows that have any input
    (None where nothing is masked), per stage the tap and the head's columns, and per NORM or REDUCE node that does
    not see all channels at once the `levels` that it is computed in. `live` has, for what is undefined at zero, which
    channels of each input and of the output the plan keeps."""

    mix: Mapping[str, tuple[Tensor, Tensor] | None]
    taps: tuple[str, ...]
    columns: tuple[Tensor | None, ...]
    levels: Mapping[str, tuple[Level, ...]] = field(default_factory=dict)
    live: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def masks_of(model: AnalysedModel, effective: Effective, device: torch.device) -> Masks:
    """Return the masks of a plan, on a device."""
    nodes = [node for node in model.graph.nodes if node.name in effective.depth]
    weighted = [node for node in nodes if SHOWN[model.kind(node)] in ("links", "rows")]
    columns: list[Tensor | None] = []
    for stage, tap in enumerate(effective.plan.taps, start=1):
        readable = effective.readable(tap, stage)
        free = tap == model.graph.output or bool(readable.all())
        columns.append(None if free else torch.tensor(readable, dtype=torch.float32, device=device))
    levels = {node.name: _levels(model, node, effective, device) for node in nodes}
    undefined = [node for node in nodes if node.op in UNDEFINED_AT_ZERO and not effective.live(node.outputs[0]).all()]
    return Masks(
        {node.name: _weight_mask(model, node, effective, device) for node in weighted},
        effective.plan.taps,
        tuple(columns),
        {name: steps for name, steps in levels.items() if steps is not None},
        {node.name: _live(model, node, effective, device) for node in undefined},
    )


def _weight_mask(
    model: AnalysedModel, node: Node, effective: Effective, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Return the mask [O, I, 1...] of a weight and its rows [O] that have any input, None where nothing is masked."""
    whole_rows = SHOWN[model.kind(node)] == "rows"
    mask = effective.live(node.outputs[0])[:, None] if whole_rows else effective.mask(node)
    if mask.all():
        return None
    rank = model.graph.constants[node.inputs[1]].ndim
    grid = torch.tensor(mask, dtype=torch.float32, device=device)
    return grid.view(*grid.shape, *[1] * (rank - 2)), grid.amax(1)


def _levels(model: AnalysedModel, node: Node, effective: Effective, device: torch.device) -> tuple[Level, ...] | None:
    """Return the levels of a NORM or REDUCE node that does not see all channels at once, None for all other nodes."""
    if SHOWN[model.kind(node)] != "levels":
        return None
    levels = effective.levels(node)
    if len(levels) == 1 and len(levels[0][0]) == len(model.layout(node.inputs[0]).units):
        return None
    return tuple(
        Level(*(torch.tensor(v, device=device) for v in (read, made, np.searchsorted(read, made))))
        for read, made in levels
    )


def _live(model: AnalysedModel, node: Node, effective: Effective, device: torch.device) -> dict[str, Tensor]:
    """Return which channels of each computed input and of the output a plan keeps, shaped to broadcast over the batch."""
    live = {}
    for name in (*model.graph.computed(node), node.outputs[0]):
        shape = [1] * (len(model.graph.shapes[name]) + 1)
        shape[model.layout(name).axis + 1] = -1
        live[name] = torch.tensor(effective.live(name), device=device).view(shape)
    return live
