"""A network's values on all images, computed on request and kept as far as memory allows.

The images are divided into chunks. The tensors that later nodes still read (the frontier) are kept for every chunk if they fit
the budget. Otherwise the next request starts again from the last frontier that did, in the worst case from the images.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array
from s2d_convert.channels.kinds import Kind
from s2d_convert.frontend.graph import BYTES, Graph, Node
from s2d_convert.network.converters.lower import lower
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.liveness import ADDITIVE
from s2d_convert.plans.plan import identity_plan
from s2d_convert.training.reconstruction.columns import channel_rows, image_seeds, sampled_positions

MOST_LEFT = 0.75  # share of a weight up to which it is faster to copy the part that is left, and its input
CHUNK_BYTES, MAX_CHUNK = 64_000_000, 100  # of the largest tensor; images
MIXING = (Kind.MIX, Kind.GROUPED)
NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")


class Pass:
    """Runs the nodes of one plan over chunks of images, in order and only forward.

    Weights of `net` may change between requests for nodes that have not been run by then.
    """

    def __init__(self, net: StagedNet, effective: Effective, chunks: list[Tensor], *, budget_bytes: int) -> None:
        self.net, self.effective, self.graph = net, effective, net.graph
        self.masks: Masks = net.masks(effective)
        self._budget_bytes = budget_bytes
        self._at = 0
        self._kept: list[dict[str, Tensor]] = [{self.graph.image: chunk} for chunk in chunks]
        self._images = sum(len(chunk) for chunk in chunks)
        self._last_use = last_uses(self.graph, effective)
        self._cuts: dict[str, tuple[Tensor, Tensor] | None] = {}
        self._order = {node.name: index for index, node in enumerate(self.graph.nodes)}

    def __len__(self) -> int:
        return len(self._kept)

    def values(self, stop: int, *, also: Collection[str] = ()) -> Iterator[dict[str, Tensor]]:
        """Yield for every chunk the tensors that node `stop` or a later one reads, and those of `also` that nodes before it
        make."""
        fits = self._images * self._frontier_bytes(stop) <= self._budget_bytes
        for index, kept in enumerate(self._kept):
            values = self._run(dict(kept), self._at, stop, also)
            if fits:
                self._kept[index] = {n: v for n, v in values.items() if self._last_use.get(n, -1) >= stop}
            yield values
        if fits:
            self._at = stop

    def retain(self, name: str, index: int) -> None:
        """Keep a tensor until node `index` has been asked for."""
        self._last_use[name] = max(self._last_use.get(name, -1), index)

    def redo(self, nodes: Sequence[Node]) -> None:
        """Compute again what is kept of these nodes, after a change of weights; what the first one reads must be retained."""
        done = [node for node in nodes if self._order[node.name] < self._at]
        for kept in self._kept if done else ():
            values = dict(kept)
            for node in done:
                values.update(zip(node.outputs, self._outputs(node, values), strict=True))
            kept.update({name: values[name] for node in done for name in node.outputs if name in kept})

    def peek(self, chunk: int, stop: int, name: str) -> Tensor:
        """Return one tensor of a chunk, made by a node before `stop`; what is kept stays where it is."""
        return self._run(dict(self._kept[chunk]), self._at, stop, (name,))[name]

    def _run(self, values: dict[str, Tensor], start: int, stop: int, also: Collection[str]) -> dict[str, Tensor]:
        for index in range(start, stop):
            node = self.graph.nodes[index]
            if node.name in self.effective.depth:
                values.update(zip(node.outputs, self._outputs(node, values), strict=True))
            for name in self.graph.computed(node):
                if self._last_use.get(name, -1) <= index and name not in also:
                    values.pop(name, None)
        return values

    def _outputs(self, node: Node, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        layouts = self.effective.channels.layouts
        if all(name in layouts and not self.effective.live(name).any() for name in node.outputs):
            some = values[self.graph.computed(node)[0]]  # zeros without the memory of a map
            return tuple(some.new_zeros(()).expand(len(some), *self.graph.shapes[name]) for name in node.outputs)
        if self.effective.channels.roles[node.name].kind is Kind.MIX:
            return (self.mixed(node, values[node.inputs[0]], self.net.affine(node)),)
        return self.net.run_node(node, values, self.masks)

    def mixed(self, node: Node, x: Tensor, affine: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return what a mixing node makes of its input with this weight and bias, without the work on what the plan leaves
        out."""
        if node.name not in self._cuts:
            self._cuts[node.name] = _cut_of(self.effective, node, x.device)
        cut = self._cuts[node.name]
        if cut is None:
            return self.net.mixed(node, x, affine, self.masks)
        (outputs, channels), (weight, bias) = cut, affine
        read = x if len(channels) == x.shape[1] else x.index_select(1, channels)
        y = lower(node, {})(read, weight[outputs[:, None], channels], None if bias is None else bias[outputs])
        assert isinstance(y, Tensor), "a convolution has one output"
        return y.new_zeros(len(y), len(weight), *y.shape[2:]).index_copy(1, outputs, y)

    def _frontier_bytes(self, stop: int) -> int:
        """Return the bytes per image of what is still to be read from node `stop` on."""
        made = {self.graph.image, *(o for node in self.graph.nodes[:stop] for o in node.outputs)}
        alive = [name for name in made if self._last_use.get(name, -1) >= stop]
        return sum(self.graph.bytes_of(name) for name in alive)


