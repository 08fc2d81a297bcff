"""Other tails behind the logits: another network, whose answers are its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from graph_changes.base import ENDS, Nodes, Subject, UnfitError, end, lengths_of, put_behind, register
from graph_changes.spare_nodes import through

node = helper.make_node
Step = tuple[str, list[Any], dict[str, Any]]


def _classes(s: Subject) -> int:
    """K, where the one output is (N, K)."""
    if len(s.graph.output) != 1 or s.opset < 13:
        raise UnfitError
    lengths = lengths_of(s).get(s.graph.output[0].name)
    if lengths is None or len(lengths) != 2 or lengths[1] is None:
        raise UnfitError
    return lengths[1]


def _behind(s: Subject, *steps: Step) -> None:
    """Put nodes behind the logits; further inputs that are no names become constants."""
    if _classes(s) != 10:
        raise UnfitError
    answer = s.graph.output[0].name
    named = [(op, [x if isinstance(x, str) else s.constant(x) for x in more], attrs) for op, more, attrs in steps]
    put_behind(s, answer, lambda a, b: through(s, a, b, *named))
    s.graph.output[0].type.tensor_type.ClearField("shape")


SOFTMAX: Step = ("Softmax", [], {"axis": 1})
TAILS: dict[str, tuple[Step, ...]] = {
    "softmax": (SOFTMAX,),
    "softmax over the last axis": (("Softmax", [], {"axis": -1}),),
    "softmax by default": (("Softmax", [], {}),),
    "log softmax": (("LogSoftmax", [], {"axis": 1}),),
    "logarithm of softmax": (SOFTMAX, ("Log", [], {})),
    "softmax of log softmax": (("LogSoftmax", [], {"axis": 1}), ("Exp", [], {})),
    "softmax at a temperature": (("Div", [1.7], {}), SOFTMAX),
    "clipped": (SOFTMAX, ("Clip", [1e-4, 1 - 1e-4], {})),
    "percent": (SOFTMAX, ("Mul", [100.0], {})),
    "percent, rounded": (SOFTMAX, ("Mul", [100.0], {}), ("Round", [], {})),
    "softmax twice": (SOFTMAX, SOFTMAX),
    "softmax, dropout, identity": (SOFTMAX, ("Dropout", [], {}), ("Identity", [], {})),
    "sigmoid": (("Sigmoid", [], {}),),
    "sigmoid of a scale": (("Mul", [3.0], {}), ("Sigmoid", [], {})),
    "tanh": (("Tanh", [], {}),),
    "relu": (("Relu", [], {}),),
    "hard sigmoid": (("HardSigmoid", [], {}),),
    "negated": (("Neg", [], {}),),
    "unit length": (("LpNormalization", [], {"axis": 1, "p": 2}),),
    "one minus softmax": (SOFTMAX, ("Neg", [], {}), ("Add", [1.0], {})),
    "two axes more": (("Unsqueeze", [[2, 3]], {}),),
    "two axes more, softmax": (("Unsqueeze", [[2, 3]], {}), SOFTMAX),
    "softmax, two axes more": (SOFTMAX, ("Unsqueeze", [[2, 3]], {})),
    "an axis between": (("Unsqueeze", [[1]], {}),),
    "an axis between, softmax": (("Unsqueeze", [[1]], {}), ("Softmax", [], {"axis": 2})),
    "flatten": (("Flatten", [], {}),),
    "softmax, flatten": (SOFTMAX, ("Flatten", [], {"axis": 1})),
    "reshape to rows": (("Reshape", [[-1, 10]], {}),),
    "reshape to rows, softmax": (("Reshape", [[0, -1]], {}), SOFTMAX),
    "cast to half": (("Cast", [], {"to": 10}), ("Cast", [], {"to": 1})),
    "classes reversed": (("Gather", [list(range(9, -1, -1))], {"axis": 1}),),
    "softmax, classes reversed": (SOFTMAX, ("Gather", [list(range(9, -1, -1))], {"axis": 1})),
    "without the background": (("Slice", [[1], [10], [1]], {}),),
    "softmax without the background": (SOFTMAX, ("Slice", [[1], [10], [1]], {})),
    "padded with a class": (("Pad", [[0, 0, 0, 1], -5.0], {}),),
    "hardmax": (("Hardmax", [], {"axis": 1}),),
    "best three": (("Identity", [], {}), ("Abs", [], {})),
    "squared": (("Pow", [2.0], {}),),
    "scaled and shifted per class": (("Mul", [np.linspace(0.5, 2, 10, dtype=np.float32)], {}),
                                     ("Add", [np.linspace(-1, 1, 10, dtype=np.float32)], {})),
    "prior on softmax": (SOFTMAX, ("Mul", [np.linspace(0.5, 2, 10, dtype=np.float32)], {})),
}  # fmt: skip

for _name, _steps in TAILS.items():
    register(ENDS, _name, lambda s, steps=_steps: _behind(s, *steps))  # type: ignore[misc]


@end
def softmax_in_parts(s: Subject) -> None:
    """exp(x - max) over its sum, as exporters without the operator write it."""
    _classes(s)

    def make(a: str, b: str) -> Nodes:
        top, rest, power, total = (s.fresh(f"{b}_{k}") for k in ("top", "rest", "power", "total"))
        axis = s.constant([1])
        reduce = node("ReduceMax", [a], [top], axes=[1]) if s.opset < 18 else node("ReduceMax", [a, axis], [top])
        return [reduce, node("Sub", [a, top], [rest]), node("Exp", [rest], [power]),
                node("ReduceSum", [power, axis], [total]), node("Div", [power, total], [b])]  # fmt: skip

    put_behind(s, s.graph.output[0].name, make)


@end
def unit_length_in_parts(s: Subject) -> None:
    _classes(s)

    def make(a: str, b: str) -> Nodes:
        square, total, root = (s.fresh(f"{b}_{k}") for k in ("square", "total", "root"))
        return [node("Mul", [a, a], [square]), node("ReduceSum", [square, s.constant([1])], [total]),
                node("Sqrt", [total], [root]), node("Div", [a, root], [b])]  # fmt: skip

    put_behind(s, s.graph.output[0].name, make)


@end
def two_softmaxes_averaged(s: Subject) -> None:
    _classes(s)

    def make(a: str, b: str) -> Nodes:
        one, turned, two, both = (s.fresh(f"{b}_{k}") for k in ("one", "turned", "two", "both"))
        return [node("Softmax", [a], [one], axis=1), node("Mul", [a, s.constant(0.5)], [turned]),
                node("Softmax", [turned], [two], axis=1), node("Add", [one, two], [both]),
                node("Mul", [both, s.constant(0.5)], [b])]  # fmt: skip

    put_behind(s, s.graph.output[0].name, make)
