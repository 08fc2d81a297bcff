"""Mixing nodes as matrix products: which input values every output position reads.

A convolution is linear in its weight: at every output position, output o is the inner product of row o of the weight with
the input values under the kernel ("im2col"). Which values these are, under any pads, strides, dilations and ranks, is
not worked out here. The operator's own builder tells: run with a kernel that is 1 at one element and 0 elsewhere, on a
map that holds the *number* of every position, it answers with the number of the position that this element reads.

Letters: B images, P positions of an image, N = B * P rows, T kernel elements, G groups, C input channels, D = T * C / G
columns, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.network.converters.lower import lower
from s2d_convert.network.layers import as_numpy
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.weights import Affine

GOLDEN = (5**0.5 - 1) / 2
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, and far from any pattern in pixels
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True, eq=False)
class LinearView:
    """How a mixing node reads its input: `reads` int64 [T, all output positions] numbers the input position that kernel
    element t reads, or is `positions_in` where it reads padding; `width` is C, the axes are those of the channels."""

    reads: Tensor
    groups: int
    width: int
    axis_in: int
    axis_out: int
    positions_in: int

    @property
    def positions(self) -> int:
        """How many output positions an image has."""
        return int(self.reads.shape[1])

    def rows(self, x: Tensor, positions: Tensor, channels: Tensor | None) -> Tensor:
        """Return what the output positions [B, P] of an input [B, ...] read of its channels (None: of all), float32 [N, G,
        D]."""
        if channels is not None:
            x = x.index_select(self.axis_in + 1, channels)
        batch, elements, width = len(x), len(self.reads), x.shape[self.axis_in + 1]
        # A line of channels per position, and one of zeros for padding: rows are then copies of whole lines.
        lines = x.new_zeros(batch, self.positions_in + 1, width)
        lines[:, :-1] = x.movedim(self.axis_in + 1, -1).reshape(batch, self.positions_in, width)
        wanted = self.reads[:, positions].movedim(0, 2)  # [B, P, T]
        first = torch.arange(batch, device=x.device).view(-1, 1, 1) * (self.positions_in + 1)
        picked = lines.flatten(0, 1).index_select(0, (wanted + first).flatten())
        if self.groups == 1:
            return picked.view(-1, 1, elements * width)
        groups = width * self.groups // self.width  # those whose channels were asked for
        return picked.view(-1, elements, groups, width // groups).transpose(1, 2).flatten(2)


def linear_view(graph: Graph, node: Node, weight: Array) -> LinearView:
    """Return the linear view of a MIX or GROUPED node with weight [O, C / G, *kernel]."""
    shape = graph.shapes[node.inputs[0]]
    if node.op not in CONVOLUTIONS:
        count = int(np.prod(shape[:-1]))
        last = len(shape) - 1
        return LinearView(torch.arange(count)[None], 1, shape[-1], last, len(graph.shapes[node.outputs[0]]) - 1, count)
    kernel, count = weight.shape[2:], int(np.prod(shape[1:]))
    single = lower(replace(node, attrs={**node.attrs, "group": 1}), {})
    elements = int(np.prod(kernel))
    # Counted from 1, so that 0 is padding; float64 holds every whole number that occurs.
    numbers = torch.arange(1, count + 1, dtype=torch.float64).view(1, 1, *shape[1:])
    reads = []
    for element in range(elements):
        one = torch.zeros(elements, dtype=torch.float64)
        one[element] = 1
        answer = single(numbers, one.view(1, 1, *kernel))
        assert isinstance(answer, Tensor), "a convolution has one output"
        reads.append(answer.flatten().round().long() - 1)
    positions = torch.stack(reads)
    positions[positions < 0] = count
    return LinearView(positions, int(node.attrs.get("group", 1)), shape[0], 0, 0, count)


@dataclass(frozen=True, eq=False)
class Layer:
    """A MIX or GROUPED node under one plan, as G matrix products over the channels and outputs that the plan keeps.

    `channels` and `outputs` number what is kept, int64; `readable` bool [O, D] says which columns an output may read; `matrix`
    [G, o, D] and `shift` [G, 1, o] are the old weights. `biased`: whether the operator can have a bias.
    """

    view: LinearView
    channels: Tensor
    outputs: Tensor
    readable: Tensor
    matrix: Tensor
    shift: Tensor
    biased: bool

    @property
    def columns(self) -> int:
        """D, the columns of one group."""
        return int(self.matrix.shape[2])

    @property
    def groups(self) -> int:
        """G, the number of groups."""
        return len(self.matrix)

    def rows(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what positions [B, P] of an input read, [N, G, D], and what the old weights make of it, [N, G, o]."""
        rows = self.view.rows(x, positions, self.channels)
        made = torch.bmm(rows.transpose(0, 1), self.matrix.transpose(1, 2)) + self.shift
        return rows, made.transpose(0, 1)

    def spread(self, step: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return a step [G, D + 1, o] as one of the whole weight, of this shape, and bias [O]; what is not kept gets none."""
        weight, bias = step.new_zeros(*shape[:2], len(self.view.reads)), step.new_zeros(shape[0])
        weights = step[:, :-1].transpose(1, 2).reshape(len(self.outputs), len(self.view.reads), -1).transpose(1, 2)
        if self.view.groups > 1:
            weight[self.outputs] = weights
        else:
            weight[self.outputs[:, None], self.channels] = weights
        bias[self.outputs] = step[:, -1].flatten()
        return weight.reshape(shape), bias

    def gathered(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the part of a whole weight and bias that is kept, [G, D + 1, o]: the transpose of `spread`."""
        rows = weight.reshape(*weight.shape[:2], -1)[self.outputs]
        rows = (rows if self.view.groups > 1 else rows[:, self.channels]).transpose(1, 2)
        lines = rows.reshape(self.groups, -1, self.columns).transpose(1, 2)
        return torch.cat([lines, bias[self.outputs].view(self.groups, 1, -1)], dim=1)

    def added(self, affine: Affine, weight: Tensor, bias: Tensor) -> Affine:
        """Return the node's weight and bias with a step [O, D] and [O] added."""
        fresh, shift = affine[0].astype(np.float32, copy=True), affine[1]
        outputs, channels = self.outputs.cpu().numpy(), self.channels.cpu().numpy()
        width = len(channels) // self.groups
        step = as_numpy(weight).reshape(len(outputs), -1, width).swapaxes(1, 2)
        step = step.reshape(len(outputs), width, *fresh.shape[2:])
        if self.view.groups > 1:
            fresh[outputs] += step
        else:
            fresh[np.ix_(outputs, channels)] += step
        if self.biased and (shift is not None or bool(bias.any())):
            shift = np.zeros(len(fresh), np.float32) if shift is None else shift.astype(np.float32, copy=True)
            shift[outputs] += as_numpy(bias)
        return fresh, shift


def layer_of(view: LinearView, effective: Effective, node: Node, affine: Affine) -> Layer:
    """Return a node as the plan leaves it; it may have no output at all."""
    weight, bias = affine
    elements = len(view.reads)
    if view.groups == 1:
        mask = effective.mask(node)
        outputs, channels = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        readable = np.tile(mask[np.ix_(outputs, channels)], (1, elements))
    else:
        outputs, width = np.flatnonzero(effective.live(node.outputs[0])), weight.shape[1]
        groups = np.unique(outputs // (len(weight) // view.groups))
        channels = (groups[:, None] * width + np.arange(width)).reshape(-1)
        readable = np.ones((len(outputs), width * elements), dtype=bool)
    kept = weight.reshape(*weight.shape[:2], -1)[outputs]
    kept = kept if view.groups > 1 else kept[:, channels]
    count = 1 if view.groups == 1 else len(groups)
    per_group = len(outputs) // max(1, count)
    matrix = kept.swapaxes(1, 2).reshape(count, per_group, elements * kept.shape[1])
    shift = np.zeros(len(outputs), np.float32) if bias is None else bias[outputs]
    device = view.reads.device
    return Layer(
        view,
        channels=torch.from_numpy(channels).to(device),
        outputs=torch.from_numpy(outputs).to(device),
        readable=torch.from_numpy(readable).to(device),
        matrix=torch.tensor(matrix, dtype=torch.float32, device=device),
        shift=torch.tensor(shift.reshape(count, 1, per_group), dtype=torch.float32, device=device),
        biased=bias is not None or node.op != "MatMul",
    )


def channel_rows(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Return the channels of a tensor [B, ...] with channel `axis` (without the batch) at positions [B, P], as rows [N, C]."""
    lines = x.movedim(axis + 1, -1).reshape(len(x), -1, x.shape[axis + 1])
    first = torch.arange(len(x), device=x.device).view(-1, 1) * lines.shape[1]
    return lines.flatten(0, 1).index_select(0, (positions + first).flatten())


def image_seeds(images: Array) -> Tensor:
    """Return a number in [0, 1) for every image, float64 [B], from what it shows: the order of the images has no part in it."""
    seeds = np.empty(len(images))
    with np.errstate(over="ignore"):
        for index, image in enumerate(images):
            words = np.ascontiguousarray(image, dtype=np.float32).reshape(-1).view(np.uint32).astype(np.uint64)
            mixed = (words * FACTOR + np.arange(len(words), dtype=np.uint64)) ** np.uint64(3)
            seeds[index] = float(mixed.sum(dtype=np.uint64) >> np.uint64(11)) / 2.0**53
    return torch.from_numpy(seeds)


def sampled_positions(seeds: Tensor, every: int, count: int) -> Tensor:
    """Return positions int64 [B, P] out of `every` for images with these seeds, at most `count`: multiples of the golden
    section, shifted by the seed, which spread evenly wherever the row is cut; all of them, in such an order, where `count`
    allows."""
    if every <= count:
        return ((seeds[:, None] + torch.arange(every, dtype=torch.float64) * GOLDEN) % 1).argsort(dim=1)
    places = (seeds[:, None] + torch.arange(count, dtype=torch.float64) * GOLDEN) % 1
    return (places * every).long().clamp_max(every - 1)