class Samples:
    """The images in chunks, the positions that are sampled of each, and what the static model has there.

    Its values are kept for all plans as far as `kept_bytes` goes; the others are computed again for each plan, beside the
    pass of the cut network (`restart`, `follow`).

    images: float32 [B, ...], or the samples of another network, whose images in memory are shared then.
    """

    def __init__(
        self, net: StagedNet, images: Array | Samples, *, device: torch.device, positions: int, kept_bytes: int
    ) -> None:
        self.net, self.graph, self.per_image = net, net.graph, positions
        self.count: int
        self.chunks: list[Tensor]
        self._seeds: Sequence[Tensor]
        if isinstance(images, Samples):
            self.count, self.chunks, self._seeds = images.count, images.chunks, images._seeds
        else:
            seeds = image_seeds(images)
            order = seeds.argsort()  # a part of the images is then the same part in whatever order they come
            self.count, self.chunks = len(images), chunked(images[order.numpy()], net.graph, device=device)
            self._seeds = seeds[order].split([len(chunk) for chunk in self.chunks])
        self._plan = Effective(net.model, identity_plan(net.model))
        self._rows: dict[str, list[Tensor]] = {}
        self.foreign: frozenset[str] = frozenset()  # tensors whose values are those of another network
        self._static: Pass | None = None
        self._keep(kept_bytes)

    def positions(self, every: int, chunk: int) -> Tensor:
        """Return the sampled positions [B, P] of a map with so many, for the images of a chunk."""
        return sampled_positions(self._seeds[chunk], every, self.per_image).to(self.chunks[chunk].device)

    def count_of(self, name: str) -> int:
        """Return P, how many positions of a tensor are sampled."""
        shape = self.graph.shapes[name]
        every = int(np.prod(shape)) // shape[self.net.channels.layouts[name].axis] if shape else 1
        return min(self.per_image, every)

    def rows_of(self, value: Tensor, name: str, chunk: int) -> Tensor:
        """Return a tensor's values at the sampled positions of a chunk, [N, C]."""
        axis = self.net.channels.layouts[name].axis
        every = value[0].numel() // value.shape[axis + 1]
        return channel_rows(value, axis, self.positions(every, chunk))

    def static_chunk(self, chunk: int) -> Pass:
        """Return a pass of the static model over one chunk."""
        return self.static_pass(self.chunks[chunk])

    def static_pass(self, images: Tensor) -> Pass:
        """Return a pass of the static model over images [B, ...]."""
        return Pass(self.net, self._plan, [images], budget_bytes=sys.maxsize)

    def restart(self, budget_bytes: int) -> None:
        """Begin a new plan: the static model starts from the images again."""
        self._static = Pass(self.net, self._plan, self.chunks, budget_bytes=budget_bytes)

    def follow(self, stop: int, name: str) -> None:
        """Bring the static model to node `stop`, if its values of a tensor were not kept."""
        if name not in self._rows and self._static is not None:
            for _ in self._static.values(stop):
                pass

    def static(self, name: str, chunk: int) -> Tensor:
        """Return the static model's values of a tensor at the sampled positions of a chunk, [N, C]."""
        if name in self._rows:
            return self._rows[name][chunk]
        assert self._static is not None, "a plan begins with `restart`"
        stop = self.graph.nodes.index(self.graph.producer[name]) + 1
        return self.rows_of(self._static.peek(chunk, stop, name), name, chunk)

    def logits_variance(self) -> float:
        """Return the variance of the static model's logits over the images, summed over the classes."""
        logits = torch.cat(self._rows[self.graph.output])
        return float(logits.double().var(0, correction=0).sum())

    def answer_as(self, other: Samples) -> None:
        """Take the logits of the static model from other samples of the same images, in the same order."""
        self.foreign = frozenset({self.graph.output})
        logits = torch.cat(other._rows[self.graph.output])
        self._rows[self.graph.output] = list(logits.split([len(chunk) for chunk in self.chunks]))

    def _keep(self, kept_bytes: int) -> None:
        channels, wanted = self.net.channels, {self.graph.output: len(self.graph.nodes)}
        for index, node in enumerate(self.graph.nodes):
            name, kind = node.outputs[0], channels.roles[node.name].kind
            sums = node.op in ADDITIVE or node.op in NORMS
            if name in channels.layouts and name not in self.graph.folded and (kind in MIXING or sums):
                kept_bytes -= BYTES * self.count * self.count_of(name) * len(channels.layouts[name].units)
                if kept_bytes > 0:
                    wanted.setdefault(name, index + 1)
        for chunk in range(len(self.chunks)):
            static = self.static_chunk(chunk)
            for name, stop in sorted(wanted.items(), key=lambda item: item[1]):
                (values,) = static.values(stop, also=[name])
                self._rows.setdefault(name, []).append(self.rows_of(values[name], name, chunk))


def _cut_of(effective: Effective, node: Node, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return the outputs and channels that a plan leaves of a convolution; None where masks say more, or little is left out."""
    mask = effective.mask(node) if node.op == "Conv" and effective.channels.roles[node.name].kind is Kind.MIX else None
    if mask is None or not mask.any():
        return None
    outputs, channels = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not mask[np.ix_(outputs, channels)].all() or len(outputs) * len(channels) > MOST_LEFT * mask.size:
        return None
    return torch.from_numpy(outputs).to(device), torch.from_numpy(channels).to(device)


def last_uses(graph: Graph, effective: Effective) -> dict[str, int]:
    """Return the index of the last node of the plan that reads each tensor."""
    nodes = [(index, node) for index, node in enumerate(graph.nodes) if node.name in effective.depth]
    return {name: index for index, node in nodes for name in graph.computed(node)}


def chunked(images: Array, graph: Graph, *, device: torch.device) -> list[Tensor]:
    """Return the images in chunks on a device, so that the largest tensor of a chunk stays small."""
    largest = max(map(graph.bytes_of, graph.shapes))
    size = int(np.clip(CHUNK_BYTES // largest, 1, MAX_CHUNK))
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return [torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)).to(device) for part in parts]
