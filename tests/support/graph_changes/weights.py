"""Weights in other places and other forms, with the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graph_changes.base import CHANGES, Subject, UnfitError, all_nodes, change, register, set_nodes

Array = NDArray[Any]
node = helper.make_node


def pick(subject: Subject, fits: Callable[[Array], bool] = lambda _: True) -> tuple[str, Array]:
    """Name and value of an initializer."""
    found = {i.name: numpy_helper.to_array(i) for i in subject.graph.initializer}
    names = sorted(name for name, value in found.items() if fits(value))
    if not names:
        raise UnfitError
    name = subject.rng.choice(names)
    return name, found[name]


def is_weight(value: Array) -> bool:
    return value.dtype == np.float32 and value.size > 1


def take_out(subject: Subject, name: str) -> None:
    """Remove an initializer."""
    for field in (subject.graph.initializer, subject.graph.input):
        for value in [i for i in field if i.name == name]:
            field.remove(value)


def made_by(
    fits: Callable[[Array], bool], least: int = 1
) -> Callable[[Callable[[Subject, str, Array], list[onnx.NodeProto]]], None]:
    """Register a function that makes a constant by nodes: they come first, and the initializer goes."""

    def enter(make: Callable[[Subject, str, Array], list[onnx.NodeProto]]) -> None:
        def apply(subject: Subject) -> None:
            if subject.opset < least:
                raise UnfitError
            name, value = pick(subject, fits)
            take_out(subject, name)
            nodes = make(subject, name, value)
            set_nodes(subject.graph, [*nodes, *subject.graph.node])

        register(CHANGES, make.__name__, apply)

    return enter


@made_by(lambda v: True)
def weight_in_a_constant_node(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    if s.opset >= 12 and value.ndim <= 1 and value.dtype in (np.float32, np.int64) and s.rng.random() < 0.7:
        kind = "float" if value.dtype == np.float32 else "int"
        attrs = {f"value_{kind}{'s' if value.ndim else ''}": value.tolist()}
        if value.size:
            return [node("Constant", [], [name], **attrs)]
    return [node("Constant", [], [name], value=numpy_helper.from_array(value, s.rng.choice(("", name, "value"))))]


@made_by(lambda v: True)
def weight_through_an_identity(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    return [node("Identity", [s.constant(value, f"{name}_stored")], [name])]


@made_by(is_weight, least=9)
def weight_stored_as_double(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    return [node("Cast", [s.constant(value.astype(np.float64), f"{name}_double")], [name], to=TensorProto.FLOAT)]


@made_by(is_weight, least=7)
def weight_stored_flat(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    return [node("Reshape", [s.constant(value.ravel(), f"{name}_flat"), s.constant(list(value.shape))], [name])]


@made_by(lambda v: is_weight(v) and v.ndim >= 2)
def weight_stored_transposed(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    order = list(range(value.ndim))
    s.rng.shuffle(order)
    stored = s.constant(np.ascontiguousarray(value.transpose(order)), f"{name}_turned")
    return [node("Transpose", [stored], [name], perm=np.argsort(order).tolist())]


@made_by(lambda v: is_weight(v) and v.shape[0] > 1, least=4)
def weight_of_two_halves(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    cut = s.rng.randrange(1, len(value))
    parts = [s.constant(part, f"{name}_part") for part in (value[:cut], value[cut:])]
    return [node("Concat", parts, [name], axis=0)]


@made_by(is_weight, least=10)
def weight_cut_out_of_a_larger_one(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    stored = s.constant(np.concatenate([value, value])[: 2 * len(value) - 1], f"{name}_larger")
    return [node("Slice", [stored, s.constant([0]), s.constant([len(value)]), s.constant([0])], [name])]


@made_by(is_weight, least=7)
def weight_by_arithmetic(s: Subject, name: str, value: Array) -> list[onnx.NodeProto]:
    return [node("Mul", [s.constant(value * np.float32(0.5), f"{name}_half"), s.constant(2.0)], [name])]


@change
def initializers_as_inputs(s: Subject) -> None:
    """As every file before IR version 4, and many after it. onnxruntime 1.32 writes the running statistics of a norm in training
    mode over such an input, so that its answers change from call to call."""
    if any(a.name == "training_mode" and a.i for node in s.graph.node for a in node.attribute):
        raise UnfitError
    listed = {i.name for i in s.graph.input}
    new = [i for i in s.graph.initializer if i.name not in listed]
    if s.rng.random() < 0.3:
        new = new[: len(new) // 2]
    infos = [helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in new]
    rest = list(s.graph.input)
    both = [*infos, *rest] if s.rng.random() < 0.3 else [*rest, *infos]
    kept = [onnx.ValueInfoProto.FromString(i.SerializeToString()) for i in both]
    del s.graph.input[:]
    s.graph.input.extend(kept)


@change
def all_weights_in_constant_nodes(s: Subject) -> None:
    if len(s.graph.input) > 1:
        raise UnfitError
    made = [node("Constant", [], [i.name], value=i) for i in s.graph.initializer]
    del s.graph.initializer[:]
    if s.rng.random() < 0.5:  # each right before its first reader
        placed: list[onnx.NodeProto] = []
        waiting = {n.output[0]: n for n in made}
        for reader in s.graph.node:
            inner = onnx.GraphProto(node=[reader])
            names = [name for n in all_nodes(inner) for name in n.input]
            placed += [waiting.pop(name) for name in dict.fromkeys(names) if name in waiting]
            placed.append(reader)
        set_nodes(s.graph, [*waiting.values(), *placed])
    else:
        set_nodes(s.graph, [*made, *s.graph.node])


@change
def weights_in_typed_fields(s: Subject) -> None:
    """As tools without numpy write them, not as raw bytes."""
    for i in s.graph.initializer:
        value = numpy_helper.to_array(i)
        if value.dtype in (np.float32, np.int64, np.int32, np.float64, np.bool_):
            i.CopyFrom(helper.make_tensor(i.name, i.data_type, i.dims, value.ravel().tolist()))


@change
def weights_in_another_order(s: Subject) -> None:
    kept = [onnx.TensorProto.FromString(i.SerializeToString()) for i in s.graph.initializer]
    s.rng.shuffle(kept)
    del s.graph.initializer[:]
    s.graph.initializer.extend(kept)


@change
def spare_weights(s: Subject) -> None:
    """Initializers and nodes that nothing reads."""
    name = s.constant(np.zeros((3, 2), np.float32), "spare")
    s.constant([1, 2], "sizes")
    if s.rng.random() < 0.5:
        s.graph.node.append(node("Relu", [name], [s.fresh("unread")]))


@change
def a_copy_of_a_weight_for_each_reader(s: Subject) -> None:
    name, value = pick(s)
    readers = [(n, k) for n in s.graph.node for k, read in enumerate(n.input) if read == name]
    for reader, index in readers[1:]:
        reader.input[index] = s.constant(value, f"{name}_copy")


@change
def equal_weights_shared(s: Subject) -> None:
    """As tools do that look for duplicates."""
    first: dict[tuple[Any, ...], str] = {}
    instead = {}
    outputs = {o.name for o in s.graph.output}
    for i in s.graph.initializer:
        value = numpy_helper.to_array(i)
        key = value.dtype.str, value.shape, value.tobytes()
        if i.name not in outputs:
            instead[i.name] = first.setdefault(key, i.name)
    for reader in s.graph.node:
        reader.input[:] = [instead.get(name, name) for name in reader.input]


@change
def external_data(s: Subject) -> None:
    """The weights beside the file. Small ones stay: they may be lengths, which
    onnxruntime wants inside."""
    one = s.rng.random() < 0.6
    s.saving = {
        "save_as_external_data": True, "all_tensors_to_one_file": one, "size_threshold": s.rng.choice((128, 128, 400)),
        "location": s.rng.choice(("w.bin", "model.onnx.data", "weights und Maße.bin")) if one else None,
        "convert_attribute": s.rng.random() < 0.5,
    }  # fmt: skip
