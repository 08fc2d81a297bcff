"""First chains whose weights are solved in closed form. The search judges them, and trainings start from them.

Solving needs images, but neither labels nor gradient steps (`training.reconstruction`). The search solves hundreds of chains
roughly, on few images. The chains that remain are solved again, on as many images as the limits below allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.macs import total_macs
from s2d_convert.data.images import Images
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.weights import Weights, classifier_of
from s2d_convert.slicing.chain import Chain
from s2d_convert.training.reconstruction import Reconstruction, Settings, data_importance

ROUGH_IMAGES, FULL_IMAGES = 256, 1000
ROUGH = Settings(positions=16, rounds=0, pair_steps=0)  # one ridge regression a layer: several times cheaper
FULL = Settings()
SKETCH_IMAGES, SKETCH_MACS, LEAST_SKETCHED = 128, 1e10, 16
SKETCH = Settings(positions=8, rounds=0, pair_steps=0)
LEAST_IMAGES = 64
ROUGH_MACS, FULL_MACS = 8e10, 5e11  # limits of the static model's MACs over the images of a solve
FULL_COST = 6  # seconds that an image takes in a full solve, relative to those in a rough one, about
SOLVE, SOLVED_NODE = 3.0, 0.005  # passes of the images through the static model on one thread, and seconds per node
IMAGE_BYTES = 2**30  # limit of the memory for the images of a solve


def alive_nodes(model: AnalysedModel, plan: Plan) -> frozenset[str]:
    """Return the names of the nodes whose outputs can be other than zero."""
    effective, layouts = Effective(model, plan), model.channels.layouts
    return frozenset(
        node.name
        for node in model.graph.nodes
        if node.name in effective.depth and any(n not in layouts or effective.live(n).any() for n in node.outputs)
    )


@dataclass(eq=False)
class Solver:
    """A solver for the first chains of one model, on its training images; full solves on at most `full_images` of them."""

    model: AnalysedModel
    weights: Weights
    images: Images
    device: torch.device
    full_images: int = FULL_IMAGES

    @property
    def rough_images(self) -> int:
        """How many images the rough reconstruction is made of."""
        return min(len(self.images), ROUGH_IMAGES, self._images_within(ROUGH_MACS, LEAST_IMAGES))

    def rough_seconds(self, image_seconds: float) -> float:
        """Return about how long a rough solve takes. image_seconds: of the static model in onnxruntime on one thread."""
        return SOLVE * self.rough_images * image_seconds + SOLVED_NODE * len(self.model.graph.nodes)

    @cached_property
    def rough(self) -> Reconstruction:
        """The rough reconstruction, with which a search judges plans."""
        return self._reconstruction(ROUGH_IMAGES, ROUGH_MACS, ROUGH)

    @cached_property
    def importance(self) -> Array:
        """The importance of every channel unit, float64 [U], measured on the images."""
        return data_importance(self.rough)

    def errors(self, plans: Mapping[int, Plan]) -> dict[int, float]:
        """Return the mean squared error of the logits of one-stage plans, by their keys, from solves on a few images.

        Plans that leave the same nodes are solved once. A model without one classifier layer has no errors here.
        """
        sketch = self._reconstruction(SKETCH_IMAGES, SKETCH_MACS, SKETCH, at_least=LEAST_SKETCHED)
        classifier, whole = classifier_of(self.model), sketch.samples.logits_variance()
        nodes = {key: alive_nodes(self.model, plan) for key, plan in plans.items()}
        solved = {alive: sketch.solve(plans[key]).errors for alive, key in {nodes[k]: k for k in plans}.items()}
        return {
            key: whole * solved[alive][classifier.name].before
            for key, alive in nodes.items()
            if classifier is not None and classifier.name in solved[alive]
        }

    def afford(self, seconds: float, *, rough_seconds: float) -> None:
        """Let a full solve take about so long, where a rough one took `rough_seconds`. Solved chains stay as they are."""
        images = round(self.rough_images * seconds / max(FULL_COST * rough_seconds, 1e-3))
        wanted = min(FULL_IMAGES, max(self.rough_images, images))
        if wanted != self.full_images:
            self.full_images = wanted
            self.__dict__.pop("_full", None)

    def chain(self, plan: Plan) -> Chain:
        """Return the chain of a plan with solved weights. Every plan is solved once."""
        if plan not in self._chains:
            self._chains[plan] = Chain(self.model, plan, self._full.solve(plan).weights)
        return self._chains[plan]

    @cached_property
    def _full(self) -> Reconstruction:
        self.__dict__.pop("rough", None)  # the search is over by now, and both would take much memory
        return self._reconstruction(self.full_images, FULL_MACS, FULL)

    @cached_property
    def _chains(self) -> dict[Plan, Chain]:
        return {}

    def release(self) -> None:
        """Free the memory of the reconstructions and of what they have solved; both are made again where they are asked for."""
        for name in ("_full", "_chains", "rough"):
            self.__dict__.pop(name, None)

    def _reconstruction(
        self, most_images: int, most_macs: float, settings: Settings, *, at_least: int = LEAST_IMAGES
    ) -> Reconstruction:
        count = min(len(self.images), most_images, self._images_within(most_macs, at_least))
        images = np.ascontiguousarray(self.images.batch(np.arange(count)), dtype=np.float32)
        return Reconstruction(self.model, self.weights, images, settings=settings, device=self.device)

    def _images_within(self, macs: float, at_least: int) -> int:
        """Return the largest number of images, but `at_least` so many, that keeps within `macs` multiply-accumulates and
        IMAGE_BYTES."""
        graph = self.model.graph
        pixels = int(np.prod(graph.shapes[graph.image]))
        return max(at_least, min(int(macs / max(1, total_macs(graph))), IMAGE_BYTES // (4 * pixels)))
