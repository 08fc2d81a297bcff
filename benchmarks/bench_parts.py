"""What the parts cost: analysis of large graphs, and one candidate. The dispatcher has bench_dispatcher.py.

    python benchmarks/bench_parts.py [MODEL.onnx ...]

Without arguments it measures a ResNet-50 and a ResNet-20 with random weights, made here. Times are medians; latencies
are ratios to the static model, taken in the same run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from s2d_convert.channels.analysis import AnalysedModel, analyse
from s2d_convert.frontend.load import graph_from_proto, load_graph, read_model
from s2d_convert.latency.layout import layout_block
from s2d_convert.latency.meter import Meter
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.divisions import divide
from s2d_convert.plans.space import PlanSpace
from s2d_convert.plans.weights import static_weights
from s2d_convert.slicing.split import split
from s2d_convert.workflows.split_model import make_plan

BUILD = Path("build/bench")


class Builder:
    """A builder of ONNX graphs with seeded random weights."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], **attrs: Any) -> str:
        """Add a node and return its output's name."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def weight(self, *shape: int) -> str:
        """Add a random constant and return its name."""
        name = f"w{len(self.weights)}"
        scale = np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        self.weights.append(numpy_helper.from_array((scale * self.rng.normal(size=shape)).astype(np.float32), name))
        return name

    def conv(self, x: str, c_in: int, c_out: int, kernel: int, stride: int = 1, *, relu: bool = True) -> str:
        """Add a convolution with bias and same padding, and a ReLU."""
        inputs = [x, self.weight(c_out, c_in, kernel, kernel), self.weight(c_out)]
        pads = [kernel // 2] * 4
        y = self.add("Conv", inputs, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads)
        return self.add("Relu", [y]) if relu else y

    def residual(self, x: str, body: str, c_in: int, c_out: int, stride: int) -> str:
        """Add ReLU(body + shortcut)."""
        short = x if c_in == c_out and stride == 1 else self.conv(x, c_in, c_out, 1, stride, relu=False)
        return self.add("Relu", [self.add("Add", [body, short])])

    def model(self, x: str, channels: int, classes: int, size: int) -> onnx.ModelProto:
        """Close with global pooling and a linear layer."""
        flat = self.add("Flatten", [self.add("GlobalAveragePool", [x])])
        logits = self.add("Gemm", [flat, self.weight(classes, channels), self.weight(classes)], transB=1)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
        output = helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, "bench", [image], [output], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet50() -> onnx.ModelProto:
    """Return ResNet-50 for 224x224, random weights."""
    b = Builder()
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    x, width = b.add("MaxPool", [b.conv("image", 3, 64, 7, 2)], **pool), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            body = b.conv(b.conv(x, width, inner, 1), inner, inner, 3, stride)
            x = b.residual(x, b.conv(body, inner, 4 * inner, 1, relu=False), width, 4 * inner, stride)
            width = 4 * inner
    return b.model(x, width, 1000, 224)


def resnet20() -> onnx.ModelProto:
    """Return ResNet-20 for 32x32, random weights."""
    b = Builder()
    x, width = b.conv("image", 3, 16, 3), 16
    for stage in range(3):
        for block in range(3):
            out, stride = 16 * 2**stage, 2 if block == 0 and stage else 1
            body = b.conv(b.conv(x, width, out, 3, stride), out, out, 3, relu=False)
            x, width = b.residual(x, body, width, out, stride), out
    return b.model(x, width, 10, 32)


def deep(nodes: int) -> onnx.ModelProto:
    """Return a residual network of about so many nodes, six to a block, 48 to 192 channels wide; random weights, 32x32."""
    b = Builder()
    blocks = nodes // 6
    x, width = b.conv("image", 3, 48, 3), 48
    for block in range(blocks):
        out = 48 * 2 ** (3 * block // blocks)
        stride = 1 if out == width else 2
        body = b.conv(b.conv(x, width, out, 1), out, out, 3, stride, relu=False)
        x, width = b.residual(x, body, width, out, stride), out
    return b.model(x, width, 100, 32)


def bench_growth() -> None:
    """Print how load, analysis and split grow with the number of nodes."""
    for nodes in (250, 500, 1000, 2000):
        path = BUILD / f"deep{nodes}.onnx"
        onnx.save(deep(nodes), str(path))
        before = time.perf_counter()
        graph = load_graph(path)
        loaded = time.perf_counter()
        channels = analyse(graph)
        analysed = time.perf_counter()
        split(
            graph,
            channels,
            make_plan(AnalysedModel(graph, channels), "width", 2).chains[0],
            static_weights(graph, channels),
        )
        done = time.perf_counter()
        print(f"{len(graph.nodes)} nodes, {path.stat().st_size / 2**20:.0f} MiB: load {loaded - before:.2f} s, "
              f"analyse {analysed - loaded:.2f} s, split (width) {done - analysed:.2f} s")  # fmt: skip


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def bench_model(path: Path) -> None:
    """Print what the parts cost on one model."""
    graph = load_graph(path)
    print(f"{path.name}: {len(graph.nodes)} nodes")
    print(f"  load            {median_seconds(lambda: graph_from_proto(read_model(path)), 3):.3f} s")
    print(f"  analyse         {median_seconds(lambda: analyse(graph), 3):.3f} s")
    channels = analyse(graph)
    weights = static_weights(graph, channels)
    divisions = divide(AnalysedModel(graph, channels), weights, groups=4, block=layout_block())
    plan = make_plan(AnalysedModel(graph, channels), "width", 2).chains[0]
    print(f"  split (width)   {median_seconds(lambda: split(graph, channels, plan, weights), 3):.3f} s")
    shape = graph.shapes[graph.image]
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, *shape)).astype(np.float32)
    if shape[-1] <= 64:
        space = PlanSpace(AnalysedModel(graph, channels), divisions, stages=2)
        net = StagedNet(AnalysedModel(graph, channels), weights, taps=space.taps).eval()
        images = torch.from_numpy(rng.normal(size=(1000, *shape)).astype(np.float32))
        meter = Meter(graph.to_model().SerializeToString(), image)

        def candidate() -> None:
            models = split(graph, channels, plan, weights)
            meter.measure([m.model.SerializeToString() for m in models])
            masks = net.masks(Effective(AnalysedModel(graph, channels), plan))
            with torch.no_grad():
                for start in range(0, 1000, 250):
                    net(images[start : start + 250], masks)

        before = time.perf_counter()
        candidate()
        print(f"  one candidate   {time.perf_counter() - before:.3f} s (stages, latency, forward of 1,000 images)")


def main() -> None:
    """Measure the models on the command line, or two made here."""
    BUILD.mkdir(parents=True, exist_ok=True)
    paths = [Path(arg) for arg in sys.argv[1:]]
    if not paths:
        for name, make in (("resnet50", resnet50), ("resnet20", resnet20)):
            paths.append(BUILD / f"{name}.onnx")
            if not paths[-1].exists():
                onnx.save(make(), str(paths[-1]))
        bench_growth()
    for path in paths:
        bench_model(path)


if __name__ == "__main__":
    main()
