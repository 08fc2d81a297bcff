"""The static model as a teacher: its logits, and the features that they are made from as hints.

Ten logits say little about an image, the some sixty features behind them say more. So every exit learns, beside its answer,
features from which those of the static model can be told by a linear map (Romero et al., ICLR 2015, arXiv 1412.6550, for
hints; Chen et al., CVPR 2022, arXiv 2203.14001, for the features before the classifier). The maps are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from s2d_convert.base.arrays import Array
from s2d_convert.base.sessions import make_session
from s2d_convert.channels.analysis import AnalysedModel
from s2d_convert.frontend.reference import to_logits
from s2d_convert.network.layers import Exit, channel_means
from s2d_convert.network.staged_net import StagedNet, feature_source
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import identity_plan
from s2d_convert.plans.weights import Weights

SMALLEST_SPREAD = 1e-12  # of features, below which they say nothing


@dataclass(frozen=True)
class Lesson:
    """What the teacher says about a batch: logits float32 [B, K] and features float32 [B, C], if it has any."""

    logits: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Teacher:
    """The static model: how many features there are behind its logits (None: it has none), and what it says about model
    input [B, ...]."""

    width: int | None
    say: Callable[[Array], Lesson]


def teacher_in_onnxruntime(model: AnalysedModel, **session: Any) -> Teacher:
    """Return the teacher for a CPU, where onnxruntime is the quicker one; `session` as of `make_session`."""
    source, whole = feature_source(model), model.graph.to_logits_model()
    if source is not None:
        shape: list[str | int | None] = ["N", *model.graph.shapes[source]]
        whole.graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, shape))
    runs = make_session(whole.SerializeToString(), **session)

    def say(images: Array) -> Lesson:
        logits, *features = runs.run(None, {model.graph.image: images})
        answer = torch.from_numpy(to_logits(logits, model.graph.logits_kind))
        if source is None:
            return Lesson(answer)
        return Lesson(answer, channel_means(torch.from_numpy(features[0]), model.channels.layouts[source].axis))

    return Teacher(_width(model), say)


def teacher_in_torch(model: AnalysedModel, weights: Weights, device: torch.device) -> Teacher:
    """Return the teacher on the device that trains: a GPU must not wait for a CPU."""
    net = StagedNet(model, weights).to(device).eval()
    masks = net.masks(Effective(model, identity_plan(model)))

    @torch.no_grad()
    def say(images: Array) -> Lesson:
        (found,) = net.exits(torch.from_numpy(images).to(device), masks)
        return Lesson(found.logits, found.features)

    return Teacher(_width(model), say)


def _width(model: AnalysedModel) -> int | None:
    source = feature_source(model)
    return None if source is None else len(model.channels.layouts[source].units)


class Hints(nn.Module):
    """For each exit of a network a linear map from its features to the `width` features of the teacher."""

    def __init__(self, net: StagedNet, width: int) -> None:
        super().__init__()
        counts = {tap: count for tap in net.taps if (count := net.feature_count(tap)) is not None}
        self._key = {tap: f"h{i}" for i, tap in enumerate(counts)}
        self.maps = nn.ModuleDict({self._key[tap]: nn.Linear(count, width) for tap, count in counts.items()})
        for parameter in self.parameters():  # from nothing, so that equal seeds give equal maps
            nn.init.zeros_(parameter)

    def loss(self, taps: Sequence[str], exits: Sequence[Exit], features: Tensor) -> Tensor:
        """Return the share of the variance of the teacher's features [B, C] that the maps leave unexplained, mean over the
        exits."""
        spread = features.var().clamp_min(SMALLEST_SPREAD)
        total = features.new_zeros(())
        for tap, found in zip(taps, exits, strict=True):
            if found.features is not None:
                told = self.maps[self._key[tap]](found.features.float())
                total = total + F.mse_loss(told, features) / spread
        return total / len(exits)
