"""Weights of any plan in closed form: every mixing layer is solved by ridge regression, no gradient step is made.

A plan removes channels and blocks. Most of the accuracy that training recovers can be had by linear maps: at every mixing node,
in topological order, the weights are solved that map the *cut* network's values at its input as closely as possible to the
*static* model's values at its output (channel pruning, He et al., ICCV 2017; `targets` describes sums and left-out blocks). Every
solve sees the errors of those before it and compensates them as far as a linear map can. Linked stages are solved by the rule
by which they are computed: a row of stage s reads the columns with e <= s. Norms are refitted channel by channel, and exit heads
are solved against the static model's logits.

Letters: B images, N rows (images times positions), D columns, O outputs, C channels, K classes, S stages.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from s2d_convert.base.arrays import Array
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.channels.image_scale import at_scale
from s2d_convert.frontend.graph import Node
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import Plan
from s2d_convert.plans.weights import Weights
from s2d_convert.training.reconstruction.columns import LinearView, linear_view
from s2d_convert.training.reconstruction.passes import Samples
from s2d_convert.training.reconstruction.plan_solver import PlanSolver, Settings, Shared, Solved


class Reconstruction:
    """Solves plans of one static model on one set of images.

    `images` is float32 [B, ...] as the model takes them, or the samples of another reconstruction; labels are not needed. What
    does not depend on the plan (sampled positions, the static model's values there where they fit the budget) is computed once.
    """

    def __init__(
        self,
        model: AnalysedModel,
        weights: Weights,
        images: Array | Samples,
        *,
        settings: Settings | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.weights = model, weights
        self.graph, self.channels = model.graph, model.channels
        graph = model.graph
        self.settings = settings or Settings()
        self.device = torch.device(device)
        if self.settings.mirrored and not isinstance(images, Samples):
            images = np.concatenate([images, np.flip(images, axis=3 if graph.image_axis == 0 else 2)])
        self._net = StagedNet(model, weights).to(self.device).eval().requires_grad_(False)
        with torch.no_grad():
            self.samples = Samples(
                self._net,
                images,
                device=self.device,
                positions=self.settings.positions,
                kept_bytes=self.settings.targets_bytes,
            )
        self._views: dict[str, LinearView] = {}
        self._scaled: dict[float, Reconstruction] = {}

    def view(self, node: Node) -> LinearView:
        """Return how a mixing node reads its input, made once."""
        if node.name not in self._views:
            view = linear_view(self.graph, node, self.weights.mix[node.name][0])
            self._views[node.name] = replace(view, reads=view.reads.to(self.device))
        return self._views[node.name]

    def on(self, device: torch.device | str) -> Reconstruction:
        """Return the same reconstruction on another device."""
        if torch.device(device) == self.device:
            return self
        images = torch.cat(list(self.samples.chunks)).cpu().numpy()
        settings = replace(self.settings, mirrored=False)  # the images are mirrored already
        return Reconstruction(self.model, self.weights, images, settings=settings, device=device)

    def _at(self, scale: float) -> Reconstruction:
        """Return the reconstruction of the model at a scale, whose logits are to be those of this one; made once."""
        if scale not in self._scaled:
            kept = self.settings.targets_bytes // 4
            model, settings = at_scale(self.model, scale), replace(self.settings, targets_bytes=kept)
            small = Reconstruction(model, self.weights, self.samples, settings=settings, device=self.device)
            small.samples.answer_as(self.samples)
            self._scaled[scale] = small
        return self._scaled[scale]

    # --- one plan -----------------------------------------------------------------------------------

    @torch.no_grad()
    def solve(self, plan: Plan) -> Solved:
        """Return the weights for a plan, its exit heads included, and the errors of every node that was solved.

        A chain that reads the image smaller is solved for what the static model makes of the smaller image, and its logits for
        those of the static model on the image as it is.
        """
        if plan.scale != self.graph.scale:
            return self._at(plan.scale).solve(plan)
        shared = Shared(self.model, self.weights, self.settings, self.samples, self.view)
        return PlanSolver(shared, Effective(self.model, plan), self._net.sharing()).solve()
