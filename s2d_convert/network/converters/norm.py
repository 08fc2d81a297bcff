"""Normalisation operators (inference) as torch functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import Constants, Lowered, builder, feature_axes, one_output, refusal

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node


@builder("BatchNormalization")
def _batch_norm(node: Node, constants: Constants) -> Lowered:
    one_output(node)
    if node.attrs.get("training_mode", 0):
        raise refusal(node, "training_mode=1 is not supported; 0 is allowed: export the model for inference")
    epsilon = node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, bias, training=False, eps=epsilon)

    return run


@builder("InstanceNormalization")
def _instance_norm(node: Node, constants: Constants) -> Lowered:
    epsilon = node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # One group per channel; torch's instance_norm refuses a 1x1 map.
        return torch.group_norm(x, x.shape[1], scale, bias, epsilon)

    return run


@builder("GroupNormalization")
def _group_norm(node: Node, constants: Constants) -> Lowered:
    epsilon, groups = node.attrs.get("epsilon", 1e-5), node.attrs["num_groups"]

    def per_channel(parameter: Tensor, channels: int) -> Tensor:
        # Opset 18 gives one value per group, opset 21 one per channel.
        return parameter if len(parameter) == channels else parameter.repeat_interleave(channels // groups)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        channels = x.shape[1]
        return torch.group_norm(x, groups, per_channel(scale, channels), per_channel(bias, channels), epsilon)

    return run


@builder("LayerNormalization")
def _layer_norm(node: Node, constants: Constants) -> Lowered:
    one_output(node)
    axis, epsilon = node.attrs.get("axis", -1), node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        (first,) = feature_axes(node, (axis,), x.dim())
        shape = x.shape[first:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        y = F.layer_norm(x, shape, eps=epsilon) * scale
        return y if bias is None else y + bias

    return run


@builder("RMSNormalization")
def _rms_norm(node: Node, constants: Constants) -> Lowered:
    axis, epsilon = node.attrs.get("axis", -1), node.attrs.get("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        (first,) = feature_axes(node, (axis,), x.dim())
        return F.rms_norm(x, x.shape[first:], eps=epsilon) * scale

    return run


@builder("LRN")
def _lrn(node: Node, constants: Constants) -> Lowered:
    size = node.attrs["size"]
    if size % 2 == 0:
        raise refusal(node, f"size={size} is even; onnxruntime allows odd sizes only")
    alpha, beta, bias = node.attrs.get("alpha", 1e-4), node.attrs.get("beta", 0.75), node.attrs.get("bias", 1.0)
    return lambda x: F.local_response_norm(x, size, alpha, beta, bias)


@builder("LpNormalization")
def _lp_normalization(node: Node, constants: Constants) -> Lowered:
    axis, p = node.attrs.get("axis", -1), node.attrs.get("p", 2)

    def run(x: Tensor) -> Tensor:
        # A zero vector stays zero.
        return F.normalize(x, float(p), feature_axes(node, (axis,), x.dim())[0], eps=torch.finfo(x.dtype).tiny)

    return run


@builder("MeanVarianceNormalization")
def _mean_variance_normalization(node: Node, constants: Constants) -> Lowered:
    axes = tuple(node.attrs.get("axes", (0, 2, 3)))

    def run(x: Tensor) -> Tensor:
        dims = feature_axes(node, axes, x.dim())
        centred = x - x.mean(dims, keepdim=True)
        # onnxruntime adds 1e-9 to the deviation; under the root it also keeps the gradient of a flat map finite.
        return centred * (centred.square().mean(dims, keepdim=True) + 1e-18).rsqrt()

    return run
