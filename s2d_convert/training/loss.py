"""What exits are trained for: the labels, if there are any, and the static model's logits (knowledge distillation).

Distillation: Hinton et al., 2015, arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from s2d_convert.training.settings import TrainSettings


def exit_loss(
    exits: Sequence[Tensor], soft: Tensor, labels: Tensor | None, settings: TrainSettings, *, several: bool = False
) -> Tensor:
    """Return the mean over exits of cross entropy with the labels and divergence from the static model's softened answer, both
    summed over the labels where an image has `several`.

    exits: logits [B, K] each; soft: the static model's; labels: classes [B], or 0 and 1 [B, K].
    """
    divergence, entropy = (_label_divergence, _label_entropy) if several else (_class_divergence, F.cross_entropy)
    t = settings.temperature
    distill = 1.0 if labels is None else settings.distill
    total = soft.new_zeros(())
    for logits in exits:
        total = total + distill * divergence(logits / t, soft / t) * t * t
        if labels is not None:
            total = total + (1 - distill) * entropy(logits, labels)
    return total / len(exits)


def _class_divergence(logits: Tensor, soft: Tensor) -> Tensor:
    target = F.log_softmax(soft, dim=1)
    return F.kl_div(F.log_softmax(logits, dim=1), target, log_target=True, reduction="batchmean")


def _label_divergence(logits: Tensor, soft: Tensor) -> Tensor:
    """Return the divergence of independent labels: that of each one, in sum."""
    return _label_entropy(logits, soft.sigmoid()) - _label_entropy(soft, soft.sigmoid())


def _label_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(logits)
