"""Weights of any plan in closed form: every mixing layer is solved by ridge regression, no gradient step is made.

A plan takes channels and blocks away. Most of what training then gets back is linear: at every mixing node, in topological
order, the weights that bring what the *cut* network has at its input nearest to what the *static* model has at its output
(channel pruning, He et al., ICCV 2017; with sums and left-out blocks as `reconstruction_targets` says). As every solve sees
the errors of those before it, it makes up for them as far as a linear map can. Linked stages are solved by the same rule as they
are computed: a row of stage s reads the columns with e <= s. Norms are refitted channel by channel, exit heads
are solved against the static model's logits.

Letters: B images, N rows (images times positions), D columns, O outputs, C channels, K classes, S stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.channels.macs import macs_of
from s2d_convert.channels.pointwise import channel_axis_of_constant
from s2d_convert.frontend.graph import Node
from s2d_convert.network.layers import as_numpy, channel_means
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.weights import Affine, ExitHead, Weights, initial_head, linear_head
from s2d_convert.training.reconstruction.columns import Layer, LinearView, layer_of, linear_view
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

NEGLIGIBLE = 1e-8  # an error relative to the variance of what is made
MAX_PAIR_COLUMNS = 2500  # of a first layer that is solved again: bounds the memory and time of its Gram matrix
MAX_PAIR_MACS = 15_000_000_000  # of one step of it, about


@dataclass(frozen=True)
class Settings:
    """How much of the images is used, and how: `positions` of every map; `ridge`, relative to the mean square of a column;
    `rounds` of further solves through an activation; `mirrored` adds every image as a mirror shows it; `pair_steps` of conjugate
    gradients on up to `pair_images` images solve the first layer of a pair again (0: they do not).

    `values_bytes` bounds the activations that are kept between two nodes, once for the cut network and once for the static
    model, `targets_bytes` the static model's values that are kept between two plans.
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
class _Solve:
    """What one solve works on: the pass of the cut network, and what it has found so far."""

    effective: Effective
    net: StagedNet
    cut: Pass
    targets: Targets
    pairs: Mapping[str, Pair]
    mix: dict[str, Affine] = field(default_factory=dict)
    operands: dict[tuple[str, int], Array] = field(default_factory=dict)
    heads: dict[str, ExitHead] = field(default_factory=dict)
    errors: dict[str, NodeError] = field(default_factory=dict)


