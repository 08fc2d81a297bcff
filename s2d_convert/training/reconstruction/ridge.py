"""Ridge regression for the rows of a mixing node, with its old weights as the prior.

For rows x [N, D] of what a node reads, targets t [N, O] and old weights W0, b0, the new ones minimise (He et al. 2017,
"Channel Pruning", equation 5, with a prior as in ZipLM, arXiv 2302.04089)

    sum over rows ||t - W x - b||^2 + ridge * N * mean(x^2) * ||W - W0||^2

The unknown is the step W - W0, solved from the residuals e = t - W0 x - b0. So nothing changes where the old weights are right,
and rounding errors affect the step, not the weights. The bias is not regularised. With fewer rows than columns, or more columns
than a Gram matrix should have, the same step is solved in the space of the rows ("dual").

Letters: N rows, G groups, D columns, O outputs of all groups, o outputs of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_COLUMNS = 6144  # of a Gram matrix: 300 MB in float64
MAX_DUAL_ROWS = 4096  # where the images allow it
MAX_KEPT_BYTES = 400_000_000  # of rows that are kept for rounds through an activation
BYTES = 4  # of a float32
FLOOR = 1e-30


@dataclass(frozen=True, eq=False)
class Step:
    """A step for the weights, [O, D], and the biases, [O].

    before, after: sums of squared errors per output [O] on the `rows` rows that it was solved on.
    """

    weight: Tensor
    bias: Tensor
    before: Tensor
    after: Tensor
    rows: int


@dataclass(frozen=True)
class NodeError:
    """Mean squared errors of a node (or an exit) against its target, on the rows that it was solved on, relative to the
    target's variance: with the old weights on the inputs of the solved network, and with the new ones."""

    before: float
    after: float


