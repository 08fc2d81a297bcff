"""A graph as a torch module whose one forward pass gives the logits of all stages.

The effective-stage rule masks the weights of mixing operators, so one dense pass computes what every stage
of a plan would compute; supernet, search and fine-tuning all use this module with different plans.
Folded convolutions train badly, so a normalisation layer can be put back behind each of them. It is
initialised from measured statistics, so that the function does not change, and folded again on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2d_convert.channels import FREE, Channels
from s2d_convert.graph import Graph, Node
from s2d_convert.lower import BUILDERS, lower
from s2d_convert.plan import Effective, identity_plan
from s2d_convert.rules import UNDEFINED_AT_ZERO, Kind, channel_axis_of_constant
from s2d_convert.weights import Affine, ExitHead, Weights, initial_head

EPSILON = 1e-5
MOMENTUM = 0.1
# Operators whose constants per channel are trained; those of the others (bounds, exponents) say what the model is.
LEARNED = ("Add", "Div", "InstanceNormalization", "LayerNormalization", "Mul", "PRelu", "RMSNormalization", "Sub")


class Norm(nn.Module):
    """Batch normalisation over axis 1 that starts as the identity on the statistics it was given."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, epsilon: float = EPSILON) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale.clone()), nn.Parameter(shift.clone())
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", var.clone())
        self.epsilon = epsilon
        self.momentum = MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.scale, self.shift, self.training, self.momentum, self.epsilon
        )

    def affine(self) -> tuple[Tensor, Tensor]:
        """(factor, offset) of the same function with the running statistics: factor * x + offset."""
        factor = self.scale / torch.sqrt(self.running_var + self.epsilon)
        return factor, self.shift - self.running_mean * factor


class Mixing(nn.Module):
    """A MIX or GROUPED node: a weight [O, I, *kernel] under a mask, a bias or a norm."""

    def __init__(self, node: Node, affine: Affine) -> None:
        super().__init__()
        weight, bias = affine
        self.weight = nn.Parameter(torch.tensor(weight))
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        self.norm: Norm | None = None
        self.op, self.groups = node.op, int(node.attrs.get("group", 1))
        self._conv = lower(node, {}) if node.op in ("Conv", "ConvTranspose") else None

    def forward(self, x: Tensor, mask: Tensor | None, alive: Tensor | None) -> Tensor:
        weight = self.weight if mask is None else self.weight * mask
        bias = self.bias if alive is None or self.bias is None else self.bias * alive
        if self._conv is None:
            return F.linear(x, weight, bias)
        if self.op == "ConvTranspose":
            weight = _transposed_kernel(weight, self.groups)
        y = self._conv(x, weight, bias)
        assert isinstance(y, Tensor), "a convolution has one output"
        if self.norm is not None:
            y = self.norm(y)
            if alive is not None:
                y = y * alive.view(1, -1, *[1] * (y.ndim - 2))
        return y

    def folded(self) -> Affine:
        """The weight and bias with the norm folded in, as numpy."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.norm is not None:
            factor, bias = self.norm.affine()
            weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
        return _numpy(weight), None if bias is None else _numpy(bias)


def _transposed_kernel(weight: Tensor, groups: int) -> Tensor:
    """The weight [O, I / groups, *kernel] as ConvTranspose has it; see `rules.transposed_kernel`."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def channel_means(x: Tensor, axis: int) -> Tensor:
    """The mean of every channel [B, C] of a tensor [B, ...] whose channels lie on this axis, counted without the batch."""
    others = [a for a in range(1, x.ndim) if a != axis + 1]
    return x.mean(others) if others else x


class Exit(NamedTuple):
    """What one exit answers: logits [B, K], and the features [B, C] that they are made from (None: it has none)."""

    logits: Tensor
    features: Tensor | None


