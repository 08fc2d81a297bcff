"""Muon: momentum whose step is replaced by the nearest (semi-)orthogonal matrix.

The gradient of a layer is close to a matrix of low rank, so plain momentum moves along a few directions far and along most
hardly at all. Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) moves equally far along all of them.

Two things differ from torch's Muon, which trains matrices only. A kernel [O, I, ...] is reshaped to the matrix [O, I * ...].
And the length of a step is relative to the weight's norm, as in LARS (You et al., 2017, arXiv 1708.03888), because the
size of a weight means nothing where a norm follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# The odd polynomial a x + b x^3 + c x^5, which maps (0, 1] close to 1 when it is applied five times.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST = 1e-7
LEAST_SIZE = 0.01  # smallest size that a step is relative to; 1 is a weight whose rows have length 1


def orthogonal(matrix: Tensor) -> Tensor:
    """Return approximately U V of the singular value decomposition U S V of matrices [..., m, n].

    The singular values of the result are 0.7 to 1.2. All iterates are a polynomial of the Gram matrix times the matrix
    itself, so only the smaller Gram matrix is iterated.
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
    """Return the Frobenius norm of each matrix [..., m, n] as [..., 1, 1]."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for weights [O, I, ...]. `lr` is the length of a step relative to the weight's norm."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step and return the closure's loss. Weights without a gradient do not move."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():  # in one batch, because a GPU's time depends on the number of operations
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Move weights of the same shape by one step."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        nesterov = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        direction = orthogonal(torch.stack([value.flatten(1) for value in nesterov]))
        length = _norms(direction)
        sizes = _norms(torch.stack([weight.flatten(1) for weight in weights]))
        steps = direction * (group["lr"] * torch.maximum(sizes, LEAST_SIZE * length) / (length + SMALLEST))
        torch._foreach_sub_(weights, [step.view_as(weight) for weight, step in zip(weights, steps, strict=True)])
