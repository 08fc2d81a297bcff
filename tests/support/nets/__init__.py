"""One small architecture per family, in plain torch, and its ONNX export.

`FAMILIES[name]()` is a seeded network in eval mode: images [B, 3, 32, 32] -> logits [B, 10]. Adding a family is one
function with `@family` in one of the modules here.
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any, cast

import onnx
import torch
from torch import nn

from nets import (
    aggregation,
    attention,
    branching,
    fusion,
    ghost,
    layernorm,
    mobile,
    modern,
    plain,
    reparam,
    residual,
    shuffle,
    tokens,
    towers,
    variants,
)
from nets.common import CLASSES, FAMILIES, IMAGE, Family

__all__ = ["CLASSES", "FAMILIES", "IMAGE", "INPUT", "OUTPUT", "Family", "export", "to_onnx"]

# Importing these modules fills the table.
MODULES = (
    *(plain, residual, mobile, shuffle, branching, attention, variants, towers, aggregation, fusion),
    *(modern, ghost, reparam, layernorm, tokens),
)
INPUT, OUTPUT = "input", "output"
DYNAMO_OPSET = 18  # the oldest one that the dynamo exporter writes itself


def export(
    name: str,
    *,
    opset: int = 17,
    dynamic_batch: bool = True,
    fold_bn: bool = True,
    width: float = 1.0,
    dynamo: bool = False,
) -> onnx.ModelProto:
    """The ONNX model of family `name`, a fresh copy of a cached export; see `to_onnx`."""
    return onnx.load_from_string(_exported(name, opset, dynamic_batch, fold_bn, width, dynamo))


@cache
def _exported(name: str, opset: int, dynamic_batch: bool, fold_bn: bool, width: float, dynamo: bool) -> bytes:
    net = FAMILIES[name](width)
    model = to_onnx(net, opset=opset, dynamic_batch=dynamic_batch, fold_bn=fold_bn, dynamo=dynamo)
    return bytes(model.SerializeToString())


def to_onnx(
    net: nn.Module, *, opset: int = 17, dynamic_batch: bool = True, fold_bn: bool = True, dynamo: bool = False
) -> onnx.ModelProto:
    """The ONNX model of `net`, with input "input" [N, 3, 32, 32] and output "output" [N, 10].

    `fold_bn=False` keeps every BatchNormalization; for the dynamo exporter it means that nothing at all is optimised.
    That exporter writes at least opset 18.
    """
    with warnings.catch_warnings():
        # The classic exporter announces its end, the dynamo one uses parts of torch that announce theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)
        # GroupNorm looks whether it has more than one value to normalise.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
        if dynamo:
            return _dynamo(net, max(opset, DYNAMO_OPSET), dynamic_batch=dynamic_batch, optimize=fold_bn)
        return _classic(net, opset, dynamic_batch=dynamic_batch, fold_bn=fold_bn)


def _classic(net: nn.Module, opset: int, *, dynamic_batch: bool, fold_bn: bool) -> onnx.ModelProto:
    mode = torch.onnx.TrainingMode.EVAL if fold_bn else torch.onnx.TrainingMode.PRESERVE
    buffer = io.BytesIO()
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, *IMAGE),),
        cast(Any, buffer),  # this exporter writes to open files too; its annotations do not say so
        dynamo=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        training=mode,
        do_constant_folding=fold_bn,  # torch warns of folding in any mode that keeps the norms
        dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}} if dynamic_batch else None,
    )
    return onnx.load_from_string(buffer.getvalue())


def _dynamo(net: nn.Module, opset: int, *, dynamic_batch: bool, optimize: bool) -> onnx.ModelProto:
    program = torch.onnx.export(
        net.eval(),
        (torch.zeros(2 if dynamic_batch else 1, *IMAGE),),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        optimize=optimize,
        dynamic_shapes=({0: torch.export.Dim("N")},) if dynamic_batch else None,
    )
    assert program is not None
    return program.model_proto
