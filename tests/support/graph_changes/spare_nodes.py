"""Nodes that do nothing, put in behind a tensor: what exporters, optimisers and people leave in graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from graph_changes.base import CHANGES, Nodes, Subject, UnfitError, lengths_of, put_behind, register

Lengths: TypeAlias = "list[int | None]"


def fixed(lengths: Lengths) -> list[int]:
    """All lengths but that of the batch. Raises UnfitError where one is not known."""
    known = [n for n in lengths[1:] if n is not None]
    if len(known) < len(lengths) - 1:
        raise UnfitError
    return known


Spare = Callable[[Subject, str, str, Lengths], Nodes]
node = helper.make_node


def spare(least: int = 1, most: int = 99, *, rank: int = 0, most_rank: int = 9) -> Callable[[Spare], Spare]:
    """Register what makes the nodes for opsets `least` to `most` behind a tensor of at least `rank` axes."""

    def enter(make: Spare) -> Spare:
        def apply(subject: Subject) -> None:
            if not least <= subject.opset <= most:
                raise UnfitError
            found = {t: n for t, n in lengths_of(subject).items() if rank <= len(n) <= most_rank}
            if not found:
                raise UnfitError
            tensor = subject.rng.choice(sorted(found))
            put_behind(subject, tensor, lambda a, b: make(subject, a, b, found[tensor]))

        register(CHANGES, make.__name__, apply)
        return make

    return enter


def through(subject: Subject, source: str, target: str, *steps: tuple[str, list[str], dict[str, Any]]) -> Nodes:
    """A line of nodes from one tensor to another: (operator, further inputs, attributes) each."""
    inner = [subject.fresh(f"{target}_{i}") for i in range(1, len(steps))]
    pairs = zip([source, *inner], [*inner, target], strict=True)
    return [node(op, [a, *more], [b], **attrs) for (a, b), (op, more, attrs) in zip(pairs, steps, strict=True)]


@spare()
def identity(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, *[("Identity", [], {})] * s.rng.randint(1, 3))


@spare(least=9)
def cast_to_its_own_type(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, ("Cast", [], {"to": TensorProto.FLOAT}))


@spare(least=9)
def cast_to_double_and_back(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, ("Cast", [], {"to": TensorProto.DOUBLE}), ("Cast", [], {"to": TensorProto.FLOAT}))


@spare(least=7)
def dropout_for_inference(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, ("Dropout", [], {"ratio": 0.4} if s.opset < 12 else {}))


@spare(least=7)
def unsqueeze_and_squeeze(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    axis = s.rng.randint(0, len(lengths))
    if s.opset < 13:
        return through(s, a, b, ("Unsqueeze", [], {"axes": [axis]}), ("Squeeze", [], {"axes": [axis]}))
    axes = s.constant([axis])
    return through(s, a, b, ("Unsqueeze", [axes], {}), ("Squeeze", [axes], {}))


@spare(rank=2)
def transposes_that_cancel(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    order = list(range(len(lengths)))
    s.rng.shuffle(order)
    return through(s, a, b, ("Transpose", [], {"perm": order}), ("Transpose", [], {"perm": np.argsort(order).tolist()}))


@spare(least=7)
def reshape_to_its_own_shape(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    shape = s.fresh(f"{b}_shape")
    return [node("Shape", [a], [shape]), node("Reshape", [a, shape], [b])]


@spare(least=7, rank=2)
def reshape_to_constant_lengths(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    target = s.rng.choice(([0, *fixed(lengths)], [-1, *fixed(lengths)], [0] * len(lengths)))
    return through(s, a, b, ("Reshape", [s.constant(target)], {}))


@spare(least=7, rank=3)
def flatten_and_reshape(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    target = s.constant([-1, *fixed(lengths)])
    return through(s, a, b, ("Flatten", [], {"axis": 1}), ("Reshape", [target], {}))


@spare(rank=2, most_rank=2)
def flatten_of_features(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, ("Flatten", [], {"axis": s.rng.choice((1, 1, -1)) if s.opset >= 11 else 1}))


@spare(least=10, rank=2)
def slice_of_everything(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    axis = s.rng.choice((1, -1))
    end = s.rng.choice((2**63 - 1, 2**31 - 1, 10**6))
    return through(s, a, b, ("Slice", [s.constant([0]), s.constant([end]), s.constant([axis])], {}))


@spare(least=4, rank=2)
def concat_of_one(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, ("Concat", [], {"axis": 1}))


@spare(least=8)
def sum_of_one(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, (s.rng.choice(("Sum", "Max", "Min", "Mean")), [], {}))


@spare(least=7)
def arithmetic_with_nothing(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    op, value = s.rng.choice((("Mul", 1.0), ("Add", 0.0), ("Div", 1.0), ("Sub", 0.0), ("Pow", 1.0)))
    shape = s.rng.choice(([], [1], [1] * len(lengths)))
    return through(s, a, b, (op, [s.constant(np.full(shape, value, np.float32))], {}))


@spare(least=7)
def zero_on_the_left(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return [node("Add", [s.constant(np.zeros((), np.float32)), a], [b])]


@spare(least=6)
def negated_twice(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return through(s, a, b, ("Neg", [], {}), ("Neg", [], {}))


@spare(least=12)
def clip_without_bounds(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    more = s.rng.choice(([], ["", ""], [s.constant(-3e38)], ["", s.constant(3e38)]))
    return through(s, a, b, ("Clip", more, {}))


@spare(least=11, rank=2)
def pad_of_nothing(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    return through(s, a, b, ("Pad", [s.constant([0] * 2 * len(lengths))], {}))


@spare(least=8)
def expand_to_its_own_shape(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    if lengths and s.rng.random() < 0.5:  # a vector of no ones would be float32
        return through(s, a, b, ("Expand", [s.constant([1] * s.rng.randint(1, len(lengths)))], {}))
    shape = s.fresh(f"{b}_shape")
    return [node("Shape", [a], [shape]), node("Expand", [a, shape], [b])]


@spare(least=13, rank=2)
def split_and_concat(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    axis = s.rng.randrange(1, len(lengths))
    length = lengths[axis]
    if length is None or length < 2:
        raise UnfitError
    first = s.rng.randrange(1, length)
    parts = [s.fresh(f"{b}_part{i}") for i in (1, 2)]
    sizes = s.constant([first, length - first])
    return [node("Split", [a, sizes], parts, axis=axis), node("Concat", parts, [b], axis=axis)]


@spare(least=7, rank=2)
def gather_of_all(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    axis = s.rng.randrange(1, len(lengths))
    places = np.arange(fixed(lengths)[axis - 1])
    if s.opset >= 11 and s.rng.random() < 0.3:
        places = places - len(places)
    return through(s, a, b, ("Gather", [s.constant(places)], {"axis": axis}))


@spare(least=7, rank=1)
def tile_once(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    return through(s, a, b, ("Tile", [s.constant([1] * len(lengths))], {}))


@spare(rank=4, most_rank=4)
def pool_of_one_place(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    op = s.rng.choice(("MaxPool", "AveragePool"))
    return through(s, a, b, (op, [], {"kernel_shape": [1, 1], "strides": [1, 1]}))


@spare(least=11, rank=4, most_rank=4)
def resize_to_its_own_size(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    scales = s.constant(np.ones(4, np.float32))
    return through(s, a, b, ("Resize", [s.constant(np.zeros(0, np.float32)) if s.opset < 13 else "", scales], {}))


@spare(least=9, rank=4, most_rank=4)
def norm_of_nothing(s: Subject, a: str, b: str, lengths: Lengths) -> Nodes:
    if lengths[1] is None:
        raise UnfitError
    ones, zeros = (s.constant(make(lengths[1], np.float32)) for make in (np.ones, np.zeros))
    return through(s, a, b, ("BatchNormalization", [ones, zeros, zeros, ones], {"epsilon": 0.0}))


@spare(least=9)
def where_always(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return [node("Where", [s.constant(np.array(True)), a, s.constant(0.0)], [b])]


@spare(least=11)
def branch_always_taken(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    branches = {}
    for name in ("then_branch", "else_branch"):
        made = s.fresh(f"{b}_{name}")
        value = onnx.ValueInfoProto(name=made)
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        op = "Identity" if name == "then_branch" else "Neg"
        branches[name] = helper.make_graph([node(op, [a], [made])], name, [], [value])
    return [node("If", [s.constant(np.array(True))], [b], **branches)]


@spare(least=11)
def branch_in_a_branch(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    """Both always taken; the inner one reads what the outer one has made, and calls its own tensors as that does."""
    yes = s.constant(np.array(True))

    def branch(nodes: list[onnx.NodeProto], made: str) -> onnx.GraphProto:
        value = onnx.ValueInfoProto(name=made)
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        return helper.make_graph(nodes, "branch", [], [value])

    u, v, w, other = (s.fresh(f"{b}_{name}") for name in ("u", "v", "w", "other"))
    inner = {f"{k}_branch": branch([node(op, [u], [v])], v) for k, op in (("then", "Neg"), ("else", "Abs"))}
    outer = branch([node("Neg", [a], [u]), node("If", [yes], [w], **inner)], w)
    return [node("If", [yes], [b], then_branch=outer, else_branch=branch([node("Abs", [a], [other])], other))]


@spare(least=18)
def maximum_with_what_it_is(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return [node("Max", [a, a], [b])]


@spare(least=15)
def cast_like_itself(s: Subject, a: str, b: str, _: Lengths) -> Nodes:
    return [node("CastLike", [a, a], [b])]
