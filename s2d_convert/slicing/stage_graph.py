"""The ONNX graph of one stage in the making, on top of onnx-graphsurgeon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from s2d_convert.channels.kinds import Array
from s2d_convert.frontend.graph import RESERVED, SOFTMAXES, Graph, Node
from s2d_convert.frontend.proto import SMALL, copy_of, without_weights
from s2d_convert.plans.weights import Hollow

OUTPUT, CONFIDENCE, INVERSE_TEMPERATURE = RESERVED
EXIT = "exit."  # what the names of an exit head's nodes begin with
LOGITS = "exit.logits of an answer that does not tell them"
MOVES = ("Slice", "Gather", "Concat", "Pad")


@dataclass(frozen=True)
class StageModel:
    """One stage: its ONNX model, whether it takes the image, the links it reads and writes (name and
    shape without the batch), its multiply-accumulates per image and its number of parameters."""

    model: onnx.ModelProto
    image: bool
    links_in: tuple[str, ...]
    links_out: tuple[tuple[str, tuple[int, ...]], ...]
    macs: int
    parameters: int


class StageGraph:
    """The ONNX graph of one stage in the making."""

    def __init__(self, number: int, graph: Graph) -> None:
        self.number, self.opset = number, graph.opset
        self._folded, self._types = graph.folded, graph.types
        self.nodes: list[gs.Node] = []
        self.tensors: dict[str, gs.Variable] = {}
        self.image: gs.Variable | None = None
        self._pixels = ""
        self.links_in: dict[str, gs.Variable] = {}
        self.links_out: dict[str, gs.Variable] = {}
        self.macs = 0
        self._moved: dict[tuple[Any, ...], str] = {}
        self._names = {graph.image, *RESERVED}

    def unique(self, name: str) -> str:
        """Return a tensor name that this stage does not have yet, marked with the stage's number."""
        fresh = base = f"{name}.s{self.number}"
        count = 1
        while fresh in self._names:
            count += 1
            fresh = f"{base}_{count}"
        self._names.add(fresh)
        return fresh

    def take_image(self, graph: Graph) -> str:
        """Return the runtime name of the image in float32; the stage has it as an input from the first call on."""
        if self.image is None:
            name, shape = graph.image, graph.shapes[graph.image]
            self.image = gs.Variable(name, dtype=np.dtype(graph.image_type), shape=["N", *shape])
            self.tensors[name], self._pixels = self.image, name
            if graph.image_type != "float32":
                self._pixels = self.cast(name, f"{name}.float32", np.dtype(np.float32), shape)
        return self._pixels

    def op(
        self,
        op: str,
        inputs: Sequence[str | Array],
        name: str,
        shape: Sequence[int],
        *,
        attrs: dict[str, Any] | None = None,
    ) -> str:
        """Add a node with one output; inputs are tensor names, arrays, or '' where absent. Returns the output's name.

        What only moves data is made once: the same move of the same tensors gives the tensor that is there already.
        """
        if op not in MOVES:
            return self.ops(op, inputs, [(name, shape)], attrs or {})[0]
        key = (op, *(x if isinstance(x, str) else (x.dtype.str, x.shape, x.tobytes()) for x in inputs), repr(attrs))
        if key not in self._moved:
            self._moved[key] = self.ops(op, inputs, [(name, shape)], attrs or {})[0]
        return self._moved[key]

    def ops(
        self,
        op: str,
        inputs: Sequence[str | Array],
        outputs: Sequence[tuple[str, Sequence[int]]],
        attrs: dict[str, Any],
    ) -> list[str]:
        """Add a node with several outputs (name, shape without the batch)."""
        operands = [self._operand(x, f"{outputs[0][0]}.{i}") for i, x in enumerate(inputs)]
        results = []
        for name, shape in outputs:
            fresh = self.unique(name)
            # Buffers are shared by symbolic shape: what has other rows than the batch must not name it.
            known = None if name in self._folded else ["N", *shape]
            self.tensors[fresh] = gs.Variable(fresh, dtype=self._types.get(name, np.float32), shape=known)
            results.append(self.tensors[fresh])
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in attrs.items()}
        self.nodes.append(gs.Node(op, name=results[0].name, attrs=plain, inputs=operands, outputs=results))
        return [r.name for r in results]

    def _operand(self, value: str | Array, name: str) -> gs.Tensor:
        if isinstance(value, str):
            return self.tensors[value] if value else gs.Variable.empty()
        unique = self.unique(name)
        if isinstance(value, Hollow) and value.size > SMALL:  # the checker asks for the values of small constants
            return gs.Constant(unique, _without_values(unique, value))
        return gs.Constant(unique, np.asarray(value, order="C"))

    def cast(self, source: str, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> str:
        """Add a Cast to another type."""
        made = self.op("Cast", [source], name, shape, attrs={"to": onnx.helper.np_dtype_to_tensor_dtype(dtype)})
        self.tensors[made].dtype = dtype
        return made

    def cut(self, source: str, index: list[int], name: str, shape: Sequence[int], *, axis: int, count: int) -> str:
        """Take the positions `index` of the `count` along `axis` (without the batch), with the cheapest operator."""
        if index == list(range(count)):
            return source
        if index == list(range(index[0], index[0] + len(index))):
            bounds = [np.array([n]) for n in (index[0], index[-1] + 1, axis + 1)]
            return self.op("Slice", [source, *bounds], name, shape)
        return self.op("Gather", [source, np.array(index)], name, shape, attrs={"axis": axis + 1})

    def reduce(self, op: str, source: str, axes: list[int], shape: Sequence[int]) -> str:
        """Add a Reduce node without kept axes; its axes became an input in opset 18."""
        name = f"{source}.{op.lower()}"
        if self.opset >= 18:
            return self.op(op, [source, np.array(axes)], name, shape, attrs={"keepdims": 0})
        return self.op(op, [source], name, shape, attrs={"keepdims": 0, "axes": axes})

    def mixing(self, node: Node, source: str, weight: Array, bias: Array | None, *, shape: Sequence[int]) -> str:
        """Add a MIX node with a part of its canonical weight [O, I, *kernel] and bias; returns the output's name."""
        out = node.outputs[0]
        extra: list[str | Array] = [] if bias is None else [bias]
        if node.op in ("Conv", "ConvTranspose"):
            stored = weight.swapaxes(0, 1) if node.op == "ConvTranspose" else weight
            return self.op(node.op, [source, stored, *extra], out, shape, attrs=dict(node.attrs))
        if node.op == "Gemm" or (len(shape) == 1 and bias is not None):
            return self.op("Gemm", [source, weight, *extra], out, shape, attrs={"transB": 1})
        name = self.op("MatMul", [source, weight.T], out, shape)
        return self.op("Add", [name, *extra], out, shape) if extra else name

    def answer(self, logits: str, graph: Graph, *, temperature: float) -> None:
        """Add `output`, as the static model gives it, and `confidence` at the temperature: the largest probability, or of
        labels the smallest of max(p, 1 - p), which is the Sigmoid of the smallest distance of a logit from 0.

        The temperature is an initializer of its own even where it is 1, so that it can be calibrated anew in the file.
        """
        shape, classes = graph.shapes[graph.output], graph.classes
        self._rename(self._tail(logits, graph), OUTPUT)
        flat = logits if len(shape) == 1 else self.op("Flatten", [logits], "exit.flat", [classes], attrs={"axis": 1})
        scale = gs.Constant(INVERSE_TEMPERATURE, np.array([1.0 / temperature], dtype=np.float32))
        scaled = self.op("Mul", [flat], "exit.scaled", [classes])
        self.nodes[-1].inputs.append(scale)
        if graph.task.several:
            least = self.reduce("ReduceMin", self.op("Abs", [scaled], "exit.distance", [classes]), [1], [])
            self._rename(self.op("Sigmoid", [least], CONFIDENCE, []), CONFIDENCE)
            return
        softmax = self.op("Softmax", [scaled], "exit.probabilities", [classes], attrs={"axis": 1})
        self._rename(self.reduce("ReduceMax", softmax, [1], []), CONFIDENCE)

    def _tail(self, logits: str, graph: Graph) -> str:
        """Add the nodes that make the static model's answer of its logits; returns the answer's name."""
        if graph.tells_logits:
            op, attrs = (graph.tail[0].op, dict(graph.tail[0].attrs)) if graph.tail else ("Identity", {})
            return self.op(op, [logits], OUTPUT, graph.answer_shape, attrs=attrs)
        made: dict[str, str | Array] = {**graph.constants, "": "", graph.output: logits}
        for node in graph.tail:
            name = OUTPUT if node is graph.tail[-1] else node.outputs[0]
            inputs, shape = [made[n] for n in node.inputs], graph.tail_shapes[node.outputs[0]]
            made[node.outputs[0]] = answer = self.op(node.op, inputs, name, shape, attrs=dict(node.attrs))
        return answer

    def _rename(self, made: str, name: str) -> None:
        self.tensors[name] = self.tensors.pop(made)
        self.tensors[name].name = name

    def _copy_shared_links(self) -> None:
        """Give links that this stage reads too, straight from a convolution, a copy of their own.

        onnxruntime fuses an Add with the convolution before it, and forgets that the sum's other operand is an output.
        """
        for link in self.links_out.values():
            (maker,) = (n for n in self.nodes if link in n.outputs)
            readers = [n for n in self.nodes if link in n.inputs]
            if maker.op != "Conv" or not readers:
                continue
            inner = gs.Variable(self.unique(f"{link.name}.inner"), dtype=link.dtype, shape=link.shape)
            maker.outputs = [inner]
            for reader in readers:
                reader.inputs = [inner if value is link else value for value in reader.inputs]
            self.nodes.append(gs.Node("Identity", name=f"{link.name}.copy", inputs=[inner], outputs=[link]))

    def finish(self) -> StageModel:
        """Return the stage as a checked model."""
        self._copy_shared_links()
        inputs = ([self.image] if self.image is not None else []) + list(self.links_in.values())
        outputs = [self.tensors[OUTPUT], self.tensors[CONFIDENCE], *self.links_out.values()]
        surgeon = gs.Graph(
            nodes=self.nodes, inputs=inputs, outputs=outputs, opset=self.opset, name=f"stage{self.number}"
        )
        model = gs.export_onnx(surgeon)
        model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
        onnx.checker.check_model(without_weights(model))
        learned = (
            n for n in self.nodes if n.op != "Expand"
        )  # what is expanded stands for channels that are not computed
        sizes = (math.prod(x.shape) for n in learned for x in n.inputs if _is_parameter(x))
        return StageModel(
            model=model,
            image=self.image is not None,
            links_in=tuple(self.links_in),
            links_out=tuple((name, tuple(v.shape[1:])) for name, v in self.links_out.items()),
            macs=self.macs,
            parameters=int(sum(sizes)),
        )


def with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a stage with its logits as a further output, LOGITS, if its `output` does not tell them; else the stage itself."""
    makers = {name: node for node in model.graph.node for name in node.output}
    (scaled,) = (n for n in model.graph.node if INVERSE_TEMPERATURE in n.input)
    flat = next(name for name in scaled.input if name != INVERSE_TEMPERATURE)
    shaped = makers.get(flat)  # None where an earlier stage has computed all that the classifier reads
    alike = {flat, *(shaped.input if shaped is not None and shaped.op_type == "Flatten" else ())}
    if makers[OUTPUT].op_type in ("Identity", *SOFTMAXES) and makers[OUTPUT].input[0] in alike:
        return model
    told = copy_of(model)
    told.graph.node.append(onnx.helper.make_node("Identity", [flat], [LOGITS], name=LOGITS))
    told.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
    return told


def _without_values(name: str, value: Array) -> LazyValues:
    """Return a constant that is written with its type and shape alone."""
    dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return LazyValues(onnx.TensorProto(name=name, data_type=dtype, dims=value.shape))


def _is_parameter(tensor: gs.Tensor) -> bool:
    """Return whether a tensor is a float constant that counts as parameters (scalars do not)."""
    return isinstance(tensor, gs.Constant) and tensor.dtype == np.float32 and bool(tensor.shape)
