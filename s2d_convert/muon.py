"""Muon: momentum whose step is turned into the nearest (semi-)orthogonal matrix.

The gradient of a layer is close to a matrix of low rank: plain momentum moves a few directions much and most of them hardly
at all. Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) moves all of them alike. torch has it for matrices
only; here a kernel [O, I, ...] is taken as the matrix [O, I * ...]. And here a step is a share of the weight's own size, as in
LARS (You et al., 2017, arXiv 1708.03888): where a norm follows, folded weights may have any size, and it means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# The odd polynomial a x + b x^3 + c x^5 that takes (0, 1] close to 1 when it is applied five times.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST = 1e-7
LEAST_SIZE = 0.01  # of a weight whose rows have length 1: a smaller one is moved as if it had this size


def orthogonal(matrix: Tensor) -> Tensor:
    """Of the singular values decomposition U S V of a matrix [m, n], about U V: singular values of 0.7 to 1.2 instead of S.

    All iterates are a polynomial of the Gram matrix times the matrix itself, so only the small Gram matrix is iterated on.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + SMALLEST)
    gram = wide @ wide.T
    a, b, c = COEFFICIENTS
    total = eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(ITERATIONS):
        factor = a * eye + b * gram + c * (gram @ gram)
        total = factor @ total
        gram = factor @ gram @ factor
    result = total @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for weights [O, I, ...]; `lr` is the length of a step relative to the weight's."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; weights without a gradient stay."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"]
        momentum.mul_(group["momentum"]).add_(gradient)
        direction = orthogonal((gradient + group["momentum"] * momentum).flatten(1))
        length = direction.norm()
        size = torch.maximum(weight.norm(), LEAST_SIZE * length) / (length + SMALLEST)
        weight.sub_(direction.view_as(weight) * (group["lr"] * size))
