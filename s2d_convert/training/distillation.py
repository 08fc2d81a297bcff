"""The static model as a teacher: its logits, and the features behind them as hints.

The ten logits of a small classifier say less about an image than the features that they are computed from. So every exit
also learns to predict these features with a linear map (hints: Romero et al., ICLR 2015, arXiv 1412.6550; features before
the classifier: Chen et al., CVPR 2022, arXiv 2203.14001). The maps are discarded after the training.
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

SMALLEST_SPREAD = 1e-12  # lower limit of the features' variance, where they are constant


@dataclass(frozen=True)
class Lesson:
    """The teacher's targets for a batch: logits float32 [B, K], and features float32 [B, C] if it has any."""

    logits: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Teacher:
    """The static model as a teacher.

    width: the number of features behind its logits, None if it has none. say: its targets for model input [B, ...].
    """

    width: int | None
    say: Callable[[Array], Lesson]


def teacher_in_onnxruntime(model: AnalysedModel, **session: Any) -> Teacher:
    """Return a teacher that runs in onnxruntime, which is faster than torch on a CPU. session: keywords of `make_session`."""
    source, logits_model = feature_source(model), model.graph.to_logits_model()
    if source is not None:
        shape: list[str | int | None] = ["N", *model.graph.shapes[source]]
        logits_model.graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, shape))
    inference = make_session(logits_model.SerializeToString(), **session)

    def say(images: Array) -> Lesson:
        logits, *features = inference.run(None, {model.graph.image: images})
        answer = torch.from_numpy(to_logits(logits, model.graph.logits_kind))
        if source is None:
            return Lesson(answer)
        return Lesson(answer, channel_means(torch.from_numpy(features[0]), model.channels.layouts[source].axis))

    return Teacher(_width(model), say)


def teacher_in_torch(model: AnalysedModel, weights: Weights, device: torch.device) -> Teacher:
    """Return a teacher on the training device, so that a GPU need not wait for the CPU."""
    net = StagedNet(model, weights).to(device).eval()
    masks = net.masks(Effective(model, identity_plan(model)))

    @torch.no_grad()
    def say(images: Array) -> Lesson:
        (answer,) = net.exits(torch.from_numpy(images).to(device), masks)
        return Lesson(answer.logits, answer.features)

    return Teacher(_width(model), say)


def _width(model: AnalysedModel) -> int | None:
    source = feature_source(model)
    return None if source is None else len(model.channels.layouts[source].units)


class Hints(nn.Module):
    """Linear maps from the features of each exit to the `width` features of the teacher."""

    def __init__(self, net: StagedNet, width: int) -> None:
        super().__init__()
        counts = {tap: count for tap in net.taps if (count := net.feature_count(tap)) is not None}
        self._key = {tap: f"h{i}" for i, tap in enumerate(counts)}
        self.maps = nn.ModuleDict({self._key[tap]: nn.Linear(count, width) for tap, count in counts.items()})
        for parameter in self.parameters():  # start at zero: no random numbers are drawn
            nn.init.zeros_(parameter)

    def loss(self, taps: Sequence[str], exits: Sequence[Exit], features: Tensor) -> Tensor:
        """Return the share of the variance of the teacher's features [B, C] that the maps do not explain, averaged over the
        exits."""
        variance = features.var().clamp_min(SMALLEST_SPREAD)
        total = features.new_zeros(())
        for tap, exit_ in zip(taps, exits, strict=True):
            if exit_.features is not None:
                predicted = self.maps[self._key[tap]](exit_.features.float())
                total = total + F.mse_loss(predicted, features) / variance
        return total / len(exits)
