"""A model whose batch is being freed: what is known of its tensors, and how its constants are replaced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from s2d_convert.errors import ModelError
from s2d_convert.frontend.proto import label, opset_of

Shape = tuple[int, ...]


class BatchEdit:
    """Changes to a model whose batch had the length `batch`."""

    def __init__(
        self, model: onnx.ModelProto, batch: int, shapes: Mapping[str, Shape], other: Mapping[str, Shape] | None
    ) -> None:
        self.model, self.batch, self.shapes, self.other = model, batch, dict(shapes), other or {}
        self.constants = {i.name: i for i in model.graph.initializer}
        self.opset = opset_of(model)
        self._names = {o for n in model.graph.node for o in n.output} | set(self.constants) | set(shapes)

    def batch_axes(self, name: str) -> list[int]:
        """Return the axes whose length goes with the batch; without a second look, axis 0 if it can be."""
        shape, other = self.shapes[name], self.other.get(name)
        if other is not None and len(other) == len(shape):
            return [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
        return [0] if shape and shape[0] > 0 and shape[0] % self.batch == 0 else []

    def is_folded(self, name: str) -> bool:
        """Return whether axis 0 is not the batch alone."""
        return self.shapes[name][:1] != (self.batch,) or self.batch_axes(name) != [0]

    def constant(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """Return a copy of constant input `index`, None where it is absent. Raises ModelError where it is computed."""
        name = node.input[index] if index < len(node.input) else ""
        if not name:
            return None
        if name not in self.constants:
            raise ModelError(
                f"node {label(node)}: its input '{name}' is computed from the image; export with fixed shapes"
            )
        return numpy_helper.to_array(self.constants[name]).copy()

    def unused(self, name: str) -> str:
        """Return a name like this one that no tensor has, and reserve it."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def put(self, node: onnx.NodeProto, index: int, value: np.ndarray) -> None:
        """Give the node a constant of its own as input `index`."""
        fresh = numpy_helper.from_array(value, self.unused(f"{node.output[0]}.free{len(self.constants)}"))
        self.model.graph.initializer.append(fresh)
        self.constants[fresh.name] = fresh
        while len(node.input) <= index:
            node.input.append("")
        node.input[index] = fresh.name