class Reconstruction:
    """Solves plans of one static model on one set of images.

    `images` is float32 [B, ...] as the model takes them; labels are not needed. What does not depend on the plan
    (sampled positions, the static model's values there where they fit the budget) is computed once.
    """

    def __init__(
        self,
        model: AnalysedModel,
        weights: Weights,
        images: Array,
        *,
        settings: Settings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.weights = model, weights
        self.graph, self.channels = model.graph, model.channels
        graph = model.graph
        self.settings = settings or Settings()
        self.device = torch.device(device)
        if self.settings.mirrored:
            images = np.concatenate([images, np.flip(images, axis=3 if graph.image_axis == 0 else 2)])
        self._net = StagedNet(model, weights).to(self.device).eval().requires_grad_(False)
        with torch.no_grad():
            self.samples = Samples(
                self._net,
                images,
                device=self.device,
                positions=self.settings.positions,
                kept_bytes=self.settings.targets_bytes,
            )
        self._views: dict[str, LinearView] = {}
        self._scaled: dict[float, Reconstruction] = {}

    def view(self, node: Node) -> LinearView:
        """Return how a mixing node reads its input, made once."""
        if node.name not in self._views:
            found = linear_view(self.graph, node, self.weights.mix[node.name][0])
            self._views[node.name] = replace(found, reads=found.reads.to(self.device))
        return self._views[node.name]

    def on(self, device: torch.device | str) -> Reconstruction:
        """Return the same reconstruction on another device."""
        if torch.device(device) == self.device:
            return self
        images = torch.cat(list(self.samples.chunks)).cpu().numpy()
        settings = replace(self.settings, mirrored=False)  # the images are mirrored already
        return Reconstruction(self.model, self.weights, images, settings=settings, device=device)

    def _at(self, scale: float) -> Reconstruction:
        """Return the reconstruction of the model at a scale, whose logits are to be those of this one; made once."""
        if scale not in self._scaled:
            images = torch.cat(list(self.samples.chunks)).cpu().numpy()
            kept = self.settings.targets_bytes // 4
            settings = replace(self.settings, mirrored=False, targets_bytes=kept)  # the images are mirrored already
            model = at_scale(self.model, scale)
            small = Reconstruction(model, self.weights, images, settings=settings, device=self.device)
            small.samples.answer_as(self.samples)
            self._scaled[scale] = small
        return self._scaled[scale]

    # --- one plan -----------------------------------------------------------------------------------

    @torch.no_grad()
    def solve(self, plan: Plan) -> Solved:
        """Return the weights for a plan, its exit heads included, and the errors of every node that was solved.

        A chain that reads the image smaller is solved for what the static model makes of the smaller image, and its logits for
        those of the static model on the image as it is.
        """
        if plan.scale != self.graph.scale:
            return self._at(plan.scale).solve(plan)
        effective = Effective(self.model, plan)
        net, budget = self._net.sharing(), self.settings.values_bytes
        cut = Pass(net, effective, self.samples.chunks, budget_bytes=budget)
        self.samples.restart(budget)
        targets = Targets(effective, partial(self._evaluate, net, cut))
        run = _Solve(effective, net, cut, targets, self._pairs(targets, cut))
        for index, node in enumerate(self.graph.nodes):
            if node.name in effective.depth:
                if node.name in self.weights.mix:
                    pair = run.pairs.get(node.name)
                    if pair is not None:
                        self._solve_node(run, index, node, rounds=0)
                        self._refine(run, index, pair)
                    self._solve_node(run, index, node, rounds=self.settings.rounds)
                elif node.op in NORMS:
                    self._refit_norm(run, index, node)
                for tap in set(plan.taps).intersection(node.outputs) - {self.graph.output}:
                    self._solve_head(run, index + 1, tap)
        old = self.weights
        heads = {**old.heads, **run.heads}
        weights = Weights({**old.mix, **run.mix}, {**old.operands, **run.operands}, heads, old.temperatures)
        return Solved(weights, run.errors)

    def _pairs(self, targets: Targets, cut: Pass) -> dict[str, Pair]:
        """Return the pairs of layers by the name of the second; the pass keeps what the first one reads until then."""
        pairs: dict[str, Pair] = {}
        for index, node in enumerate(self.graph.nodes):
            alive = node.name in targets.effective.depth and node.name in self.weights.mix
            pair = pair_of(targets, node) if alive and self.settings.pair_steps else None
            if pair is not None and self.weights.mix[pair.first.name][0][0].size <= MAX_PAIR_COLUMNS:
                pairs[node.name] = pair
                cut.retain(pair.first.inputs[0], index)
        return pairs

    def _refine(self, run: _Solve, index: int, pair: Pair) -> None:
        """Solve the first layer of a pair again for what the second makes of it, if that makes it better."""
        layers = [layer_of(self.view(n), run.effective, n, self.weights.mix[n.name]) for n in (pair.first, pair.second)]
        if not all(len(layer.outputs) for layer in layers) or run.errors[pair.second.name].after < NEGLIGIBLE:
            return
        target, samples = run.targets.of(pair.second), self.samples
        macs = sum(macs_of(n, self.graph) for n in (pair.first, pair.second))
        wanted = min(self.settings.pair_images, max(1, MAX_PAIR_MACS // macs))
        pieces: list[Piece] = []
        for chunk, (values, rows, others) in enumerate(self._chunks(run, index, target)):
            if sum(len(piece.x) for piece in pieces) < wanted + MAX_CHUNK:
                own = (samples.positions(layer.view.positions, chunk) for layer in reversed(layers))
                outputs = layers[1].outputs
                pieces.append(Piece(values[pair.first.inputs[0]], rows[:, outputs], others[:, outputs], *own))
        count = max(1, sum(sum(len(p.x) for p in pieces[: i + 1]) <= wanted for i in range(len(pieces) - 1)))
        refinement = Refinement(run.cut, pair, layers=(layers[0], layers[1]), activation=self._activation(run, target))
        settings = self.settings
        step = refinement.step(pieces[:count], pieces[count:], ridge=settings.ridge, iterations=settings.pair_steps)
        if step is None:
            return
        run.mix[pair.first.name] = layers[0].added(run.mix[pair.first.name], *step)
        run.net.set_affine(pair.first, run.mix[pair.first.name])
        run.cut.redo((pair.first, *pair.between))

    def _activation(self, run: _Solve, target: Target) -> Activation | None:
        return None if target.activation is None else partial(self._evaluate, run.net, run.cut, target.activation)

    def _evaluate(self, net: StagedNet, cut: Pass, node: Node, x: Tensor) -> Tensor:
        """Return what a node with one computed input makes of it."""
        (source,) = self.graph.computed(node)
        return net.run_node(node, {source: x.to(self.device)}, replace(cut.masks, live={}))[0]

    def _chunks(self, run: _Solve, index: int, target: Target) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Yield per chunk the cut network's values before node `index`, and at the sampled positions the target [N, C] and the
        other summands [N, C], which are not in the target any more."""
        self.samples.follow(index, target.tensor)
        for chunk, values in enumerate(run.cut.values(index, also=[name for name, _ in target.others])):
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

    def _solve_node(self, run: _Solve, index: int, node: Node, *, rounds: int) -> None:
        """Solve one mixing node and go on with its new weights."""
        affine = self.weights.mix[node.name]
        layer = layer_of(self.view(node), run.effective, node, affine)
        if not len(layer.outputs):
            return
        target, totals = run.targets.of(node), Moments()
        activation = self._activation(run, target)
        taken = self._positions_taken(layer)
        problem = Problem(
            layer.columns,
            groups=layer.groups,
            rows_expected=self.samples.count * taken,
            biased=layer.biased,
            activation=activation,
        )
        for chunk, (values, wanted, others) in enumerate(self._chunks(run, index, target)):
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
        run.mix[node.name] = layer.added(affine, step.weight, step.bias)
        run.net.set_affine(node, run.mix[node.name])
        run.errors[node.name] = totals.error(step)

    def _positions_taken(self, layer: Layer) -> int:
        """Return how many positions of an image a node is solved on: fewer where the rows would be too many for the dual."""
        positions = min(self.settings.positions, layer.view.positions)
        if layer.columns <= MAX_COLUMNS:
            return positions
        return max(1, min(positions, MAX_DUAL_ROWS // self.samples.count))

    def _refit_norm(self, run: _Solve, index: int, node: Node) -> None:
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
        live = torch.from_numpy(run.effective.live(name)).to(self.device)
        if not fits or not all(fits) or not bool(live.any()) or len(self.graph.computed(node)) != 1:
            return
        target, totals = run.targets.of(node), Moments()
        problem = Problem(
            1, groups=width, rows_expected=self.samples.count * self.samples.count_of(name), biased=2 in vectors
        )
        for chunk, (values, wanted, _) in enumerate(self._chunks(run, index, target)):
            (made,) = run.net.run_node(node, {source: values[source]}, run.cut.masks)
            rows = self.samples.rows_of(made, name, chunk)
            totals.add(wanted)
            problem.add(rows[:, :, None], (wanted - rows)[:, :, None], rows[:, :, None])
        step = problem.solve(torch.ones(width, 1, dtype=torch.bool, device=self.device), ridge=self.settings.ridge)
        factor, shift = (as_numpy(torch.where(live, v, 0.0)) for v in (step.weight[:, 0], step.bias))
        for i, constant in constants.items():
            fresh = constant.reshape(-1) * (1 + factor) + (shift if i == 2 else 0)
            run.operands[node.name, i] = fresh.reshape(constant.shape).astype(np.float32)
            run.net.set_operand(node, i, run.operands[node.name, i])
        run.errors[node.name] = totals.error(step)

    def _solve_head(self, run: _Solve, index: int, tap: str) -> None:
        """Solve the exit head of a tap against the static model's logits."""
        head = self.weights.heads.get(tap) or initial_head(self.model, tap)
        if len(head.layers) > 1 or head.cell is not None:
            head = initial_head(self.model, tap)
        (weight, bias) = (torch.tensor(v, device=self.device) for v in head.layers[0])
        stage = run.effective.plan.taps.index(tap) + 1
        columns = torch.from_numpy(run.effective.readable(tap, stage)).to(self.device)
        axis = self.channels.layouts[tap].axis
        problem = Problem(len(columns), rows_expected=self.samples.count, biased=True)
        totals = Moments()
        for chunk, values in enumerate(run.cut.values(index, also=[tap])):
            x = channel_means(values[tap], axis) * columns
            logits, made = self.samples.static(self.graph.output, chunk).view(len(x), -1), x @ weight.T + bias
            totals.add(logits)
            problem.add(x[:, None], (logits - made)[:, None], made[:, None])
        step = problem.solve(columns.expand(len(weight), -1), ridge=self.settings.ridge)
        fresh = (as_numpy((weight + step.weight) * columns), as_numpy(bias + step.bias))
        run.heads[tap] = linear_head(*fresh)
        run.errors[tap] = totals.error(step)
