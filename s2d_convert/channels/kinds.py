"""What a channel rule is: the kinds of roles, what a rule may ask, and the table that rules register in.

A rule answers one question: *what does this node do to channels?* The answer is a `Role`:

=========  ==========================================================================================
MIX        every output channel reads every input channel through a constant weight (Conv, Gemm...)
GROUPED    a Conv with groups: the channels of one group live and die together
MAP        channel i of the output depends on channel i of the one computed input (ReLU, pooling...)
JOIN       channel i of the output depends on channel i of several computed inputs (Add, Mul...)
NORM       as MAP, but with statistics over all channels that exist by then (LayerNormalization...)
REDUCE     the channels that exist by then become one value (the mean over channels...)
MOVE       channels are rearranged, copied or dropped; nothing is computed (Concat, Reshape...)
TIE        as MAP, once the channels that the node mixes are tied to one unit (norms of groups...)
OPAQUE     channels mix in some other way: all of them become one unit, the node only splits by depth
=========  ==========================================================================================

"Exist by then" is the stage rule once more: a NORM or REDUCE node that makes a channel of stage s reads the
channels i with e(i) <= s, as a MIX node does, so that no stage ever waits for a later one.

Axes here never count the batch: axis 0 of a feature map (C, H, W) is the channel axis of NCHW.
Adding an operator is one rule in `linear`, `movement` or `pointwise`, one builder in `network.converters` and one small test net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

from s2d_convert.frontend.graph import Node

Array = np.ndarray[Any, Any]


class Kind(Enum):
    """What a node does to channels; see the module's table."""

    MIX = "mix"
    GROUPED = "grouped"
    MAP = "map"
    JOIN = "join"
    NORM = "norm"
    REDUCE = "reduce"
    MOVE = "move"
    TIE = "tie"
    OPAQUE = "opaque"


# What a finished analysis can contain. TIE is a request of the first passes: as soon as the ties of such a node are drawn,
# what it mixes is one unit, and the next pass finds a MAP, NORM or REDUCE. So no later step (liveness, demand, slicing,
# masks) has an entry for TIE.
FINAL_KINDS = frozenset(Kind) - {Kind.TIE}


@dataclass(frozen=True)
class Role:
    """The answer of a rule: the kind, the channel axis of the output (None: any), and why if opaque."""

    kind: Kind
    axis: int | None = None
    reason: str = ""


class Context(Protocol):
    """What a rule may ask about the tensors around a node."""

    constants: Mapping[str, Array]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a computed tensor, without the batch."""

    def computed(self, node: Node) -> tuple[str, ...]:
        """Return the computed inputs of a node."""

    def varying(self, name: str) -> list[int]:
        """Return the axes along which the units of a computed tensor differ."""

    def axis(self, name: str) -> int | None:
        """Return the channel axis of a computed tensor, None where its units lie on several axes."""

    def has_axis(self, name: str, axis: int) -> bool:
        """Return whether `axis` is the channel axis of the tensor, or can be taken as it (one unit in all)."""


@dataclass(frozen=True)
class Rule:
    """How one operator treats channels.

    `vectors`: indices of constant inputs that hold one value per channel (axis 0);
    `broadcasts`: whether other constant inputs follow numpy broadcasting against the first input;
    `keeps_zero`: whether zero inputs give a zero output.
    """

    role: Callable[[Node, Context], Role]
    vectors: tuple[int, ...] = ()
    broadcasts: bool = False
    keeps_zero: bool = False


RULES: dict[str, Rule] = {}


def rule(
    *ops: str, vectors: tuple[int, ...] = (), broadcasts: bool = False, keeps_zero: bool = False
) -> Callable[[Callable[[Node, Context], Role]], Callable[[Node, Context], Role]]:
    """Register the decorated function as the rule of `ops`; registering an operator twice is an error."""

    def register(function: Callable[[Node, Context], Role]) -> Callable[[Node, Context], Role]:
        for op in ops:
            if op in RULES:
                raise ValueError(f"operator {op} has a rule already")
            RULES[op] = Rule(function, vectors, broadcasts, keeps_zero)
        return function

    return register


def role_of(node: Node, context: Context) -> Role:
    """Return the role of a node; OPAQUE for operators without a rule."""
    known = RULES.get(node.op)
    if known is None:
        return opaque(f"operator {node.op} has no channel rule")
    return known.role(node, context)


def opaque(reason: str) -> Role:
    """Return the role of a node whose channels cannot be told apart."""
    return Role(Kind.OPAQUE, None, reason)


def mapped(node: Node, context: Context, axis: int | None = None) -> Role:
    """Return a MAP that keeps the channel axis (or moves it to `axis`), OPAQUE where the input has no single one."""
    source = context.axis(context.computed(node)[0])
    if source is None:
        return opaque("its input has units on several axes")
    return Role(Kind.MAP, source if axis is None else axis)
