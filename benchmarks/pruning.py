"""Structured pruning by the `torch-pruning` package (DepGraph, Fang et al., CVPR 2023) of a model that comes as ONNX.

The graph becomes plain torch layers, torch-pruning takes channels out of them, and what is left of the weights goes back
into the ONNX model. Fine-tuning is the caller's, so that it is the same for every method.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from benchmarks.least_pruning import least_pruned, prune_at, with_own_weights
from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.linear import mix_weights
from s2d_convert.errors import ModelError
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.latency import LatencyMeter
from s2d_convert.network.converters.lower import lower
from s2d_convert.plans.weights import classifier_of

try:
    import torch_pruning
except ImportError:  # an extra: `pip install s2d-convert[bench]`
    torch_pruning = None

AVAILABLE = torch_pruning is not None
PRODUCTS = ("Conv", "Gemm", "MatMul")
MOST_OF_A_LAYER = 0.9  # may go where layers are ranked against each other


class Plain(nn.Module):
    """The graph with nn.Conv2d, nn.Linear and nn.BatchNorm2d, which is what torch-pruning knows how to cut."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict()
        self._key = {node.name: f"n{i}" for i, node in enumerate(graph.nodes)}
        self._functions = {}
        for node in graph.nodes:
            layer = self._layer(node)
            if layer is None:
                self._functions[node.name] = lower(node, graph.constants)
            else:
                self.layers[self._key[node.name]] = layer

    def _layer(self, node: Node) -> nn.Module | None:
        constants = self.graph.constants
        if node.op == "BatchNormalization":
            return _batch_norm(*(constants[n] for n in node.inputs[1:5]), epsilon=node.attrs.get("epsilon", 1e-5))
        if node.op not in PRODUCTS or node.inputs[1] not in constants:
            return None
        weight, bias = mix_weights(node, constants)
        return _convolution(node, weight, bias) if node.op == "Conv" else _linear(weight, bias)

    def layer(self, node: Node) -> nn.Module | None:
        """Return the layer of a node, None if it has no weights."""
        key = self._key[node.name]
        return self.layers[key] if key in self.layers else None  # noqa: SIM401 - a ModuleDict has no get

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's output."""
        values: dict[str, Tensor] = {self.graph.image: images}
        for node in self.graph.nodes:
            layer = self.layer(node)
            if layer is not None:
                values[node.outputs[0]] = self.seen(node.outputs[0], layer(values[node.inputs[0]]))
                continue
            inputs = [
                values[n] if n in values else torch.tensor(self.graph.constants[n]) if n else None for n in node.inputs
            ]
            made = self._functions[node.name](*inputs)
            for name, value in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                values[name] = self.seen(name, value)
        return values[self.graph.output]

    def seen(self, _name: str, value: Tensor) -> Tensor:
        """Return the value of a tensor as later nodes read it; other classes may look at it here."""
        return value


def _convolution(node: Node, weight: Array, bias: Array | None) -> nn.Module:
    rank = weight.ndim - 2
    pads = tuple(node.attrs.get("pads", (0,) * 2 * rank))
    if rank != 2 or pads[:rank] != pads[rank:] or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ModelError(f"{node}: only 2-D convolutions with the same pads on both sides are pruned here")
    groups = int(node.attrs.get("group", 1))
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride=tuple(node.attrs.get("strides", (1, 1))),
        padding=pads[:rank],
        dilation=tuple(node.attrs.get("dilations", (1, 1))),
        groups=groups,
        bias=bias is not None,
    )
    return _filled(layer, weight, bias)


def _linear(weight: Array, bias: Array | None) -> nn.Module:
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight, bias)


def _filled(layer: nn.Conv2d | nn.Linear, weight: Array, bias: Array | None) -> nn.Module:
    layer.weight.data = torch.tensor(weight)
    if bias is not None and layer.bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def _batch_norm(scale: Array, shift: Array, mean: Array, var: Array, *, epsilon: float) -> nn.Module:
    layer = nn.BatchNorm2d(len(scale), eps=epsilon)
    layer.weight.data, layer.bias.data = torch.tensor(scale), torch.tensor(shift)
    layer.running_mean, layer.running_var = torch.tensor(mean), torch.tensor(var)
    return layer


