"""Pairs of layers: the first one is solved again for the output of the second.

If a layer's output goes only through an activation h into one other layer, its old values do not matter: any features are as
good from which the second layer reaches its target. With the second layer's weights fixed, a change V of the first one's
changes the output by J V = W2 (h'(z) * (V x)) to first order. This is linear in V, so V is a ridge regression too (one
Gauss-Newton step). Its matrix would be too large, so it is solved by conjugate gradients, preconditioned with the layer's own
Gram matrix; a product with J^T J takes one forward and one backward pass of the two layers. Then the second layer is solved
again on the new features.

Letters: N rows, G groups, D columns of the first layer, o outputs of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from s2d_convert.channels.kinds import Kind
from s2d_convert.frontend.graph import Node
from s2d_convert.training.reconstruction.columns import Layer, channel_rows
from s2d_convert.training.reconstruction.passes import Pass
from s2d_convert.training.reconstruction.ridge import Activation, Problem
from s2d_convert.training.reconstruction.targets import Targets

STEPS = (1.0, 0.5, 0.25)
SMALL = 1e-9


@dataclass(frozen=True)
class Pair:
    """Two mixing nodes and the element-wise operators between them; nothing else depends on the first."""

    first: Node
    between: tuple[Node, ...]
    second: Node


def pair_of(targets: Targets, second: Node) -> Pair | None:
    """Return the pair whose second node this is; None if there is none."""
    graph, roles = targets.graph, targets.effective.channels.roles
    between: list[Node] = []
    reader, name = second, second.inputs[0]
    while (maker := graph.producer.get(name)) is not None and targets.only_reader(name) is reader:
        if roles[maker.name].kind in (Kind.MIX, Kind.GROUPED):
            return Pair(maker, tuple(reversed(between)), second) if between and maker.op != "MatMul" else None
        if len(graph.computed(maker)) != 1 or not targets.is_elementwise(maker):
            return None
        between.append(maker)
        reader, name = maker, graph.computed(maker)[0]
    return None


@dataclass(frozen=True, eq=False)
class Piece:
    """One chunk: the first layer's input, at the second layer's `positions` [B, P] its target [N, O] and the other
    summands [N, O], and the positions [B, P] of the first layer's output."""

    x: Tensor
    wanted: Tensor
    others: Tensor
    positions: Tensor
    first_positions: Tensor


