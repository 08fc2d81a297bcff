"""The blocked layout in which onnxruntime keeps feature maps on this machine, found with a probe model.

The layout exists where MLAS has kernels for it. On x86 it always does: blocks of 8 channels, or of 16 with AVX-512. On Arm
blocks of 16 exist only in builds with `onnxruntime_USE_ARM_NEON_NCHWC`, which the usual wheels are not (mlas/lib/platform.cpp
and mlasi.h of onnxruntime). So the processor alone does not decide it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from s2d_runtime import profile

LEAST_BLOCK = 8  # without a blocked layout, vector instructions still favour multiples of 8


@lru_cache
def layout_block() -> int:
    """Return the width of channel groups that suits onnxruntime's CPU kernels on this machine: a block of the blocked
    layout, or LEAST_BLOCK where there is none."""
    return max(LEAST_BLOCK, profile.layout_block(probe_model().SerializeToString(), "CPUExecutionProvider"))


def probe_model() -> onnx.ModelProto:
    """Return a single convolution, which onnxruntime moves to the blocked layout where it has one."""
    weight = numpy_helper.from_array(np.ones((32, 32, 3, 3), dtype=np.float32), "weight")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 32, 8, 8]) for n in ("image", "output")]
    node = helper.make_node("Conv", ["image", "weight"], ["output"], name="conv", pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "probe", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
