"""Convolutions and matrix products as torch functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2d_convert.network.converters.base import Constants, Lowered, builder, register_functions
from s2d_convert.network.converters.window import pad_spatial, same_pads, same_total

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

register_functions({"MatMul": torch.matmul})


@builder("Conv")
def _conv(node: Node, constants: Constants) -> Lowered:
    attrs, groups = node.attrs, node.attrs.get("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        strides, dilations = attrs.get("strides", (1,) * rank), attrs.get("dilations", (1,) * rank)
        low, high = _conv_pads(node, x.shape[2:], _spans(weight, dilations), strides)
        if low != high:
            x, low = pad_spatial(x, low, high), (0,) * rank
        return CONV[rank](x, weight, bias, strides, low, dilations, groups)

    return _in_float32_if_dilated(node, run)


def _in_float32_if_dilated(node: Node, run: Lowered) -> Lowered:
    """Return a convolution, without bfloat16 on a CPU where it is dilated: torch 2.13 gives its weights wrong gradients
    there, or ends in a segmentation fault, at image sizes of 32 and more."""
    if max(node.attrs.get("dilations", (1,))) == 1:
        return run

    def precise(*operands: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        if not torch.is_autocast_enabled("cpu"):
            return run(*operands)
        with torch.autocast("cpu", enabled=False):
            return run(*(x if x is None else x.float() for x in operands))

    return precise


def _spans(weight: Tensor, dilations: Sequence[int]) -> list[int]:
    """Return the elements from the first to the last of a dilated kernel, per spatial axis."""
    return [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]


def _conv_pads(
    node: Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the zeros before and after every spatial axis."""
    rank, mode = len(sizes), node.attrs.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = node.attrs.get("pads", (0,) * 2 * rank) if mode == "NOTSET" else (0,) * 2 * rank
        return tuple(pads[:rank]), tuple(pads[rank:])
    totals = (max(0, same_total(*axis)) for axis in zip(sizes, spans, strides, strict=True))
    both = [same_pads(mode, total) for total in totals]
    return tuple(low for low, _ in both), tuple(high for _, high in both)


@builder("ConvTranspose")
def _conv_transpose(node: Node, constants: Constants) -> Lowered:
    attrs, groups = node.attrs, node.attrs.get("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.dim() - 2
        strides, dilations = attrs.get("strides", (1,) * rank), attrs.get("dilations", (1,) * rank)
        spans = _spans(weight, dilations)
        full = [(n - 1) * s + span for n, s, span in zip(x.shape[2:], strides, spans, strict=True)]
        low, high, extra = _transpose_crops(node, full, [n * s for n, s in zip(x.shape[2:], strides, strict=True)])
        if low == high and not any(extra):
            return CONV_TRANSPOSE[rank](x, weight, bias, strides, low, 0, groups, dilations)
        y = CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, groups, dilations)
        y = pad_spatial(y, [-p for p in low], [e - p for p, e in zip(high, extra, strict=True)])
        # The bias comes last: rows added by output_padding hold it too.
        return y if bias is None else y + bias.view(-1, *(1,) * rank)

    return _in_float32_if_dilated(node, run)


def _transpose_crops(
    node: Node, full: Sequence[int], same: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return what to cut before and after every spatial axis of the `full` output, and the rows to add at its end."""
    rank, mode = len(full), node.attrs.get("auto_pad", "NOTSET")
    extra = tuple(node.attrs.get("output_padding", ())) or (0,) * rank
    sizes = node.attrs.get("output_shape") or (same if mode.startswith("SAME") else None)
    if sizes is None:
        pads = node.attrs.get("pads", (0,) * 2 * rank) if mode == "NOTSET" else (0,) * 2 * rank
        return tuple(pads[:rank]), tuple(pads[rank:]), extra
    totals = [f + e - n for f, e, n in zip(full, extra, sizes[-rank:], strict=True)]
    if "output_shape" in node.attrs:  # a size beyond the full output is filled up; auto_pad alone only cuts
        extra = tuple(e + max(0, -total) for e, total in zip(extra, totals, strict=True))
    # Without auto_pad the odd one is cut before the axis, as for SAME_LOWER.
    both = [same_pads("SAME_UPPER" if mode == "SAME_UPPER" else "SAME_LOWER", max(0, total)) for total in totals]
    return tuple(low for low, _ in both), tuple(high for _, high in both), extra


@builder("Gemm")
def _gemm(node: Node, constants: Constants) -> Lowered:
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    trans_a, trans_b = node.attrs.get("transA", 0), node.attrs.get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, weight = a.t() if trans_a else a, b if trans_b else b.t()
        if alpha == beta == 1 and (c is None or c.shape == weight.shape[:1]):
            return F.linear(a, weight, c)
        y: Tensor = alpha * F.linear(a, weight)
        return y if c is None else y + beta * c

    return run


@builder("Einsum")
def _einsum(node: Node, constants: Constants) -> Lowered:
    equation = node.attrs["equation"]
    return lambda *inputs: torch.einsum(equation, *inputs)