class Refinement:
    """Solves the first layer of a pair on some pieces; others may check that the change is one for the better."""

    def __init__(self, cut: Pass, pair: Pair, *, layers: tuple[Layer, Layer], activation: Activation | None) -> None:
        self.cut, self.net, self.pair = cut, cut.net, pair
        self.first, self.second = layers
        self.activation = activation
        weight, bias = self.net.affine(pair.first)
        self.weight, self.bias = weight, weight.new_zeros(len(weight)) if bias is None else bias

    def step(
        self, pieces: list[Piece], checks: list[Piece], *, ridge: float, iterations: int
    ) -> tuple[Tensor, Tensor] | None:
        """Return what to add to the first layer's weight [O, D] and bias [O]; None where nothing lowers the error of both."""
        problem = Problem(self.first.columns, groups=self.first.groups, rows_expected=1 << 60, biased=True)
        gates, residuals, rows = [], [], 0
        for piece in pieces:
            x, made = self.first.rows(piece.x, piece.first_positions)
            problem.add(x, made * 0, made)
            gate, answer = self._linearised(piece.x)
            gates.append(gate)
            residuals.append(self._residuals(self._rows(answer, piece), piece))
            rows += len(residuals[-1])
        solved = self._solve(problem, pieces, gates, residuals, ridge, iterations)
        if not bool(torch.isfinite(solved).all()):
            return None
        before = [self._error(pieces, solved * 0), self._error(checks, solved * 0)]
        for scale in STEPS:
            after = [self._error(part, scale * solved) for part in (pieces, checks)]
            if after[0] < before[0] and after[1] <= before[1]:
                weight = scale * solved[:, :-1].transpose(1, 2).flatten(0, 1)
                return weight.float(), (scale * solved[:, -1].flatten()).float()
        return None

    def _solve(
        self,
        problem: Problem,
        pieces: list[Piece],
        gates: list[Tensor],
        residuals: list[Tensor],
        ridge: float,
        iterations: int,
    ) -> Tensor:
        """Return the change [G, D + 1, o] by conjugate gradients, preconditioned and damped by the Gram matrix."""
        systems = problem.systems(self.first.readable, ridge)
        share = self._output_scale(gates) * (sum(map(len, residuals)) / max(1, problem.count))
        right = sum(self._backward(*each) for each in zip(pieces, gates, residuals, strict=True))
        assert isinstance(right, Tensor), "there are pieces"
        right = problem.readable_only(right, systems)
        change, rest = torch.zeros_like(right), right
        ahead = problem.solution(systems, rest / share)
        direction, size = ahead, (rest * ahead).sum()
        for _ in range(iterations):
            if not float(size) > 0:
                break
            image = sum(self._normal(p, g, direction) for p, g in zip(pieces, gates, strict=True))
            image = problem.readable_only(image + ridge * share * (problem.gram @ direction), systems)
            length = size / (direction * image).sum().clamp_min(1e-300)
            change, rest = change + length * direction, rest - length * image
            ahead = problem.solution(systems, rest / share)
            before, size = size, (rest * ahead).sum()
            direction = ahead + size / before * direction
        return change

    def _output_scale(self, gates: list[Tensor]) -> Tensor:
        """Return how strongly each output of the first layer acts on the answer, [G, 1, o]: squared gate times squared
        weights."""
        weight, groups = self.net.affine(self.pair.second)[0], self.second.view.groups
        energy = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).square().sum((1, 3)).flatten()
        axis = self.first.view.axis_out + 1
        others = [a for a in range(gates[0].ndim) if a != axis]
        open_share = torch.stack([g.square().mean(others) for g in gates]).mean(0)
        scale = (energy * open_share)[self.first.outputs].double()
        return scale.clamp_min(SMALL * float(scale.max().clamp_min(SMALL))).view(self.first.groups, 1, -1)

    # --- the two layers -----------------------------------------------------------------------------

    def _apply_first(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.cut.mixed(self.pair.first, x, (weight, bias))

    def _apply_second(self, hidden: Tensor, *, shifted: bool = True) -> Tensor:
        weight, bias = self.net.affine(self.pair.second)
        return self.cut.mixed(self.pair.second, hidden, (weight, bias if shifted or bias is None else bias * 0))

    def _activated(self, z: Tensor) -> Tensor:
        for node in self.pair.between:
            (source,) = self.net.graph.computed(node)
            (z,) = self.net.run_node(node, {source: z}, self.cut.masks)
        return z

    def _rows(self, answer: Tensor, piece: Piece) -> Tensor:
        """Return the second layer's outputs at the positions of a piece, [N, O]."""
        return channel_rows(answer, self.second.view.axis_out, piece.positions)[:, self.second.outputs]

    def _linearised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative of the activation at the first layer's output, and the second layer's output."""
        with torch.enable_grad():
            z = self._apply_first(x, self.weight, self.bias).detach().requires_grad_()
            hidden = self._activated(z)
            (gate,) = torch.autograd.grad(hidden.sum(), z)
        return gate, self._apply_second(hidden.detach())

    def _residuals(self, made: Tensor, piece: Piece) -> Tensor:
        """Return what the answers still lack, [N, O]; nothing where activations of answer and target are equal."""
        if self.activation is None:
            residuals = piece.wanted - made
        else:
            target, now = self.activation(piece.wanted + piece.others), self.activation(made + piece.others)
            residuals = torch.where(now == target, 0.0, target - piece.others - made)
        return torch.where(torch.isfinite(residuals), residuals, 0.0)

    def _error(self, pieces: list[Piece], change: Tensor) -> float:
        """Return the sum of squared errors after a change [G, D + 1, o]."""
        weight, bias = (v + d for v, d in zip((self.weight, self.bias), self._spread(change), strict=True))
        total = 0.0
        for piece in pieces:
            made = self._rows(self._apply_second(self._activated(self._apply_first(piece.x, weight, bias))), piece)
            if self.activation is None:
                missed = piece.wanted - made
            else:
                missed = self.activation(piece.wanted + piece.others) - self.activation(made + piece.others)
            total += float(torch.where(torch.isfinite(missed), missed, 0.0).square().sum())
        return total

    def _spread(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return a change [G, D + 1, o] as one of the whole weight and bias."""
        return self.first.spread(change.float(), self.weight.shape)

    def _backward(self, piece: Piece, gate: Tensor, residuals: Tensor) -> Tensor:
        """Return J^T residuals, [G, D + 1, o]."""
        return self._transposed(piece, gate, torch.zeros(()), lambda _answer: residuals)

    def _normal(self, piece: Piece, gate: Tensor, change: Tensor) -> Tensor:
        """Return J^T J change, [G, D + 1, o]."""
        return self._transposed(piece, gate, change, lambda answer: answer)

    def _transposed(self, piece: Piece, gate: Tensor, change: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        if change.ndim:
            weight, bias = self._spread(change)
        else:
            weight, bias = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        with torch.enable_grad():
            weight, bias = weight.requires_grad_(), bias.requires_grad_()
            answer = self._rows(
                self._apply_second(gate * self._apply_first(piece.x, weight, bias), shifted=False), piece
            )
            gradients = torch.autograd.grad(answer, (weight, bias), rows(answer.detach()))
        return self.first.gathered(*gradients).double()