Activation = Callable[[Tensor], Tensor]
Systems = list[tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of one chunk: x [G, N, D], residuals [G, N, o], and the old values there, with the other summands, [G, N, o]."""

    x: Tensor
    residuals: Tensor
    old: Tensor


class Problem:
    """Collects rows of one node and solves for the step. `groups` problems of D columns each lie side by side.

    `rows_expected` and `columns` decide between Gram matrices and the dual. With an `activation` g behind the node, which must
    be idempotent, the error that counts is ||g(t) - g(W x + b)||^2. It is lowered in `rounds` of further solves (after
    Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks", section 3.2): where prediction and target
    are already equal under g, the prediction is its own target, elsewhere g(t) is.
    """

    def __init__(
        self, columns: int, *, groups: int = 1, rows_expected: int, biased: bool, activation: Activation | None = None
    ) -> None:
        self.columns, self.groups, self.biased = columns, groups, biased
        self.dual = groups == 1 and (columns > MAX_COLUMNS or rows_expected < columns)
        keeps = not self.dual and BYTES * groups * columns * rows_expected <= MAX_KEPT_BYTES
        self.activation = activation if keeps else None
        self._rows: list[_Rows] = []
        self.count = 0
        self.gram = self.cross = self.squares = torch.zeros(())

    def add(self, x: Tensor, residuals: Tensor, old: Tensor) -> None:
        """Take rows [N, G, D], residuals and old values [N, G, o]; rows with a number that is not finite are left out."""
        sound = torch.isfinite(x.sum((1, 2)) + residuals.sum((1, 2)))
        if not bool(sound.all()):
            x, residuals, old = x[sound], residuals[sound], old[sound]
        self.count += len(x)
        if self.biased and not self.dual:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
        rows = _Rows(x.transpose(0, 1), residuals.transpose(0, 1), old.transpose(0, 1))
        if self.dual or self.activation is not None:
            self._rows.append(rows)
        if not self.dual:
            self.gram = self.gram + torch.bmm(rows.x.transpose(1, 2), rows.x).double()
            self.cross = self.cross + torch.bmm(rows.x.transpose(1, 2), rows.residuals).double()
            self.squares = self.squares + rows.residuals.double().square().sum(1).flatten()

    def solve(self, readable: Tensor, *, ridge: float, rounds: int = 0) -> Step:
        """Return the best step where outputs may only read the columns `readable`, bool [O, D]."""
        if not self.count:
            nothing = torch.zeros(len(readable), dtype=torch.float64, device=readable.device)
            return Step(torch.zeros_like(readable, dtype=torch.float32), nothing.float(), nothing, nothing, 0)
        step = self._solve_dual(readable, ridge) if self.dual else self._solve_grams(readable, ridge, rounds)
        self._rows.clear()
        return _kept_where_better(step)

    def _solve_grams(self, readable: Tensor, ridge: float, rounds: int) -> Step:
        systems = self.systems(readable, ridge)
        step = self.solution(systems, self.cross)
        if self.activation is None or not rounds:
            gain = (2 * self.cross - self.gram @ step).mul_(step).sum(1).flatten()
            return self._as_step(step, self.squares, self.squares - gain)
        before, best = self._through(self.activation, torch.zeros_like(step))[0], step
        cross, least = before * 0, before
        for turn in range(rounds + 1):
            error, cross = self._through(self.activation, step)
            better = (error < least) if turn else torch.ones_like(error, dtype=torch.bool)
            least = torch.where(better, error, least)
            best = torch.where(better.view(self.groups, 1, -1), step, best)
            if turn < rounds:
                step = self.solution(systems, cross)
        return self._as_step(best, before, least)

    def systems(self, readable: Tensor, ridge: float) -> Systems:
        """Return the regularised Gram matrices: (columns, outputs, matrix) of each set of outputs that read the same
        columns."""
        size = self.gram.shape[1]
        diagonal = self.gram.diagonal(dim1=1, dim2=2)[:, : self.columns]
        penalty = self.gram.new_full((self.groups, size), 1e-9 * self.count)
        penalty[:, : self.columns] = (ridge * diagonal.mean(1, keepdim=True)).clamp_min(FLOOR)
        whole = self.gram + torch.diag_embed(penalty)
        every = torch.arange(size, device=whole.device)
        if self.groups > 1:
            return [(every, torch.arange(self.cross.shape[2], device=whole.device), _factor(whole))]
        systems = []
        for columns, outputs in _alike(readable):
            kept = torch.cat([columns, every[self.columns :]])
            systems.append((kept, outputs, _factor(whole[:, kept[:, None], kept])))
        return systems

    def solution(self, systems: Systems, cross: Tensor) -> Tensor:
        """Return the step [G, D (+ 1), o] for products [G, D (+ 1), o] of columns and residuals."""
        step = torch.zeros_like(cross)
        for columns, outputs, factor in systems:
            step[:, columns[:, None], outputs] = torch.cholesky_solve(cross[:, columns[:, None], outputs], factor)
        return step

    @staticmethod
    def readable_only(step: Tensor, systems: Systems) -> Tensor:
        """Return a step [G, D (+ 1), o] without what no output may read."""
        readable = torch.zeros_like(step)
        for columns, outputs, _ in systems:
            readable[:, columns[:, None], outputs] = step[:, columns[:, None], outputs]
        return readable

    def _through(self, activation: Activation, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared errors behind the activation [O] after a step, and the products for the next one."""
        error, cross = torch.zeros_like(self.squares), torch.zeros_like(self.cross)
        for rows in self._rows:
            moved = torch.bmm(rows.x, step.float())
            wanted, made = activation(rows.old + rows.residuals), activation(rows.old + moved)
            error += (made - wanted).double().square().sum(1).flatten()
            residuals = torch.where(made == wanted, moved, wanted - rows.old)
            cross += torch.bmm(rows.x.transpose(1, 2), residuals).double()
        return error, cross

    def _as_step(self, step: Tensor, before: Tensor, after: Tensor) -> Step:
        bias = step[:, -1].flatten() if self.biased else torch.zeros_like(before)
        weight = step[:, : self.columns].transpose(1, 2).flatten(0, 1)
        return Step(weight.float(), bias.float(), before, after, self.count)

    def _solve_dual(self, readable: Tensor, ridge: float) -> Step:
        x = torch.cat([rows.x[0] for rows in self._rows])
        residuals = torch.cat([rows.residuals[0] for rows in self._rows])
        self._rows.clear()
        before = residuals.double().square().sum(0)
        x_mean, mean = (v.mean(0) if self.biased else v.new_zeros(v.shape[1]) for v in (x, residuals))
        x, residuals = x - x_mean, residuals - mean
        penalty = max(ridge * float(x.square().mean()) * len(x), FLOOR)
        weight = x.new_zeros(residuals.shape[1], x.shape[1])
        for columns, rows in _alike(readable):
            part = x if len(columns) == x.shape[1] else x[:, columns]
            gram = (part @ part.T).double()
            gram.diagonal().add_(penalty)
            solved = torch.cholesky_solve(residuals[:, rows].double(), _factor(gram)).float()
            weight[rows[:, None], columns] = solved.T @ part
        after = (residuals - x @ weight.T).double().square().sum(0)
        return Step(weight, mean - weight @ x_mean, before, after, len(x))


def _alike(readable: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return outputs that may read the same columns: (indices of the columns, indices of the outputs)."""
    patterns, owner = torch.unique(readable, dim=0, return_inverse=True)
    pairs = [(p.nonzero()[:, 0], (owner == i).nonzero()[:, 0]) for i, p in enumerate(patterns)]
    return [(columns, rows) for columns, rows in pairs if len(columns)]


def _factor(grams: Tensor) -> Tensor:
    """Return the Cholesky factors of symmetric matrices [..., D, D]; where one is singular to rounding, more is added to its
    diagonal."""
    factor, trouble = torch.linalg.cholesky_ex(grams)
    extra = 1e-12
    while bool(trouble.any()) and extra < 1:
        diagonal = grams.diagonal(dim1=-2, dim2=-1)
        more = extra * diagonal.mean(-1, keepdim=True).clamp_min(FLOOR).expand_as(diagonal)
        factor, trouble = torch.linalg.cholesky_ex(grams + torch.diag_embed(more))
        extra *= 100
    return factor


def _kept_where_better(step: Step) -> Step:
    """Return the step without the outputs whose error it would not lower."""
    sound = torch.isfinite(step.weight).all(1) & torch.isfinite(step.bias) & (step.after < step.before)
    if bool(sound.all()):
        return step
    weight = torch.where(sound[:, None], step.weight, 0.0)
    bias, after = torch.where(sound, step.bias, 0.0), torch.where(sound, step.after, step.before)
    return Step(weight, bias, step.before, after, step.rows)


class Moments:
    """Sums of targets, for their variance."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take rows [N, O]."""
        rows = rows[torch.isfinite(rows).all(1)].double()
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def error(self, step: Step) -> NodeError:
        """Return the errors before and after a step, relative to the variance."""
        if not self.count:
            return NodeError(0.0, 0.0)
        variance = float((self.squares - self.total**2 / self.count).sum()) / self.count
        scale = 1 / max(variance * max(step.rows, 1), 1e-30)
        return NodeError(float(step.before.sum()) * scale, float(step.after.clamp_min(0).sum()) * scale)