class Head(nn.Module):
    """An `ExitHead` in torch: means over the cells of a tap, then its layers on the stage's channels."""

    def __init__(self, axis: int, head: ExitHead) -> None:
        super().__init__()
        self.axis, self.cell = axis, head.cell
        self.weights = nn.ParameterList(torch.tensor(weight) for weight, _ in head.layers)
        self.biases = nn.ParameterList(torch.tensor(bias) for _, bias in head.layers)

    def forward(self, x: Tensor, columns: Tensor | None) -> Exit:
        features = self.features(x)
        if columns is not None:  # a zero feature is as good as a zero column
            features = features * columns.repeat_interleave(features.shape[1] // len(columns))
        return Exit(self.logits(features), features)

    def features(self, x: Tensor) -> Tensor:
        """The means over the cells, [B, C * cells]."""
        if self.cell is None:
            return channel_means(x, self.axis)
        return F.avg_pool2d(x if self.axis == 0 else x.movedim(-1, 1), self.cell).flatten(1)

    @property
    def width(self) -> int:
        """How many features it reads."""
        return int(next(iter(self.weights)).shape[1])

    def logits(self, features: Tensor) -> Tensor:
        """The logits [B, K] from features."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            features = F.linear(F.relu(features) if index else features, weight, bias)
        return features

    def numpy(self) -> ExitHead:
        """The head as it is now."""
        layers = zip(self.weights, self.biases, strict=True)
        return ExitHead(tuple((_numpy(w), _numpy(b)) for w, b in layers), self.cell)


@dataclass(frozen=True)
class Part:
    """What one stage computes of a NORM or REDUCE node: the channels it reads, those it makes, and where they lie
    among those that it reads; int64 vectors."""

    read: Tensor
    made: Tensor
    place: Tensor


@dataclass(frozen=True)
class Masks:
    """What a plan does to a StagedNet: per MIX node the mask [O, I, 1...] and the rows that have any input
    (None where nothing is masked), per stage the tap and the head's columns, and per NORM or REDUCE node that does
    not see all channels at once the parts that it is computed in. `live` has, for what is undefined at zero, which
    channels of each input and of the output the plan keeps."""

    mix: Mapping[str, tuple[Tensor, Tensor] | None]
    taps: tuple[str, ...]
    columns: tuple[Tensor | None, ...]
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    live: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def faded(self, alpha: float) -> Masks:
        """Masks whose forbidden links still have weight `alpha` (1: not masked at all, 0: these masks)."""
        if alpha <= 0:
            return self
        mix = {
            k: None if v is None else (v[0] + (1 - v[0]) * alpha, v[1] + (1 - v[1]) * alpha)
            for k, v in self.mix.items()
        }
        columns = tuple(None if c is None else c + (1 - c) * alpha for c in self.columns)
        return Masks(mix, self.taps, columns, self.parts, self.live)


class StagedNet(nn.Module):
    """The graph in torch, with an exit head for every tap in `taps`. Parameters start from `weights`."""

    def __init__(self, graph: Graph, channels: Channels, weights: Weights, *, taps: Sequence[str] = ()) -> None:
        super().__init__()
        self.graph, self.channels = graph, channels
        self.mixing = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self._key = {node.name: f"n{i}" for i, node in enumerate(graph.nodes)}
        self._head_key = {tap: f"t{i}" for i, tap in enumerate(taps)}
        self._functions: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {}
        for node in graph.nodes:
            self._add_node(node, weights)
        for tap in taps:
            head = weights.heads.get(tap) or initial_head(graph, channels, tap)
            self.heads[self._head_key[tap]] = Head(channels.layouts[tap].axis, head)
        self._source = feature_source(graph, channels)
        self._last_use = {name: i for i, node in enumerate(graph.nodes) for name in graph.computed(node)}

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
        """Whether a constant is a scale, shift or slope per channel of what the model computes (not of the image)."""
        value, source = self.graph.constants[node.inputs[index]], self.graph.computed(node)[0]
        layout = self.channels.layouts.get(source)
        if node.op not in LEARNED or value.dtype != np.float32 or layout is None or (layout.units == FREE).all():
            return False
        rank = len(self.graph.shapes[source])
        return channel_axis_of_constant(node, index, value, rank=rank, axis=layout.axis) is not None

    # --- plans --------------------------------------------------------------------------------------

    def masks(self, effective: Effective) -> Masks:
        """The masks of a plan on this module's device."""
        device = next(self.parameters()).device
        mix: dict[str, tuple[Tensor, Tensor] | None] = {}
        for node in self.graph.nodes:
            if node.name in effective.depth and self._key[node.name] in self.mixing:
                mix[node.name] = self._mask(node, effective, device)
        columns: list[Tensor | None] = []
        for stage, tap in enumerate(effective.plan.taps, start=1):
            reached = effective.readable(tap, stage)
            free = tap == self.graph.output or bool(reached.all())
            columns.append(None if free else torch.tensor(reached, dtype=torch.float32, device=device))
        parts = {
            node.name: found
            for node in self.graph.nodes
            if node.name in effective.depth and (found := self._parts(node, effective, device)) is not None
        }
        undefined = (n for n in self.graph.nodes if n.op in UNDEFINED_AT_ZERO and n.name in effective.depth)
        live = {n.name: self._live(n, effective, device) for n in undefined if not effective.live(n.outputs[0]).all()}
        return Masks(mix, effective.plan.taps, tuple(columns), parts, live)

    def _live(self, node: Node, effective: Effective, device: torch.device) -> dict[str, Tensor]:
        found = {}
        for name in (*self.graph.computed(node), node.outputs[0]):
            shape = [1] * (len(self.graph.shapes[name]) + 1)
            shape[self.channels.layouts[name].axis + 1] = -1
            found[name] = torch.tensor(effective.live(name), device=device).view(shape)
        return found

    def _parts(self, node: Node, effective: Effective, device: torch.device) -> tuple[Part, ...] | None:
        if self.channels.roles[node.name].kind not in (Kind.NORM, Kind.REDUCE):
            return None
        levels = effective.levels(node)
        if len(levels) == 1 and len(levels[0][0]) == len(self.channels.layouts[node.inputs[0]].units):
            return None
        return tuple(
            Part(*(torch.tensor(v, device=device) for v in (read, made, np.searchsorted(read, made))))
            for read, made in levels
        )

    def _mask(self, node: Node, effective: Effective, device: torch.device) -> tuple[Tensor, Tensor] | None:
        rank = self._mixing(node).weight.ndim
        if self.channels.roles[node.name].kind is Kind.MIX:
            mask = effective.mask(node)
        else:  # GROUPED: whole groups are zero or not
            mask = effective.live(node.outputs[0])[:, None]
        if mask.all():
            return None
        grid = torch.tensor(mask, dtype=torch.float32, device=device)
        return grid.view(*grid.shape, *[1] * (rank - 2)), grid.amax(1)

    def _mixing(self, node: Node) -> Mixing:
        module = self.mixing[self._key[node.name]]
        assert isinstance(module, Mixing), "mixing holds Mixing modules only"
        return module

    # --- forward ------------------------------------------------------------------------------------

    def forward(self, images: Tensor, masks: Masks) -> list[Tensor]:
        """The logits [B, K] of every stage of the plan behind `masks`."""
        return [found.logits for found in self.exits(images, masks)]

    def exits(self, images: Tensor, masks: Masks) -> list[Exit]:
        """What every stage of the plan behind `masks` answers, and from which features."""
        wanted = set(masks.taps)
        kept = wanted | {self._source}
        found: dict[str, Tensor] = {}
        values = {self.graph.image: images.float()}
        for index, node in enumerate(self.graph.nodes):
            outputs = self._run(node, values, masks)
            values.update(zip(node.outputs, outputs, strict=True))
            found.update((name, values[name]) for name in node.outputs if name in kept)
            if wanted <= found.keys():
                break
            for name in self.graph.computed(node):
                if self._last_use[name] == index:
                    values.pop(name, None)
        return [self._exit(tap, found, columns) for tap, columns in zip(masks.taps, masks.columns, strict=True)]

    def _exit(self, tap: str, found: Mapping[str, Tensor], columns: Tensor | None) -> Exit:
        if tap == self.graph.output:
            return Exit(found[tap].flatten(1), self._features(found))
        answer: Exit = self._head(tap)(found[tap], columns)
        return answer

    def _head(self, tap: str) -> Head:
        head = self.heads[self._head_key[tap]]
        assert isinstance(head, Head), "heads holds Head modules only"
        return head

    def _features(self, found: Mapping[str, Tensor]) -> Tensor | None:
        """The features of the model's own logits."""
        if self._source is None:
            return None
        return channel_means(found[self._source], self.channels.layouts[self._source].axis)

    @property
    def taps(self) -> tuple[str, ...]:
        """Where it has exits: the taps of its heads, and the output."""
        return (*self._head_key, self.graph.output)

    def feature_count(self, tap: str) -> int | None:
        """How many features the exit at this tap, or at the output, has; None: it has none."""
        if tap != self.graph.output:
            return self._head(tap).width
        return None if self._source is None else len(self.channels.layouts[self._source].units)

    def _run(self, node: Node, values: Mapping[str, Tensor], masks: Masks) -> tuple[Tensor, ...]:
        key = self._key[node.name]
        if key in self.mixing:
            mask, alive = masks.mix.get(node.name) or (None, None)
            return (self.mixing[key](values[node.inputs[0]], mask, alive),)
        if key in self.norms:
            return (self.norms[key](values[node.inputs[0]]),)
        inputs = [
            values[n] if n in values else getattr(self, f"{key}_{i}") if n else None for i, n in enumerate(node.inputs)
        ]
        if node.name in masks.parts:
            return (self._run_parts(node, inputs, masks.parts[node.name]),)
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

    def _run_parts(self, node: Node, inputs: Sequence[Tensor | None], parts: tuple[Part, ...]) -> Tensor:
        """A NORM or REDUCE node, stage by stage on the channels that exist by then; the others are zero."""
        x = inputs[0]
        assert x is not None, "a norm has an input"
        source, rank = node.inputs[0], x.ndim - 1
        axis = self.channels.layouts[source].axis
        out = x.new_zeros((len(x), *self.graph.shapes[node.outputs[0]]))
        for part in parts:
            if not len(part.read):
                continue
            cut = [x.index_select(axis + 1, part.read)]
            for index, value in enumerate(inputs[1:], start=1):
                constant = self.graph.constants.get(node.inputs[index])
                own = None if constant is None else channel_axis_of_constant(
                    node, index, constant, rank=rank, axis=axis)  # fmt: skip
                cut.append(value if value is None or own is None else value.index_select(own, part.read))  # type: ignore[arg-type]
            y = self._functions[node.name](*cut)
            assert isinstance(y, Tensor), "a norm has one output"
            if self.channels.roles[node.name].kind is Kind.REDUCE:
                return y
            out = out.index_copy(axis + 1, part.made, y.index_select(axis + 1, part.place))
        return out

    # --- normalisation ------------------------------------------------------------------------------

    @torch.no_grad()
    def insert_norms(self, batches: Iterable[Tensor]) -> None:
        """Put a norm behind every conv that makes a feature map, without changing the function.

        The statistics are those of the unmasked network on `batches` of images.
        """
        targets = [n for n in self.graph.nodes if self._wants_norm(n)]
        identity = self.masks(Effective(self.graph, self.channels, identity_plan(self.graph, self.channels)))
        moments = [_Moments(self._mixing(n)) for n in targets]
        hooks = [m.module.register_forward_hook(m.hook) for m in moments]
        self.eval()
        for images in batches:
            self(images, identity)
        for hook in hooks:
            hook.remove()
        for measured in moments:
            measured.module.norm = measured.norm()
            measured.module.bias = None
        self.eval()  # a fresh module starts in training mode

    def _wants_norm(self, node: Node) -> bool:
        if node.op != "Conv" or self._key[node.name] not in self.mixing:
            return False
        shape = self.graph.shapes[node.outputs[0]]
        readers = [reader.op for reader, _ in self.graph.consumers[node.outputs[0]]]
        return int(np.prod(shape[1:])) > 1 and readers != ["BatchNormalization"]

    def hidden_weights(self) -> list[Tensor]:
        """The weights [O, I, ...] of the layers in which every output reads every input, without the layer of the logits."""
        return [
            module.weight
            for node in self.graph.nodes
            if self._key[node.name] in self.mixing
            and (module := self._mixing(node)).groups == 1
            and (self._source not in node.inputs or self._source is None)
        ]

    def all_norms(self) -> list[Norm]:
        """Every norm: those of the model and those that were inserted."""
        return [m for m in self.modules() if isinstance(m, Norm)]

    def reset_norms(self) -> None:
        """Put every norm back to evaluation with the usual momentum."""
        for norm in self.all_norms():
            norm.eval()
            norm.momentum = MOMENTUM

    @torch.no_grad()
    def recalibrate(self, batches: Iterable[Tensor], masks: Masks) -> None:
        """Set the running statistics of all norms to those of the masked network on `batches`."""
        norms = self.all_norms()
        self.train()
        for count, images in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = 1.0 / count
            self(images, masks)
        self.reset_norms()
        self.eval()

    # --- out ----------------------------------------------------------------------------------------

    def weights(self) -> Weights:
        """The parameters as numpy, norms folded, ready for `split`."""
        mix = {
            node.name: self._mixing(node).folded() for node in self.graph.nodes if self._key[node.name] in self.mixing
        }
        operands = {}
        for node in self.graph.nodes:
            key = self._key[node.name]
            module = self.norms[key] if key in self.norms else None  # noqa: SIM401 - a ModuleDict has no get
            if isinstance(module, Norm):
                vectors = (module.scale, module.shift, module.running_mean, module.running_var)
                operands.update({(node.name, i): _numpy(v) for i, v in enumerate(vectors, start=1)})
            for index in range(len(node.inputs)):
                value = self._parameters.get(f"{key}_{index}")
                if value is not None:
                    operands[node.name, index] = _numpy(value)
        return Weights(mix, operands, {tap: self._head(tap).numpy() for tap in self._head_key})


def feature_source(graph: Graph, channels: Channels) -> str | None:
    """The tensor that the layer of the logits reads, None where no single layer that mixes channels makes them."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    name = graph.output
    while name in makers:
        node = makers[name]
        inputs = graph.computed(node)
        if len(inputs) != 1:
            return None
        name = inputs[0]
        if channels.roles[node.name].kind is Kind.MIX:
            return name if name in makers else None
    return None


def unsupported_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that have no torch builder, all of them at once."""
    return tuple(n for n in graph.nodes if n.op not in BUILDERS)


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A contiguous copy on the host; training may have stored it channels last."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).copy()


class _Moments:
    """Sums of the outputs of one conv without its bias, for mean and variance per channel."""

    def __init__(self, module: Mixing) -> None:
        self.module = module
        self.total = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def hook(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Add one output; the signature is torch's for forward hooks."""
        bias = self.module.bias
        value = (output if bias is None else output - bias.view(1, -1, *[1] * (output.ndim - 2))).double()
        axes = [a for a in range(value.ndim) if a != 1]
        self.total = self.total.to(value.device) + value.sum(axes)
        self.squares = self.squares.to(value.device) + value.square().sum(axes)
        self.count += value.numel() // value.shape[1]

    def norm(self) -> Norm:
        """A norm that undoes itself on these moments and adds the bias."""
        mean = self.total / self.count
        var = (self.squares / self.count - mean.square()).clamp_min(1e-8)
        bias = self.module.bias
        shift = mean if bias is None else mean + bias
        return Norm(torch.sqrt(var + EPSILON).float(), shift.float(), mean.float(), var.float())
