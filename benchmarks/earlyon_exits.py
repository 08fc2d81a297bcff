"""Early exits by the `earlyon` package (0.3): heads of two layers, trained on the frozen model, at equal shares of the work.

The package takes torch networks and stops early in torch only: its ONNX export is one file that always computes all exits.
So that it can be compared in onnxruntime, the heads that it has trained run in stage files of ours, with our thresholds and our
dispatcher. Its core needs neither torchvision nor fvcore; the networks that it brings along do, and are not used here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pruning import Plain
from benchmarks.stand import Entry, Stand
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.conversion.context import Tuned
from s2d_convert.conversion.prepare import static_logits
from s2d_convert.conversion.training_steps import MOST_PASSES
from s2d_convert.data.images import Images
from s2d_convert.errors import ModelError
from s2d_convert.frontend.graph import Graph
from s2d_convert.network.layers import as_numpy
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.heuristics import depth_plan
from s2d_convert.plans.plan import Conversion
from s2d_convert.plans.weights import ExitHead
from s2d_convert.slicing.chain import Chain

try:
    from earlyon import EarlyExitConfig, EarlyExitHead, EarlyExitWrapper, ExitPoint
    from earlyon.training.two_stage_trainer import stage2_train_exits
except ImportError:  # an extra of `make bench`
    EarlyExitWrapper = None

AVAILABLE = EarlyExitWrapper is not None
EXITS = 3  # as the package puts on its own ResNets
BATCH = 128


class Marked(Plain):
    """A graph as plain layers, with a module of its own at every tap, where the package can attach an exit."""

    def __init__(self, graph: Graph, taps: tuple[str, ...]) -> None:
        super().__init__(graph)
        self.marks = nn.ModuleDict({f"tap{i}": nn.Identity() for i in range(len(taps))})
        self._mark = dict(zip(taps, self.marks, strict=True))

    def seen(self, name: str, value: Tensor) -> Tensor:
        """Return the value of a tensor, through the module of its tap."""
        passed: Tensor = self.marks[self._mark[name]](value) if name in self._mark else value
        return passed


@dataclass(frozen=True)
class Epochs:
    """Batches (images, labels), augmented; every iteration is another epoch."""

    images: Images
    labels: np.ndarray
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self.seed, int(torch.randint(2**31, (1,)))])
        size = min(BATCH, len(self.images))
        order = rng.permutation(len(self.images))
        for first in range(0, len(order) - size + 1, size):
            rows = order[first : first + size]
            batch = np.ascontiguousarray(self.images.augmented(rows, rng, level="light"))
            yield torch.from_numpy(batch), torch.from_numpy(self.labels[rows])


def exits(stand: Stand, seed: int, budget: float) -> Entry:
    """Return the model with exits by the package, at thresholds for the budget. Raises ModelError where it cannot have any."""
    name = f"folders/earlyon-s{seed}"
    if not (stand.root / name).exists():
        conversion, tuned = trained(stand, seed)
        stand.folder(conversion, seed, budget, tuned=tuned, name=name)
    return Entry("earlyon", seed, name, budget, budget)


def trained(stand: Stand, seed: int) -> tuple[Conversion, Tuned]:
    """Return a conversion by depth, with heads that the package has trained."""
    ready = stand.ready
    conversion = depth_plan(ready.model, EXITS + 1)
    plan = conversion.chains[0]
    torch.manual_seed(seed)
    wrapper = wrapped(ready.model, plan.taps[:-1])
    images = ready.dataset.train
    labels = images.labels
    if labels is None:  # the target is what the static model says
        labels = static_logits(ready.static, images).argmax(axis=1)
    stage2_train_exits(wrapper, Epochs(images, labels, seed), epochs=_epochs(stand), on_epoch_end=lambda _: None)
    heads = {tap: head_of(wrapper.exit_heads[f"tap{i}"]) for i, tap in enumerate(plan.taps[:-1])}
    chain = Chain(ready.model, plan, replace(ready.weights, heads=heads))
    net = StagedNet(ready.model, chain.weights, taps=plan.taps[:-1]).eval()
    return conversion, Tuned.trained(net, net.masks(Effective(ready.model, plan)), chain)


def wrapped(model: AnalysedModel, taps: tuple[str, ...]) -> Any:
    """Return the package's network: the model as it is, and a new head at every tap."""
    graph, layouts = model.graph, model.channels.layouts
    odd = [tap for tap in taps if len(graph.shapes[tap]) == 3 and layouts[tap].axis != 0]
    if odd:
        raise ModelError(f"earlyon pools maps with channels first, and {odd[0]} has them last")
    widths = [len(layouts[tap].units) for tap in taps]
    points = [ExitPoint(f"tap{i}", f"marks.tap{i}", width) for i, width in enumerate(widths)]
    heads = {point.name: EarlyExitHead(point.in_channels, graph.classes) for point in points}
    config = EarlyExitConfig(backbone="onnx", num_classes=graph.classes, exit_points=points)
    shape = (1, *graph.shapes[graph.image])
    return EarlyExitWrapper(Marked(graph, taps).eval(), heads, nn.Flatten(), config, input_shape=shape)


def head_of(head: Any) -> ExitHead:
    """Return the package's head (pooling, linear, ReLU, linear) as one of ours."""
    linear = [layer for layer in head.classifier if isinstance(layer, nn.Linear)]
    return ExitHead(tuple((as_numpy(layer.weight), as_numpy(layer.bias)) for layer in linear))


def _epochs(stand: Stand) -> int:
    """Return as many passes over the images as other methods with one network have, at least one."""
    work, images = stand.options.work, len(stand.ready.dataset.train)
    at_least = work.finetune_min_steps * BATCH / images
    return max(1, math.ceil(MOST_PASSES * max(work.finetune_epochs, at_least)))
