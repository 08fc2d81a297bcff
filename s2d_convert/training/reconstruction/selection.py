"""Which channels a network can do without, found from what its layers do to images.

The channels of a class are taken away one after the other, each time the one whose loss the layers that read the class can make
up for best by changing their other weights (backward elimination, as the Optimal Brain Surgeon does it; for structures: ZipLM,
Kurtic et al., NeurIPS 2023, section 3). With H the inverse Gram matrix of a layer's columns and W its weights, taking away
the columns c raises the squared error by trace(W_c H_cc^-1 W_c^T) and changes

    W <- W - W_c H_cc^-1 H_c,    H <- H - H_:c H_cc^-1 H_c:

Norms of weights do not see that one channel can stand in for another, which is most of what there is to gain. Every output of a
layer counts as much as the logits react to it (`sensitivity`), so the errors of all classes have one unit: the mean squared
change of the logits. To first order they add up over the classes of a plan.

Letters: D columns, O outputs, U units, A units that are left, k columns of one unit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import ChannelClass
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Kind
from s2d_convert.channels.macs import total_macs
from s2d_convert.frontend.graph import Node
from s2d_convert.plans.divisions import importance
from s2d_convert.training.reconstruction.reconstruction import Reconstruction
from s2d_convert.training.reconstruction.sensitivity import sensitivities

MAX_COLUMNS = 4700  # of a layer whose Gram matrix is inverted
IMAGES, ROWS = 500, 20_000  # that a Gram matrix is made of, about
RIDGE = 1e-3  # relative to the mean square of a column
STEPS, LEAST_STEPS = 64, 8  # in which at least half of what is left is taken away
STEP_ENTRIES = 80_000_000  # of all inverse Gram matrices that the steps for a half change; large layers get fewer steps
FLOOR = 1e-12


class _Reader:
    """One layer that reads a class: its inverse Gram matrix [D, D] and its weights [O, D], of the columns that are left, and the
    columns of every unit that is left, [A, k]."""

    def __init__(self, gram: Tensor, weight: Tensor, columns: dict[int, Tensor]) -> None:
        gram = gram.double()
        size = weight.shape[1]
        gram.diagonal()[:size] += (RIDGE * gram.diagonal()[:size].mean()).clamp_min(FLOOR)
        gram.diagonal()[size:] += FLOOR * (1 + gram.diagonal()[size:])
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.weight = torch.cat([weight, weight.new_zeros(len(weight), len(gram) - size)], dim=1)
        self.columns = torch.stack(list(columns.values()))

    def losses(self) -> Tensor:
        """Return how much the error rises if each of the units that are left went alone, [A]."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        weights = self.weight[:, self.columns].permute(1, 2, 0)  # [A, k, O]
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))

    def remove(self, places: Tensor) -> None:
        """Take away the units at these places among those that are left."""
        stays = torch.ones(len(self.columns), dtype=torch.bool, device=places.device)
        stays[places] = False
        gone = self.columns[places].reshape(-1)
        kept = torch.ones(len(self.inverse), dtype=torch.bool, device=places.device)
        kept[gone] = False
        rest = kept.nonzero()[:, 0]
        across = self.inverse[gone][:, rest]
        factor = torch.linalg.solve(self.inverse[gone[:, None], gone], across)
        self.weight = self.weight[:, rest] - self.weight[:, gone] @ factor
        self.inverse = self.inverse[rest][:, rest].addmm_(across.T, factor, alpha=-1)
        self.columns = (kept.cumsum(0) - 1)[self.columns[stays]]


@torch.no_grad()
def data_importance(problem: Reconstruction) -> Array:
    """Return a score per unit, float64 [U]: the mean squared change of the logits that the unit's class had come to when
    the unit was taken away, about. Inside a class it ranks the units; over classes and cuts it can be added up
    (`plans.allocation`).

    Classes that no layer reads channel by channel, or only layers of more than MAX_COLUMNS columns, are ranked by
    `plans.divisions.importance`; a class without any channels costs the whole variance of the logits then.
    """
    graph, channels = problem.graph, problem.channels
    norms, score = importance(problem.model, problem.weights), np.zeros(channels.units)
    nodes = [n for n in graph.nodes if _is_suitable(problem, n)]
    weighting = sensitivities(problem.samples, nodes, macs=total_macs(graph))
    grams = _grams(problem, nodes)
    whole = problem.samples.logits_variance()
    for group in channels.classes:
        readers = [
            r
            for n in nodes
            if group.splittable and (r := _reader(problem, n, group, grams[n.name], weighting[n.name])) is not None
        ]
        if readers:
            for unit, loss in _eliminated(list(group.units), readers):
                score[unit] = loss
        else:
            units = sorted(group.units, key=lambda u: norms[u])
            score[units] = whole * np.cumsum(norms[units]) / max(float(norms[units].sum()), FLOOR)
    return score


