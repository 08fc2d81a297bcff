"""One torch builder per ONNX operator (opset 13 and newer, float32), answering as onnxruntime does.

`lower(node, constants)` returns a function `f(*inputs)` of the node's inputs in their order, constant tensors
(weights, bias, slopes, indices) included and None where an optional one is absent. It returns one Tensor, or a tuple
where the node has several outputs. Static operands (shapes, axes, pads, repeats, split sizes, Clip bounds, Resize
scales) are read from `constants` when the function is built; the tensors passed in their place are ignored.

The functions follow the dtype of their inputs (float64 and autocast work), are differentiable where torch is, never
write to an input, and leave the length of axis 0, the batch, open. An operator that would mix the images of a batch
is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# Importing these modules fills the table.
from s2d_convert.network.converters import linear as lower_layers
from s2d_convert.network.converters import math as lower_math
from s2d_convert.network.converters import movement as lower_movement
from s2d_convert.network.converters import norm as lower_norm
from s2d_convert.network.converters import pool as lower_pool
from s2d_convert.network.converters import resize as lower_resize
from s2d_convert.network.converters import sample as lower_sample
from s2d_convert.network.converters.base import BUILDERS, Builder, Constants, Lowered, builder, refusal

if TYPE_CHECKING:
    from s2d_convert.frontend.graph import Node

__all__ = ["BUILDERS", "Builder", "Constants", "Lowered", "builder", "lower"]

TABLES = (lower_layers, lower_math, lower_movement, lower_norm, lower_pool, lower_resize, lower_sample)


def lower(node: Node, constants: Constants) -> Lowered:
    """Return the torch function of `node`.

    Raises ModelError for an operator, an attribute or an operand that is not supported.
    """
    build = BUILDERS.get(node.op)
    if build is None:
        raise refusal(
            node,
            f"the operator is not supported; {len(BUILDERS)} are ({', '.join(sorted(BUILDERS))}): "
            "export the model without it",
        )
    return build(node, constants)
