"""The choice of the output, and the messages for tensors that hold no logits."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend.operator_sets import ELEMENTWISE
from s2d_convert.frontend.proto import FLOATS, label, names_read, set_nodes, without_weights

PASSING = ELEMENTWISE | {"Flatten", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
SORTING = ("TopK", "Unique")  # what they make is no longer in the order of the classes
DECIDING = ("ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression")  # of these only one class is left


def choose_output(model: onnx.ModelProto, output: str | None) -> onnx.ModelProto:
    """Leave a model one output, with what it depends on, in place.

    `output` may name any tensor, not only an output. Raises UsageError when there is none of that name, ModelError when it
    holds no floats in the order of the classes, or when there are several outputs and no choice; both name the tensors to choose.
    """
    names = [o.name for o in model.graph.output]
    if output is None and len(names) != 1:
        raise ModelError(
            f"the model has {len(names)} outputs ({', '.join(names)}); choose the logits with --output NAME{_hint(model, names)}"
        )
    chosen = output or names[0]
    if chosen not in names and not any(chosen in n.output for n in model.graph.node):
        raise UsageError(f"--output {chosen}: the model has no such output or tensor; it has {', '.join(names)}")
    _refuse_unfit(model, chosen)
    keep = next((o for o in model.graph.output if o.name == chosen), None)
    fresh = onnx.helper.make_tensor_value_info(chosen, TensorProto.FLOAT, None)
    fresh.type.tensor_type.elem_type = _declared_type(keep) or _types(model).get(chosen) or TensorProto.FLOAT
    del model.graph.output[:]
    model.graph.output.append(fresh)
    needed, nodes = {chosen}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(names_read(node))
    if len(nodes) < len(model.graph.node):
        set_nodes(model.graph, reversed(nodes))
    return model


def _declared_type(value: onnx.ValueInfoProto | None) -> int:
    """Return the element type that the file states of an output; 0 where it states none, or no tensor."""
    return value.type.tensor_type.elem_type if value is not None else TensorProto.UNDEFINED


def _refuse_unfit(model: onnx.ModelProto, chosen: str) -> None:
    """Raise ModelError for a tensor that cannot hold logits."""
    declared = next((o for o in model.graph.output if o.name == chosen), None)
    makers = {name: n for n in model.graph.node for name in n.output}
    node: onnx.NodeProto | None = makers.get(chosen)
    made = f", made by node {label(node)}," if node is not None else ""
    kind = declared.type.WhichOneof("value") if declared is not None else None
    if kind not in (None, "tensor_type"):
        raise ModelError(
            f"output '{chosen}'{made} is a {str(kind).removesuffix('_type')}; a tensor of floats, (N, K), is "
            f"expected{_hint(model, [chosen])}"
        )
    known = _declared_type(declared) or _types(model).get(chosen, 0)
    if known and known not in FLOATS:
        name = TensorProto.DataType.Name(known).lower()
        raise ModelError(
            f"output '{chosen}'{made} has type {name}; float32 is expected: choose another --output{_hint(model, [chosen])}"
        )
    while node is not None and node.op_type in PASSING and node.input:
        node = next((makers[name] for name in node.input if name in makers), None)
    if node is not None and node.op_type in (*SORTING, *DECIDING):
        raise ModelError(
            f"output '{chosen}' comes from node {label(node)}, which does not keep a value for every class in order; choose a "
            f"tensor before it{_hint(model, [chosen])}"
        )


def _hint(model: onnx.ModelProto, outputs: Sequence[str]) -> str:
    """Return which tensors of floats lie before the first node behind that is not one; nothing where all is well or unknown."""
    choices: list[str] = []
    types = _types(model)
    makers = {name: n for n in model.graph.node for name in n.output}
    for output in outputs:
        name, blocked = output, False
        while name in makers:
            node = makers[name]
            fits = types.get(name) in FLOATS and node.op_type not in (*SORTING, *DECIDING)
            if fits and (blocked or node.op_type not in PASSING):
                break
            blocked |= not fits
            name = next((n for n in node.input if n in makers), "")
        if name in makers and blocked and name not in choices:
            choices.append(name)
    return f" (the floats before it: --output {' or '.join(choices)})" if choices else ""


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of all tensors that inference can tell the type of."""
    try:
        graph = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
