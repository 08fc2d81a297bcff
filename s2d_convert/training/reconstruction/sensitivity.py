"""How strongly the logits react to errors inside the static model.

An error of one layer matters as far as the layers behind it let it through. With J_op the derivative of the logits by what a
layer makes in channel o at position p, an error whose channels are independent, and whose positions have the correlation c,
moves the logits by

    sum over channels o of  G_o * (mean squared error of channel o),
    G_o = (1 - c) * sum over p of |J_op|^2 + c * |sum over p of J_op|^2

The squared norms are means of (J^T v)^2 over random directions v (Hutchinson, 1989), so one backward pass serves all layers.

Letters: B images, K classes, O channels of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from s2d_convert.frontend.graph import Node
from s2d_convert.training.reconstruction.passes import Samples

IMAGES, DIRECTIONS = 64, 2
MOST_MACS = 6e10  # of all forward and backward passes, about
MOST_BYTES = 500_000_000  # of all values of a batch, which a backward pass needs together
COHERENCE = 0.3  # c, as measured on ResNets; with 0 a layer before a global pool seems 20 times too harmless
SMALL = 1e-6  # of a layer's mean sensitivity: no channel counts for nothing


@torch.enable_grad()
def sensitivities(samples: Samples, nodes: Sequence[Node], *, macs: int) -> dict[str, Tensor]:
    """Return G_o of the first output of every node, float64 [O], by node name.

    macs: multiply-accumulates of the model per image. Nodes that no logit depends on, or whose gradient is not finite, get ones.
    """
    graph, layouts = samples.graph, samples.net.channels.layouts
    energy = {n.name: torch.zeros(len(layouts[n.outputs[0]].units), dtype=torch.float64) for n in nodes}
    axes = {n.name: layouts[n.outputs[0]].axis + 1 for n in nodes}
    count = 0
    generator = torch.Generator().manual_seed(0)
    for images in _batches(samples, max(4, min(IMAGES, int(MOST_MACS / (3 * DIRECTIONS * max(1, macs)))))):
        logits, made = _forward(samples, images, nodes)
        count += len(images)
        for _ in range(DIRECTIONS):
            direction = torch.randn(logits.shape, generator=generator).to(logits)
            if not graph.task.several:  # a shift of all logits changes no answer
                direction = direction - direction.mean(-1, keepdim=True)
            gradients = torch.autograd.grad(
                (logits * direction).sum(), list(made.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(made, gradients, strict=True):
                if gradient is not None:
                    energy[name] += _energy(gradient.double(), axes[name]).cpu() / DIRECTIONS
    return {name: _usable(total / max(1, count)) for name, total in energy.items()}


def _energy(gradient: Tensor, axis: int) -> Tensor:
    """Return the mean squared effect of an error of variance 1 in every channel, summed over the images, [O]."""
    rows = gradient.movedim(axis, 0).reshape(gradient.shape[axis], len(gradient), -1)  # [O, B, positions]
    alone, together = rows.square().sum(2), rows.sum(2).square()
    return ((1 - COHERENCE) * alone + COHERENCE * together).sum(1)


def _batches(samples: Samples, images: int) -> Iterator[Tensor]:
    """Yield the first images, in batches whose values fit the memory."""
    all_bytes = samples.graph.image_bytes
    size = max(1, min(images, MOST_BYTES // max(1, all_bytes)))
    left = images
    for chunk in samples.chunks:
        for batch in chunk.split(size):
            if left > 0:
                yield batch[:left]
                left -= len(batch)


def _forward(samples: Samples, images: Tensor, nodes: Sequence[Node]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of images, and what the nodes make, by node name and with their history."""
    outputs = {node.name: node.outputs[0] for node in nodes}
    static = samples.static_pass(images.detach().clone().requires_grad_())
    (values,) = static.values(len(samples.graph.nodes), also=[*outputs.values(), samples.graph.output])
    return values[samples.graph.output], {
        name: values[output] for name, output in outputs.items() if values[output].requires_grad
    }


def _usable(sensitivity: Tensor) -> Tensor:
    """Return a sensitivity that is finite and nowhere zero."""
    if not bool(torch.isfinite(sensitivity).all()) or not float(sensitivity.sum()) > 0:
        return torch.ones_like(sensitivity)
    return sensitivity.clamp_min(SMALL * float(sensitivity.mean()))
