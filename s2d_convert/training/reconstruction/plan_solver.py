"""One plan solved: node by node, in topological order, each against what the static model has there.

Letters: B images, N rows (images times positions), C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import macs_of
from s2d_convert.channels.pointwise import channel_axis_of_constant
from s2d_convert.frontend.graph import Node
from s2d_convert.network.layers import as_numpy, channel_means
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.weights import Affine, ExitHead, Weights, initial_head, linear_head
from s2d_convert.training.reconstruction.columns import Layer, LinearView, layer_of
from s2d_convert.training.reconstruction.pairs import Pair, Piece, Refinement, pair_of
from s2d_convert.training.reconstruction.passes import MAX_CHUNK, NORMS, Pass, Samples
from s2d_convert.training.reconstruction.ridge import (
    MAX_COLUMNS,
    MAX_DUAL_ROWS,
    Activation,
    Moments,
    NodeError,
    Problem,
)
from s2d_convert.training.reconstruction.targets import Target, Targets

NEGLIGIBLE = 1e-8  # error relative to the variance of the target
MAX_PAIR_COLUMNS = 2500  # of a first layer that is solved again; limits the memory and time of its Gram matrix
MAX_PAIR_MACS = 15_000_000_000  # of one such step, roughly


@dataclass(frozen=True)
class Settings:
    """How plans are solved.

    positions: sampled positions of every map. ridge: strength of the regularisation, relative to the mean square of a column.
    rounds: further solves through an activation. mirrored: whether mirrored images are added. pair_steps: steps of conjugate
    gradients that solve the first layer of a pair again (0: none), on up to `pair_images` images.

    values_bytes: limit for the activations that are kept between two nodes, once for the cut network and once for the static
    model. targets_bytes: limit for the static model's values that are kept between two plans.
    """

    positions: int = 32
    ridge: float = 1e-2
    rounds: int = 3
    mirrored: bool = False
    pair_steps: int = 5
    pair_images: int = 500
    values_bytes: int = 600_000_000
    targets_bytes: int = 600_000_000


@dataclass(frozen=True)
class Solved:
    """Weights for one plan, and the errors by node name or tap."""

    weights: Weights
    errors: Mapping[str, NodeError]


@dataclass(frozen=True, eq=False)
class Shared:
    """What the solves of all plans share: the static model, its values at sampled positions, and how its nodes read."""

    model: AnalysedModel
    weights: Weights
    settings: Settings
    samples: Samples
    view: Callable[[Node], LinearView]


class PlanSolver:
    """Solves one plan. `net` is the cut network, whose weights are replaced as they are solved."""

    def __init__(self, shared: Shared, effective: Effective, net: StagedNet) -> None:
        self.model, self.graph, self.channels = shared.model, shared.model.graph, shared.model.channels
        self.weights, self.settings, self.samples, self.view = (
            shared.weights,
            shared.settings,
            shared.samples,
            shared.view,
        )
        self.effective, self.net, self.device = effective, net, next(net.parameters()).device
        budget = self.settings.values_bytes
        self.cut = Pass(net, effective, self.samples.chunks, budget_bytes=budget)
        self.samples.restart(budget)
        self.targets = Targets(effective, self._evaluate)
        self._unchanged = self._find_unchanged()
        self.pairs = self._find_pairs()
        self.mix: dict[str, Affine] = {}
        self.operands: dict[tuple[str, int], Array] = {}
        self.heads: dict[str, ExitHead] = {}
        self.errors: dict[str, NodeError] = {}

    def solve(self) -> Solved:
        """Return the weights for the plan, its exit heads included, and the errors of every node that was solved."""
        taps = set(self.effective.plan.taps) - {self.graph.output}
        for index, node in enumerate(self.graph.nodes):
            if node.name in self.effective.depth:
                if self._is_right(node):
                    self.errors[node.name] = NodeError(0.0, 0.0)
                elif node.name in self.weights.mix:
                    pair = self.pairs.get(node.name)
                    if pair is not None:
                        self._solve_node(index, node, rounds=0)
                        self._refine(index, pair)
                    self._solve_node(index, node, rounds=self.settings.rounds)
                elif node.op in NORMS:
                    self._refit_norm(index, node)
                for tap in taps.intersection(node.outputs):
                    self._solve_head(index + 1, tap)
        old, heads = self.weights, {**self.weights.heads, **self.heads}
        weights = Weights({**old.mix, **self.mix}, {**old.operands, **self.operands}, heads, old.temperatures)
        return Solved(weights, self.errors)

    def _find_unchanged(self) -> frozenset[str]:
        """Return the tensors that the cut network makes as they are to be: those before the first cut, but for logits that are to
        be those of another image size."""
        masks, unchanged = self.cut.masks, {self.graph.image}
        for node in self.graph.nodes:
            whole = masks.mix.get(node.name) is None and node.name not in masks.levels
            if whole and node.name in self.effective.depth and unchanged.issuperset(self.graph.computed(node)):
                unchanged.update(name for name in node.outputs if self._is_whole(name))
        return frozenset(unchanged - self.samples.foreign)

    def _is_whole(self, name: str) -> bool:
        return name not in self.channels.layouts or bool(self.effective.live(name).all())

    def _is_right(self, node: Node) -> bool:
        """Return whether the weights of a mixing node, or of a norm, are right as they are: before the first cut, unless it is to
        stand in for a block that is left out behind it."""
        weighted = node.name in self.weights.mix or node.op in NORMS
        return weighted and node.outputs[0] in self._unchanged and self.targets.of(node).tensor in self._unchanged

    def _find_pairs(self) -> dict[str, Pair]:
        """Return the pairs of layers by the name of the second; the pass keeps what the first one reads until then."""
        pairs: dict[str, Pair] = {}
        for index, node in enumerate(self.graph.nodes):
            alive = node.name in self.effective.depth and node.name in self.weights.mix
            pair = pair_of(self.targets, node) if alive and self.settings.pair_steps else None
            if pair is not None and self.weights.mix[pair.first.name][0][0].size <= MAX_PAIR_COLUMNS:
                pairs[node.name] = pair
                self.cut.retain(pair.first.inputs[0], index)
        return pairs

    def _refine(self, index: int, pair: Pair) -> None:
        """Solve the first layer of a pair again for what the second makes of it, if that makes it better."""
        layers = [
            layer_of(self.view(n), self.effective, n, self.weights.mix[n.name]) for n in (pair.first, pair.second)
        ]
        if not all(len(layer.outputs) for layer in layers) or self.errors[pair.second.name].after < NEGLIGIBLE:
            return
        target, samples = self.targets.of(pair.second), self.samples
        macs = sum(macs_of(n, self.graph) for n in (pair.first, pair.second))
        wanted = min(self.settings.pair_images, max(1, MAX_PAIR_MACS // macs))
        pieces: list[Piece] = []
        for chunk, (values, rows, others) in enumerate(self._chunks(index, target)):
            if sum(len(piece.x) for piece in pieces) < wanted + MAX_CHUNK:
                positions = (samples.positions(layer.view.positions, chunk) for layer in reversed(layers))
                outputs = layers[1].outputs
                pieces.append(Piece(values[pair.first.inputs[0]], rows[:, outputs], others[:, outputs], *positions))
        count = max(1, sum(sum(len(p.x) for p in pieces[: i + 1]) <= wanted for i in range(len(pieces) - 1)))
        refinement = Refinement(self.cut, pair, layers=(layers[0], layers[1]), activation=self._activation(target))
        settings = self.settings
        step = refinement.step(pieces[:count], pieces[count:], ridge=settings.ridge, iterations=settings.pair_steps)
        if step is None:
            return
        first = self.mix.get(pair.first.name, self.weights.mix[pair.first.name])
        self.mix[pair.first.name] = layers[0].added(first, *step)
        self.net.set_affine(pair.first, self.mix[pair.first.name])
        self.cut.redo((pair.first, *pair.between))

    def _activation(self, target: Target) -> Activation | None:
        return None if target.activation is None else partial(self._evaluate, target.activation)

    def _evaluate(self, node: Node, x: Tensor) -> Tensor:
        """Return what a node with one computed input makes of it."""
        (source,) = self.graph.computed(node)
        return self.net.run_node(node, {source: x.to(self.device)}, replace(self.cut.masks, live={}))[0]

    def _chunks(self, index: int, target: Target) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Yield per chunk the cut network's values before node `index`, and at the sampled positions the target [N, C] and the
        other summands [N, C], which are not in the target any more."""
        self.samples.follow(index, target.tensor)
        for chunk, values in enumerate(self.cut.values(index, also=[name for name, _ in target.others])):
            rows = self.samples.static(target.tensor, chunk)
            others = torch.zeros_like(rows)
            for name, sign in target.others:
                others = others + sign * self.samples.rows_of(values[name], name, chunk)
            rows = rows - others
            if target.scale is not None and target.offset is not None:
                scale, offset = (
                    torch.tensor(v, dtype=rows.dtype, device=rows.device) for v in (target.scale, target.offset)
                )
                rows = (rows - offset) / scale
            yield values, rows, others

    def _solve_node(self, index: int, node: Node, *, rounds: int) -> None:
        """Solve one mixing node and go on with its new weights."""
        affine = self.weights.mix[node.name]
        layer = layer_of(self.view(node), self.effective, node, affine)
        if not len(layer.outputs):
            return
        target, totals = self.targets.of(node), Moments()
        activation = self._activation(target)
        taken = self._positions_taken(layer)
        problem = Problem(
            layer.columns,
            groups=layer.groups,
            rows_expected=self.samples.count * taken,
            biased=layer.biased,
            activation=activation,
        )
        for chunk, (values, wanted, others) in enumerate(self._chunks(index, target)):
            positions = self.samples.positions(layer.view.positions, chunk)
            if taken < positions.shape[1]:
                wanted, others = (v.unflatten(0, positions.shape)[:, :taken].flatten(0, 1) for v in (wanted, others))
                positions = positions[:, :taken]
            x, made = layer.rows(values[node.inputs[0]], positions)
            wanted, others = (v[:, layer.outputs].reshape(made.shape) for v in (wanted, others))
            old = made + others
            totals.add((wanted + others if activation is None else activation(wanted + others)).flatten(1))
            problem.add(x, wanted - made, old)
        step = problem.solve(layer.readable, ridge=self.settings.ridge, rounds=rounds)
        self.mix[node.name] = layer.added(affine, step.weight, step.bias)
        self.net.set_affine(node, self.mix[node.name])
        self.errors[node.name] = totals.error(step)

    def _positions_taken(self, layer: Layer) -> int:
        """Return how many positions of an image a node is solved on: fewer where the rows would be too many for the dual."""
        positions = min(self.settings.positions, layer.view.positions)
        if layer.columns <= MAX_COLUMNS:
            return positions
        return max(1, min(positions, MAX_DUAL_ROWS // self.samples.count))

    def _refit_norm(self, index: int, node: Node) -> None:
        """Scale and shift the channels of a norm so that they are nearest to the static model's."""
        name, source = node.outputs[0], node.inputs[0]
        axis, rank = self.channels.layouts[name].axis, len(self.graph.shapes[source])
        width = len(self.channels.layouts[name].units)
        vectors = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] in self.graph.constants]
        constants = {i: self.weights.operand(self.graph, node, i) for i in vectors}
        fits = [
            v.size == width and channel_axis_of_constant(node, i, v, rank=rank, axis=axis) is not None
            for i, v in constants.items()
        ]
        live = torch.from_numpy(self.effective.live(name)).to(self.device)
        if not fits or not all(fits) or not bool(live.any()) or len(self.graph.computed(node)) != 1:
            return
        target, totals = self.targets.of(node), Moments()
        problem = Problem(
            1, groups=width, rows_expected=self.samples.count * self.samples.count_of(name), biased=2 in vectors
        )
        for chunk, (values, wanted, _) in enumerate(self._chunks(index, target)):
            (made,) = self.net.run_node(node, {source: values[source]}, self.cut.masks)
            rows = self.samples.rows_of(made, name, chunk)
            totals.add(wanted)
            problem.add(rows[:, :, None], (wanted - rows)[:, :, None], rows[:, :, None])
        step = problem.solve(torch.ones(width, 1, dtype=torch.bool, device=self.device), ridge=self.settings.ridge)
        factor, shift = (as_numpy(torch.where(live, v, 0.0)) for v in (step.weight[:, 0], step.bias))
        for i, constant in constants.items():
            fresh = constant.reshape(-1) * (1 + factor) + (shift if i == 2 else 0)
            self.operands[node.name, i] = fresh.reshape(constant.shape).astype(np.float32)
            self.net.set_operand(node, i, self.operands[node.name, i])
        self.errors[node.name] = totals.error(step)

    def _solve_head(self, index: int, tap: str) -> None:
        """Solve the exit head of a tap against the static model's logits."""
        head = self.weights.heads.get(tap) or initial_head(self.model, tap)
        if len(head.layers) > 1 or head.cell is not None:
            head = initial_head(self.model, tap)
        (weight, bias) = (torch.tensor(v, device=self.device) for v in head.layers[0])
        stage = self.effective.plan.taps.index(tap) + 1
        columns = torch.from_numpy(self.effective.readable(tap, stage)).to(self.device)
        axis = self.channels.layouts[tap].axis
        problem = Problem(len(columns), rows_expected=self.samples.count, biased=True)
        totals = Moments()
        for chunk, values in enumerate(self.cut.values(index, also=[tap])):
            x = channel_means(values[tap], axis) * columns
            logits, made = self.samples.static(self.graph.output, chunk).view(len(x), -1), x @ weight.T + bias
            totals.add(logits)
            problem.add(x[:, None], (logits - made)[:, None], made[:, None])
        step = problem.solve(columns.expand(len(weight), -1), ridge=self.settings.ridge)
        fresh = (as_numpy((weight + step.weight) * columns), as_numpy(bias + step.bias))
        self.heads[tap] = linear_head(*fresh)
        self.errors[tap] = totals.error(step)