def _is_suitable(problem: Reconstruction, node: Node) -> bool:
    layout = problem.channels.layouts.get(node.inputs[0]) if node.inputs else None
    if node.name not in problem.weights.mix or problem.channels.roles[node.name].kind is not Kind.MIX or layout is None:
        return False
    weight = problem.weights.mix[node.name][0]
    return len(layout.units) == weight.shape[1] and weight[0].size <= MAX_COLUMNS


def _grams(problem: Reconstruction, nodes: list[Node]) -> dict[str, Tensor]:
    """Return the Gram matrices [D + 1, D + 1] of what nodes read in the static model, a column of ones included, per row."""
    samples, order = problem.samples, {n.name: i for i, n in enumerate(problem.graph.nodes)}
    # Images lie in an order that what they show gives, so the first ones are a fair sample.
    chunks = range(min(len(samples.chunks), -(-IMAGES // len(samples.chunks[0]))))
    taken = max(1, ROWS // sum(len(samples.chunks[chunk]) for chunk in chunks))
    grams: dict[str, Tensor] = {}
    for chunk in chunks:
        static = samples.static_chunk(chunk)
        for node in nodes:
            (values,) = static.values(order[node.name])
            view = problem.view(node)
            x = view.rows(values[node.inputs[0]], samples.positions(view.positions, chunk)[:, :taken], None)[:, 0]
            x = x[torch.isfinite(x).all(1)]
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
            grams[node.name] = grams.get(node.name, x.new_zeros(())) + x.T @ x
    return {name: gram / gram[-1, -1].clamp_min(1) for name, gram in grams.items()}


def _reader(
    problem: Reconstruction, node: Node, group: ChannelClass, gram: Tensor, sensitivity: Tensor
) -> _Reader | None:
    """Return a node as a reader of a class, its outputs weighted; None where it does not read it, or reads its units
    unevenly."""
    units = problem.channels.layouts[node.inputs[0]].units
    if not np.isin(units[units != FREE], group.units).any():
        return None
    weight = problem.weights.mix[node.name][0]
    weight = weight.reshape(*weight.shape[:2], -1).swapaxes(1, 2)
    elements, width = weight.shape[1:]
    columns = {
        unit: torch.from_numpy((np.arange(elements)[:, None] * width + np.flatnonzero(units == unit)).reshape(-1))
        for unit in group.units
    }
    if len({len(c) for c in columns.values()}) != 1:
        return None
    matrix = torch.tensor(weight.reshape(len(weight), -1), dtype=torch.float64, device=gram.device)
    matrix = matrix * sensitivity.to(gram.device).sqrt()[:, None]
    return _Reader(gram, matrix, {u: c.to(gram.device) for u, c in columns.items()})


def _eliminated(units: list[int], readers: list[_Reader]) -> list[tuple[int, float]]:
    """Return the units in the order in which they are taken away, with the error that the class has come to by then."""
    gone: list[tuple[int, float]] = []
    total = 0.0
    entries = sum(reader.inverse.numel() for reader in readers)
    steps = max(LEAST_STEPS, min(STEPS, STEP_ENTRIES // entries))
    while units:
        losses = torch.stack([reader.losses() for reader in readers]).sum(0)
        count = max(1, len(units) // steps)
        first = losses.argsort(stable=True)[:count]
        for place in first.tolist():
            total += max(float(losses[place]), FLOOR)
            gone.append((units[place], total))
        if count < len(units):
            for reader in readers:
                reader.remove(first)
        taken = set(first.tolist())
        units = [unit for place, unit in enumerate(units) if place not in taken]
    return gone
