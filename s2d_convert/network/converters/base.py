"""The table of torch builders and what the builders share: static operands, axes, refusals.

A builder takes a node and the graph's constants and returns a function on torch tensors; see
`s2d_convert.network.converters.lower`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from s2d_convert.errors import ModelError

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

Constants = Mapping[str, np.ndarray[Any, Any]]
Lowered = Callable[..., Tensor | tuple[Tensor, ...]]
Builder = Callable[["Node", Constants], Lowered]

BUILDERS: dict[str, Builder] = {}


def builder(*ops: str) -> Callable[[Builder], Builder]:
    """Return a decorator that registers a builder for `ops`; an operator that is registered twice raises ValueError."""

    def register(build: Builder) -> Builder:
        for op in ops:
            if op in BUILDERS:
                raise ValueError(f"operator {op} is registered twice")
            BUILDERS[op] = build
        return build

    return register


def register_functions(table: Mapping[str, Lowered]) -> None:
    """Register operators that have no attributes and no static operands: the function is the operator."""
    for op, function in table.items():
        builder(op)(lambda _node, _constants, function=function: function)  # type: ignore[misc]


def static(node: Node, constants: Constants, index: int) -> np.ndarray[Any, Any] | None:
    """Return the constant operand at `index`, None where it is absent. Raises ModelError where it is not constant."""
    name = node.inputs[index] if index < len(node.inputs) else ""
    if not name:
        return None
    if name not in constants:
        got = f"input {index} ('{name}') is computed from the image"
        raise refusal(node, f"{got}; a constant is allowed: export with fixed shapes")
    return constants[name]


def static_ints(node: Node, constants: Constants, index: int) -> tuple[int, ...] | None:
    """Return the constant operand at `index` as flat integers, None where it is absent."""
    value = static(node, constants, index)
    return None if value is None else tuple(int(v) for v in value.ravel())


def required_ints(node: Node, constants: Constants, index: int) -> tuple[int, ...]:
    """Return the constant operand at `index` as flat integers. Raises ModelError where it is absent."""
    value = static_ints(node, constants, index)
    if value is None:
        raise refusal(node, f"input {index} is absent; the operator needs it: export the model again")
    return value


def static_axes(node: Node, constants: Constants, index: int) -> tuple[int, ...] | None:
    """Return the axes from the attribute (older opsets) or the operand at `index`; None where neither is given."""
    if "axes" in node.attrs:
        return tuple(node.attrs["axes"])
    return static_ints(node, constants, index)


def feature_axes(node: Node, axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Return `axes` counted from the front. Raises ModelError for the batch axis: no image may change another's answer."""
    positive = tuple(axis % rank for axis in axes)
    if 0 in positive:
        got = f"axes {positive} include axis 0, which mixes the images of a batch"
        raise refusal(node, f"{got}; axes 1 to {rank - 1} are allowed")
    return positive


def one_output(node: Node) -> None:
    """Raise ModelError where a node gives the outputs that only training needs."""
    if len(node.outputs) > 1:
        raise refusal(node, f"{len(node.outputs)} outputs are used; one is allowed: export the model for inference")


def refusal(node: Node, problem: str) -> ModelError:
    """Return the error that names the node and its problem."""
    return ModelError(f"node '{node.name}' ({node.op}): {problem}")
