"""A graph as a torch module whose one forward pass gives the logits of all stages.

The effective-stage rule masks the weights of mixing operators, so one dense pass computes what every stage
of a plan would compute; reconstruction and training use this module with different plans.
Normalisation layers that training put behind convolutions (`norms`) are folded again on the way out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.atoms import FREE
from s2d_convert.channels.kinds import Kind
from s2d_convert.channels.pointwise import channel_axis_of_constant
from s2d_convert.frontend.graph import Graph, Node
from s2d_convert.network.converters.lower import BUILDERS, lower
from s2d_convert.network.layers import EPSILON, Exit, Head, Mixing, Norm, as_numpy, channel_means
from s2d_convert.network.masks import Level, Masks, masks_of
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.weights import Affine, Weights, classifier_of, initial_head

# Operators whose constants per channel are trained; those of the others (bounds, exponents) say what the model is.
LEARNED = ("Add", "Div", "InstanceNormalization", "LayerNormalization", "Mul", "PRelu", "RMSNormalization", "Sub")


class StagedNet(nn.Module):
    """The graph in torch, with an exit head for every tap in `taps`. Parameters start from `weights`."""

    def __init__(self, model: AnalysedModel, weights: Weights, *, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.model: AnalysedModel = model  # torch's modules would make it a Tensor or Module
        self.graph, self.channels = model.graph, model.channels
        self.mixing = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self._key = {node.name: f"n{i}" for i, node in enumerate(model.graph.nodes)}
        self._head_key = {tap: f"t{i}" for i, tap in enumerate(taps)}
        self._functions: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {}
        for node in model.graph.nodes:
            self._add_node(node, weights)
        for tap in taps:
            head = weights.heads.get(tap) or initial_head(model, tap)
            self.heads[self._head_key[tap]] = Head(model.channels.layouts[tap].axis, head)
        self._source = feature_source(model)
        self._last_use = {name: i for i, node in enumerate(model.graph.nodes) for name in model.graph.computed(node)}

    def _add_node(self, node: Node, weights: Weights) -> None:
        key = self._key[node.name]
        if node.name in weights.mix:
            self.mixing[key] = Mixing(node, weights.mix[node.name])
            return
        if node.op == "BatchNormalization":
            scale, shift, mean, var = (torch.tensor(weights.operand(self.graph, node, i)) for i in range(1, 5))
            self.norms[key] = Norm(scale, shift, mean, var, epsilon=float(node.attrs.get("epsilon", EPSILON)))
            return
        self._functions[node.name] = lower(node, self.graph.constants)
        for index, name in enumerate(node.inputs):
            if name in self.graph.constants:
                value = torch.tensor(weights.operand(self.graph, node, index))
                if self._is_learned(node, index):
                    self.register_parameter(f"{key}_{index}", nn.Parameter(value))
                else:
                    self.register_buffer(f"{key}_{index}", value, persistent=False)

    def _is_learned(self, node: Node, index: int) -> bool:
        """Tell whether a constant is a scale, shift or slope per channel of what the model computes (not of the image)."""
        value, source = self.graph.constants[node.inputs[index]], self.graph.computed(node)[0]
        layout = self.channels.layouts.get(source)
        if node.op not in LEARNED or value.dtype != np.float32 or layout is None or (layout.units == FREE).all():
            return False
        rank = len(self.graph.shapes[source])
        return channel_axis_of_constant(node, index, value, rank=rank, axis=layout.axis) is not None

    # --- plans --------------------------------------------------------------------------------------

    def masks(self, effective: Effective) -> Masks:
        """Return the masks of a plan on this module's device."""
        return masks_of(self.model, effective, next(self.parameters()).device)

    def sharing(self) -> StagedNet:
        """Return another network with the same parameters in the same memory; `set_affine` and `set_operand` part the two."""
        kept = [self.model, self.graph, self.channels, *self.parameters(), *self.buffers()]
        return copy.deepcopy(self, {id(value): value for value in kept})

    def affine(self, node: Node) -> tuple[Tensor, Tensor | None]:
        """Return the weight [O, I, *kernel] and bias [O] of a mixing node as they are, without their history."""
        module = self.mixing_of(node)
        return module.weight.detach(), None if module.bias is None else module.bias.detach()

    def mixed(self, node: Node, x: Tensor, affine: tuple[Tensor, Tensor | None], masks: Masks) -> Tensor:
        """Return what a mixing node would make of its input with this weight and bias."""
        mask, alive = masks.mix.get(node.name) or (None, None)
        given = {name: value for name, value in zip(("weight", "bias"), affine, strict=True) if value is not None}
        answer: Tensor = functional_call(self.mixing_of(node), given, (x, mask, alive))
        return answer

    def set_affine(self, node: Node, affine: Affine) -> None:
        """Give a mixing node another weight and bias."""
        device = next(self.parameters()).device
        self.mixing[self._key[node.name]] = Mixing(node, affine).to(device).requires_grad_(False)

    def set_operand(self, node: Node, index: int, value: Array) -> None:
        """Give a norm another scale (input 1) or shift (input 2)."""
        key, fresh = self._key[node.name], torch.tensor(value, device=next(self.parameters()).device)
        if key in self.norms:
            setattr(self.norms[key], "scale" if index == 1 else "shift", nn.Parameter(fresh, requires_grad=False))
        elif f"{key}_{index}" in self._parameters:
            setattr(self, f"{key}_{index}", nn.Parameter(fresh, requires_grad=False))
        else:
            setattr(self, f"{key}_{index}", fresh)

    def mixes(self, node: Node) -> bool:
        """Return whether a node mixes channels by trained weights."""
        return self._key[node.name] in self.mixing

    def mixing_of(self, node: Node) -> Mixing:
        """Return the module of a node that mixes channels."""
        module = self.mixing[self._key[node.name]]
        assert isinstance(module, Mixing), "mixing holds Mixing modules only"
        return module

    # --- forward ------------------------------------------------------------------------------------

    def forward(self, images: Tensor, masks: Masks) -> list[Tensor]:
        """Return the logits [B, K] of every stage of the plan behind `masks`."""
        return [exit_.logits for exit_ in self.exits(images, masks)]

    def exits(self, images: Tensor, masks: Masks) -> list[Exit]:
        """Return the exits of all stages of the plan behind `masks`: logits, and the features that they come from."""
        wanted = set(masks.taps)
        kept = wanted | {self._source}
        kept_values: dict[str, Tensor] = {}
        values = {self.graph.image: images.float()}
        for index, node in enumerate(self.graph.nodes):
            outputs = self.run_node(node, values, masks)
            values.update(zip(node.outputs, outputs, strict=True))
            kept_values.update((name, values[name]) for name in node.outputs if name in kept)
            if wanted <= kept_values.keys():
                break
            for name in self.graph.computed(node):
                if self._last_use[name] == index:
                    values.pop(name, None)
        return [self._exit(tap, kept_values, columns) for tap, columns in zip(masks.taps, masks.columns, strict=True)]

    def _exit(self, tap: str, values: Mapping[str, Tensor], columns: Tensor | None) -> Exit:
        if tap == self.graph.output:
            return Exit(values[tap].flatten(1), self._features(values))
        answer: Exit = self._head(tap)(values[tap], columns)
        return answer

    def _head(self, tap: str) -> Head:
        head = self.heads[self._head_key[tap]]
        assert isinstance(head, Head), "heads holds Head modules only"
        return head

    def _features(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """Return the features of the model's own logits."""
        if self._source is None:
            return None
        return channel_means(values[self._source], self.channels.layouts[self._source].axis)

    @property
    def taps(self) -> tuple[str, ...]:
        """Where it has exits: the taps of its heads, and the output."""
        return (*self._head_key, self.graph.output)

    def feature_count(self, tap: str) -> int | None:
        """Return how many features the exit at this tap, or at the output, has; None if it has none."""
        if tap != self.graph.output:
            return self._head(tap).width
        return None if self._source is None else len(self.channels.layouts[self._source].units)

    def run_node(self, node: Node, values: Mapping[str, Tensor], masks: Masks) -> tuple[Tensor, ...]:
        """Return the outputs of one node under a plan, from the values of its computed inputs."""
        key = self._key[node.name]
        if key in self.mixing:
            mask, alive = masks.mix.get(node.name) or (None, None)
            return (self.mixing[key](values[node.inputs[0]], mask, alive),)
        if key in self.norms:
            return (self.norms[key](values[node.inputs[0]]),)
        inputs = [
            values[n] if n in values else getattr(self, f"{key}_{i}") if n else None for i, n in enumerate(node.inputs)
        ]
        if node.name in masks.levels:
            return (self._run_levels(node, inputs, masks.levels[node.name]),)
        live = masks.live.get(node.name, {})
        inputs = [
            x if x is None or n not in live else torch.where(live[n], x, 1.0)
            for n, x in zip(node.inputs, inputs, strict=True)
        ]
        result = self._functions[node.name](*inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        return tuple(
            torch.where(live[n], y, 0.0) if n in live else y for n, y in zip(node.outputs, outputs, strict=False)
        )

    def _run_levels(self, node: Node, inputs: Sequence[Tensor | None], levels: tuple[Level, ...]) -> Tensor:
        """Compute a NORM or REDUCE node stage by stage, on the channels that exist by then; the others are zero."""
        x = inputs[0]
        assert x is not None, "a norm has an input"
        source, rank = node.inputs[0], x.ndim - 1
        axis = self.channels.layouts[source].axis
        out = x.new_zeros((len(x), *self.graph.shapes[node.outputs[0]]))
        for level in levels:
            if not len(level.read):
                continue
            cut: list[Tensor | None] = [x.index_select(axis + 1, level.read)]
            for index, value in enumerate(inputs[1:], start=1):
                constant = self.graph.constants.get(node.inputs[index])
                if value is not None and constant is not None:
                    channel_axis = channel_axis_of_constant(node, index, constant, rank=rank, axis=axis)
                    value = value if channel_axis is None else value.index_select(channel_axis, level.read)
                cut.append(value)
            y = self._functions[node.name](*cut)
            assert isinstance(y, Tensor), "a norm has one output"
            if self.model.kind(node) is Kind.REDUCE:
                return y
            out = out.index_copy(axis + 1, level.made, y.index_select(axis + 1, level.place))
        return out

    def hidden_weights(self) -> list[Tensor]:
        """Return the weights [O, I, ...] of layers in which every output reads every input, but not those of the logits."""
        return [
            module.weight
            for node in self.graph.nodes
            if self.mixes(node)
            and (module := self.mixing_of(node)).groups == 1
            and (self._source not in node.inputs or self._source is None)
        ]

    # --- out ----------------------------------------------------------------------------------------

    def weights(self) -> Weights:
        """Return the parameters as numpy, norms folded, ready for `split`."""
        mix = {node.name: self.mixing_of(node).folded() for node in self.graph.nodes if self.mixes(node)}
        operands = {}
        for node in self.graph.nodes:
            key = self._key[node.name]
            module = self.norms[key] if key in self.norms else None  # noqa: SIM401 - a ModuleDict has no get
            if isinstance(module, Norm):
                vectors = (module.scale, module.shift, module.running_mean, module.running_var)
                operands.update({(node.name, i): as_numpy(v) for i, v in enumerate(vectors, start=1)})
            for index in range(len(node.inputs)):
                value = self._parameters.get(f"{key}_{index}")
                if value is not None:
                    operands[node.name, index] = as_numpy(value)
        return Weights(mix, operands, {tap: self._head(tap).numpy() for tap in self._head_key})


def feature_source(model: AnalysedModel) -> str | None:
    """Return the tensor that the layer of the logits reads.

    None where no single layer that mixes channels makes the logits, or where that layer reads the image.
    """
    classifier = classifier_of(model)
    return classifier.inputs[0] if classifier is not None and classifier.inputs[0] in model.graph.producer else None


def unsupported_nodes(graph: Graph) -> tuple[Node, ...]:
    """Return all nodes that have no torch builder."""
    return tuple(n for n in graph.nodes if n.op not in BUILDERS)
