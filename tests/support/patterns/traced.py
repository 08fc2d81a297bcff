"""Real exports: a torch module between two convs, written by the classic or the dynamo exporter."""

from __future__ import annotations

import io
import warnings
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn

from patterns.base import CHANNELS, CLASSES, LAST, SIZE

IMAGE = (3, SIZE, SIZE)


class _Around(nn.Module):
    """The modules that `base.around` stands for."""

    def __init__(self, middle: nn.Module, made: int) -> None:
        super().__init__()
        self.before, self.middle = nn.Conv2d(3, CHANNELS, 3, padding=1), middle
        self.after, self.last = nn.Conv2d(made, LAST, 3, padding=1), nn.Linear(LAST, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.before(x).relu())
        out: Tensor = self.last(self.after(x).relu().mean((2, 3)))
        return out


def seeded(net: nn.Module) -> nn.Module:
    """`net` in eval mode, with weights that keep activations O(1)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, value in net.named_parameters():
            if value.ndim > 1:
                nn.init.kaiming_normal_(value)
            elif name.endswith("bias"):
                nn.init.normal_(value, std=0.2)
            else:
                nn.init.uniform_(value, 0.6, 1.4)
    return net.eval()


def classic(
    middle: nn.Module, *, made: int = CHANNELS, fold: bool = True, opset: int = 17, fixed: bool = False
) -> onnx.ModelProto:
    """The export by tracing; `fold=False` leaves the constant arithmetic in, `fixed` the batch of one."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its end, and tracing its constants
        torch.onnx.export(
            seeded(_Around(middle, made)),
            (torch.zeros(1, *IMAGE),),
            cast(Any, buffer),  # this exporter writes to open files too; its annotations do not say so
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            opset_version=opset,
            do_constant_folding=fold,
            dynamic_axes=None if fixed else {"image": {0: "N"}, "logits": {0: "N"}},
        )
    return onnx.load_from_string(buffer.getvalue())


def dynamo(middle: nn.Module, *, made: int = CHANNELS, optimize: bool = False, opset: int = 18) -> onnx.ModelProto:
    """The export by torch.export, as a rule with everything left in that an optimiser would take out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            seeded(_Around(middle, made)),
            (torch.zeros(2, *IMAGE),),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("N")},),
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program.model_proto
