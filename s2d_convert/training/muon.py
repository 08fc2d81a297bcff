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
    """Of the singular values decomposition U S V of matrices [..., m, n], about U V: singular values of 0.7 to 1.2 instead of S.

    All iterates are a polynomial of the Gram matrix times the matrix itself, so only the small Gram matrix is iterated on.
    """
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    wide = wide / (_norms(wide) + SMALLEST)
    gram = wide @ wide.mT
    a, b, c = COEFFICIENTS
    total = eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(ITERATIONS):
        factor = a * eye + b * gram + c * (gram @ gram)
        total = factor @ total
        gram = factor @ gram @ factor
    result = total @ wide
    return result if matrix.shape[-2] <= matrix.shape[-1] else result.mT


def _norms(matrices: Tensor) -> Tensor:
    """Return the length of each matrix [..., m, n] as [..., 1, 1]."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for weights [O, I, ...]; `lr` is the length of a step relative to the weight's."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Return one step; weights without a gradient stay."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append(weight)
            for weights in alike.values():  # at once: on a GPU it is the number of operations that costs
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """One step of weights of one shape."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        wanted = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        direction = orthogonal(torch.stack([value.flatten(1) for value in wanted]))
        length = _norms(direction)
        sizes = _norms(torch.stack([weight.flatten(1) for weight in weights]))
        steps = direction * (group["lr"] * torch.maximum(sizes, LEAST_SIZE * length) / (length + SMALLEST))
        torch._foreach_sub_(weights, [step.view_as(weight) for weight, step in zip(weights, steps, strict=True)])
