"""Normalisation layers for the training of a staged network.

Folded convolutions train badly, so a norm can be put behind each of them. It is initialised from measured statistics,
so that the function does not change.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from s2d_convert.frontend.graph import Node
from s2d_convert.network.layers import MOMENTUM, Moments, Norm
from s2d_convert.network.masks import Masks
from s2d_convert.network.staged_net import StagedNet
from s2d_convert.plans.assignment import Effective
from s2d_convert.plans.plan import identity_plan


@torch.no_grad()
def insert_norms(net: StagedNet, batches: Iterable[Tensor], masks: Masks | None = None) -> None:
    """Put a norm behind every convolution that makes a feature map, without changing the function.

    The statistics are those of the network under `masks`, of the unmasked one without, on `batches` of images.
    """
    masks = masks or net.masks(Effective(net.model, identity_plan(net.model)))
    moments = [Moments(net.mixing_of(node)) for node in net.graph.nodes if _wants_norm(net, node)]
    hooks = [m.module.register_forward_hook(m.hook) for m in moments]
    net.eval()
    for images in batches:
        net(images, masks)
    for hook in hooks:
        hook.remove()
    for measured in moments:
        measured.module.norm = measured.norm()
        measured.module.bias = None
    net.eval()  # a fresh module starts in training mode


def _wants_norm(net: StagedNet, node: Node) -> bool:
    if node.op != "Conv" or not net.mixes(node):
        return False
    shape = net.graph.shapes[node.outputs[0]]
    readers = [reader.op for reader, _ in net.graph.consumers[node.outputs[0]]]
    return int(np.prod(shape[1:])) > 1 and readers != ["BatchNormalization"]


def all_norms(net: StagedNet) -> list[Norm]:
    """Return every norm: those of the model and those that were inserted."""
    return [m for m in net.modules() if isinstance(m, Norm)]


@torch.no_grad()
def recalibrate(net: StagedNet, batches: Iterable[Tensor], masks: Masks) -> None:
    """Set the running statistics of all norms to those of the masked network on `batches`."""
    norms = all_norms(net)
    net.train()
    for count, images in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1.0 / count
        net(images, masks)
    for norm in norms:
        norm.momentum = MOMENTUM
    net.eval()