def kept_whole(model: AnalysedModel) -> tuple[Node, ...]:
    """Return nodes whose channels torch-pruning must leave alone: the classifier, and what shares a tensor with padded
    channels (shortcuts that are filled up with zeros), because it takes a padded tensor for one of the same channels."""
    bound: set[int] = set()
    for layout in model.channels.layouts.values():
        units = set(layout.units.tolist())
        if FREE in units and len(units) > 1:
            bound |= units
    nodes = [
        model.graph.producer[name]
        for c in model.channels.classes
        if bound & set(c.units)
        for name in _outputs(model.graph, c.producers)
    ]
    classifier = classifier_of(model)
    return (*nodes, *([] if classifier is None else [classifier]))


def _outputs(graph: Graph, names: tuple[str, ...]) -> list[str]:
    return [node.outputs[0] for node in graph.nodes if node.name in names]


def pruned(model: AnalysedModel, ratio: float, *, round_to: int, isomorphic: bool = False) -> onnx.ModelProto:
    """Return the model without the share `ratio` of every layer's channels, those of the least group norm first.

    isomorphic: the share of all layers with the same pattern of dependencies together, ranked against each other (Isomorphic
    Pruning, Fang et al., ECCV 2024), at least one step of each layer left.

    Raises ModelError for a model that the package, or this way round, cannot prune.
    """
    net = Plain(model.graph).eval()
    shape = (1, *model.graph.shapes[model.graph.image])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        pruner = torch_pruning.pruner.BasePruner(
            net,
            torch.zeros(shape),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[net.layer(node) for node in kept_whole(model)],
            round_to=round_to,
            **(
                {"global_pruning": True, "isomorphic": True, "max_pruning_ratio": MOST_OF_A_LAYER} if isomorphic else {}
            ),
        )
        pruner.step()
    return _written(model.graph, net)


def _written(graph: Graph, net: Plain) -> onnx.ModelProto:
    """Return the ONNX model with the weights that are left."""
    model = with_own_weights(graph)
    weights = {weight.name: weight for weight in model.graph.initializer}
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        layer = net.layer(node)
        if layer is None:
            continue
        for place, value in _operands(node, layer).items():
            weights[proto.input[place]].CopyFrom(numpy_helper.from_array(value, proto.input[place]))
        for attribute in proto.attribute:
            if attribute.name == "group" and isinstance(layer, nn.Conv2d):
                attribute.i = layer.groups
    del model.graph.value_info[:]
    shape: list[str | int | None] = ["N", *graph.shapes[graph.output]]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output, onnx.TensorProto.FLOAT, shape))
    return onnx.shape_inference.infer_shapes(model)  # a table of latencies goes by the shapes


def _operands(node: Node, layer: nn.Module) -> Mapping[int, Array]:
    """Return the constants of a node by the place among its inputs, as its layer has them now."""
    state = {k: v.detach().numpy() for k, v in layer.state_dict().items()}
    if isinstance(layer, nn.BatchNorm2d):
        return dict(enumerate((state[key] for key in ("weight", "bias", "running_mean", "running_var")), start=1))
    weight = state["weight"]
    if node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0)):
        weight = np.ascontiguousarray(weight.T)
    if node.op == "Gemm" and node.attrs.get("alpha", 1.0) != 1:
        weight = weight / np.float32(node.attrs["alpha"])
    operands = {1: weight}
    if "bias" in state:
        operands[2] = state["bias"] / np.float32(node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0)
    return operands


def prune_to(
    model: AnalysedModel, meter: LatencyMeter, *, budget: float, block: int, isomorphic: bool = False
) -> tuple[onnx.ModelProto, float, float]:
    """Return (pruned model, its pruning ratio, its latency): the least that is pruned for a latency within the budget, or
    the most that can be pruned where nothing meets it.

    Channels are kept in whole layout blocks, in smaller steps where the budget asks for more.
    """
    kept = {node.name for node in kept_whole(model)}
    widths = [c.width for c in model.channels.classes if c.splittable and kept.isdisjoint(c.producers)]
    if not widths:
        raise ModelError("torch-pruning finds no layer to prune")

    for step in [s for s in (block, block // 2, block // 4, 1) if s < min(widths)] or [1]:
        prune = partial(pruned, model, round_to=step, isomorphic=isomorphic)
        # A layer of which nothing would be left is not pruned at all.
        most = prune_at(prune, 1 - step / min(widths) - 1e-6, meter)
        if most.latency <= budget:
            break
    best = least_pruned(prune, meter, budget=budget, most=most)
    return best.model, best.ratio, best.latency
