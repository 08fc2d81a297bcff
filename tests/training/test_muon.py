"""Muon: its steps are orthogonal, and the same as by the textbook."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from s2d_convert.training.muon import COEFFICIENTS, ITERATIONS, LEAST_SIZE, Muon, orthogonal

SHAPES = [(16, 27), (64, 576), (64, 16), (10, 10), (1, 9), (9, 1)]


def by_the_textbook(matrix: Tensor) -> Tensor:
    """The polynomial applied to the matrix itself, in float64."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(ITERATIONS):
        x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_becomes_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.25
    assert torch.allclose(found.double(), by_the_textbook(matrix), atol=1e-4)


def test_few_directions_of_very_different_size_become_alike() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(32, 4, generator=generator), torch.randn(4, 100, generator=generator)
    matrix = left @ torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.03])) @ right
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.6 < float(values[3]) <= float(values[0]) < 1.25
    assert torch.allclose(orthogonal(matrix).double(), by_the_textbook(matrix), atol=1e-3)


def test_zero_rows_and_columns_stay_zero() -> None:
    """What a mask takes away gets no step."""
    matrix = torch.randn(12, 20, generator=torch.Generator().manual_seed(2))
    matrix[[1, 5]] = 0
    matrix[:, [0, 7, 19]] = 0
    found = orthogonal(matrix)
    assert not found[[1, 5]].any()
    assert not found[:, [0, 7, 19]].any()
    assert not orthogonal(torch.zeros(4, 6)).any()


def test_the_size_of_a_gradient_does_not_matter() -> None:
    matrix = torch.randn(8, 18, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(orthogonal(1e3 * matrix), orthogonal(1e-3 * matrix), atol=1e-3)


@pytest.mark.parametrize("size", [0.1, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (72, 2, 3, 3), (5, 9)])
def test_a_step_is_orthogonal_and_a_share_of_the_weight(size: float, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    with torch.no_grad():
        weight.mul_(size)
    before = weight.detach().clone()
    weight.grad = torch.randn(shape, generator=generator)
    Muon([weight], lr=0.02).step()
    moved = before - weight.detach()
    assert float(moved.norm() / before.norm()) == pytest.approx(0.02, rel=1e-2)
    values = torch.linalg.svdvals(moved.flatten(1) / size)
    assert float(values.min()) > 0.5 * float(values.max())
    towards = (moved * weight.grad).sum() / moved.norm() / weight.grad.norm()
    assert float(towards) > 0.5


def test_a_weight_of_zeros_moves() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(7))
    Muon([weight], lr=0.5).step()
    assert torch.allclose(weight.detach(), -0.5 * LEAST_SIZE * orthogonal(weight.grad), atol=1e-6)


def test_momentum_is_nesterovs() -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = Muon([weight], lr=0.1, momentum=0.9)
    first, second = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    for gradient, wanted in ((first, 1.9 * first), (second, second + 0.9 * (0.9 * first + second))):
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        direction = orthogonal(wanted)
        expected = before - 0.1 * before.norm() / direction.norm() * direction
        assert torch.allclose(weight.detach(), expected, atol=1e-5)


def test_it_finds_the_minimum_of_a_bowl() -> None:
    target = torch.randn(6, 10, generator=torch.Generator().manual_seed(6))
    weight = torch.nn.Parameter(torch.ones(6, 10))
    idle = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([weight, idle])
    steps = 300
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert float((weight - target).abs().max().detach()) < 1e-2
    assert torch.equal(idle, torch.ones(3, 3))


def test_weights_of_one_shape_move_as_each_would_alone() -> None:
    generator = torch.Generator().manual_seed(8)
    shapes = [(4, 6), (6, 4, 1, 1), (4, 6), (4, 6), (6, 4, 1, 1)]
    together = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    alone = [torch.nn.Parameter(weight.detach().clone()) for weight in together]
    optimizers = [Muon(together, lr=0.1), *(Muon([weight], lr=0.1) for weight in alone)]
    for _ in range(3):
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        together[2].grad = alone[2].grad = None
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
