"""The layers of a staged network that hold weights: mixing operators under masks, norms, and exit heads.

Letters: B batch, C channels, K classes, O outputs, I inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d_convert.frontend.graph import Node
from s2d_convert.network.converters.lower import lower
from s2d_convert.plans.weights import Affine, ExitHead

EPSILON = 1e-5
MOMENTUM = 0.1


class Norm(nn.Module):
    """Batch normalisation over axis 1 that starts as the identity on the statistics it was given."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale.clone()), nn.Parameter(shift.clone())
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", var.clone())
        self.epsilon = epsilon
        self.momentum = MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.scale, self.shift, self.training, self.momentum, self.epsilon
        )

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return (factor, offset) of the same function with the running statistics: factor * x + offset."""
        factor = self.scale / torch.sqrt(self.running_var + self.epsilon)
        return factor, self.shift - self.running_mean * factor


class Mixing(nn.Module):
    """A MIX or GROUPED node: a weight [O, I, *kernel] under a mask, a bias or a norm."""

    def __init__(self, node: Node, affine: Affine) -> None:
        super().__init__()
        weight, bias = affine
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        self.norm: Norm | None = None
        self.op, self.groups = node.op, int(node.attrs.get("group", 1))
        self._conv = lower(node, {}) if node.op in ("Conv", "ConvTranspose") else None

    def forward(self, x: Tensor, mask: Tensor | None, alive: Tensor | None) -> Tensor:
        weight = self.weight if mask is None else self.weight * mask
        bias = self.bias if alive is None or self.bias is None else self.bias * alive
        if self._conv is None:
            return F.linear(x, weight, bias)
        if self.op == "ConvTranspose":
            weight = _transposed_kernel(weight, self.groups)
        y = self._conv(x, weight, bias)
        assert isinstance(y, Tensor), "a convolution has one output"
        if self.norm is not None:
            y = self.norm(y)
            if alive is not None:
                y = y * alive.view(1, -1, *[1] * (y.ndim - 2))
        return y

    def folded(self) -> Affine:
        """Return the weight and bias with the norm folded in, as numpy."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.norm is not None:
            factor, bias = self.norm.affine()
            weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
        return as_numpy(weight), None if bias is None else as_numpy(bias)


def _transposed_kernel(weight: Tensor, groups: int) -> Tensor:
    """Return the weight [O, I / groups, *kernel] as ConvTranspose has it; see `channels.linear.transposed_kernel`."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def channel_means(x: Tensor, axis: int) -> Tensor:
    """Return the mean of every channel [B, C] of a tensor [B, ...] whose channels lie on this axis, counted without the batch."""
    others = [a for a in range(1, x.ndim) if a != axis + 1]
    return x.mean(others) if others else x


class Exit(NamedTuple):
    """What one exit answers: logits [B, K], and the features [B, C] that they are made from (None: it has none)."""

    logits: Tensor
    features: Tensor | None


class Head(nn.Module):
    """An `ExitHead` in torch: means over the cells of a tap, then its layers on the stage's channels."""

    def __init__(self, axis: int, head: ExitHead) -> None:
        super().__init__()
        self.axis, self.cell = axis, head.cell
        self.weights = nn.ParameterList(torch.tensor(weight) for weight, _ in head.layers)
        self.biases = nn.ParameterList(torch.tensor(bias) for _, bias in head.layers)

    def forward(self, x: Tensor, columns: Tensor | None) -> Exit:
        features = self.features(x)
        if columns is not None:  # a zero feature is as good as a zero column
            features = features * columns.repeat_interleave(features.shape[1] // len(columns))
        return Exit(self.logits(features), features)

    def features(self, x: Tensor) -> Tensor:
        """Return the means over the cells, [B, C * cells]."""
        if self.cell is None:
            return channel_means(x, self.axis)
        return F.avg_pool2d(x if self.axis == 0 else x.movedim(-1, 1), self.cell).flatten(1)

    @property
    def width(self) -> int:
        """How many features it reads."""
        return int(next(iter(self.weights)).shape[1])

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits [B, K] from features."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            features = F.linear(F.relu(features) if index else features, weight, bias)
        return features

    def numpy(self) -> ExitHead:
        """Return the head as it is now."""
        layers = zip(self.weights, self.biases, strict=True)
        return ExitHead(tuple((as_numpy(w), as_numpy(b)) for w, b in layers), self.cell)


class Moments:
    """Sums of the outputs of one conv without its bias, for mean and variance per channel."""

    def __init__(self, module: Mixing) -> None:
        self.module = module
        self.total = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def hook(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Add one output; the signature is torch's for forward hooks."""
        bias = self.module.bias
        value = (output if bias is None else output - bias.view(1, -1, *[1] * (output.ndim - 2))).double()
        axes = [a for a in range(value.ndim) if a != 1]
        self.total = self.total.to(value.device) + value.sum(axes)
        self.squares = self.squares.to(value.device) + value.square().sum(axes)
        self.count += value.numel() // value.shape[1]

    def norm(self) -> Norm:
        """Return a norm that undoes itself on these moments and adds the bias."""
        mean = self.total / self.count
        var = (self.squares / self.count - mean.square()).clamp_min(1e-8)
        bias = self.module.bias
        shift = mean if bias is None else mean + bias
        return Norm(torch.sqrt(var + EPSILON).float(), shift.float(), mean.float(), var.float())


def as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a contiguous copy on the host; training may have stored it channels last."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).copy()
