"""The static model as a teacher: its logits, and the features that they are made from as hints.

Ten logits say little about an image, the some sixty features behind them say more. So every exit learns, beside its answer,
features from which those of the static model can be told by a linear map (Romero et al., ICLR 2015, arXiv 1412.6550, for
hints; Chen et al., CVPR 2022, arXiv 2203.14001, for the features before the classifier). The maps are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor, nn

from s2d_convert.channels import Channels
from s2d_convert.graph import Graph
from s2d_convert.latency import Array, make_session
from s2d_convert.staged import Exit, StagedNet, feature_source
from s2d_convert.static import to_logits

SMALLEST_SPREAD = 1e-12  # of features, below which they say nothing


@dataclass(frozen=True)
class Lesson:
    """What the teacher says about a batch: logits float32 [B, K] and features float32 [B, C], if it has any."""

    logits: Array
    features: Array | None = None


class Teacher:
    """The static model in onnxruntime, with the features behind its logits."""

    def __init__(
        self, graph: Graph, channels: Channels, *, threads: int = 1, provider: str = "CPUExecutionProvider"
    ) -> None:
        self.graph, self.channels = graph, channels
        self.source = feature_source(graph, channels)
        model = graph.model
        if self.source is not None:
            model = onnx.ModelProto()
            model.CopyFrom(graph.model)
            shape: list[str | int | None] = ["N", *graph.shapes[self.source]]
            model.graph.output.append(helper.make_tensor_value_info(self.source, TensorProto.FLOAT, shape))
            axis = channels.layouts[self.source].axis
            self._others = tuple(a for a in range(1, len(shape)) if a != axis + 1)
        self._session = make_session(model.SerializeToString(), threads=threads, provider=provider)

    @property
    def width(self) -> int | None:
        """How many features it has."""
        return None if self.source is None else len(self.channels.layouts[self.source].units)

    def __call__(self, images: Array) -> Lesson:
        """What the static model says about model input [B, ...]."""
        logits, *features = self._session.run(None, {self.graph.image: images})
        answer = to_logits(logits, self.graph.output_kind)
        return Lesson(answer, features[0].mean(axis=self._others) if features else None)


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
        """The share of the variance of the teacher's features [B, C] that the maps leave unexplained, mean over the exits."""
        spread = features.var().clamp_min(SMALLEST_SPREAD)
        total = features.new_zeros(())
        for tap, found in zip(taps, exits, strict=True):
            if found.features is not None:
                told = self.maps[self._key[tap]](found.features.float())
                total = total + F.mse_loss(told, features) / spread
        return total / len(exits)
