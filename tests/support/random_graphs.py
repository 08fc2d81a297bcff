"""Random image classifiers in ONNX, for the laws that must hold on every static CNN.

`random_graphs()` is a hypothesis strategy. A model has one input "image" [N, C, H, W] with H and W in 6..12, weights
that keep activations O(1), and logits (or their Softmax) [N, K]. Its blocks are in `random_blocks` and
`random_mixing`; heads are here.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import random_blocks
import random_mixing
from helpers import random_images
from hypothesis import strategies as st
from hypothesis.vendor import pretty
from net_builder import RELU_GAIN, Net, describe, tags_of
from random_blocks import BLOCKS
from random_parts import ACTIVATIONS, MAX_CHANNELS, WIDTHS, Block, conv_unit, pick

__all__ = [
    "ACTIVATIONS",
    "BLOCKS",
    "HEADS",
    "MAX_CHANNELS",
    "TAILS",
    "describe",
    "random_graphs",
    "random_images",
    "tags_of",
]

# Importing these modules fills the table of blocks.
MODULES = (random_blocks, random_mixing)
MAX_BLOCKS = 8
ENOUGH_NODES = 22  # no further block is begun after so many
TAILS = ("none", "Softmax")
HEADS: dict[str, Block] = {}


def head(function: Block) -> Block:
    """Register a head under the name of its function: (C, H, W) to about ten logits (K,)."""
    name = function.__name__
    if name in HEADS:
        raise ValueError(f"head {name} is registered already; choose another name")
    HEADS[name] = function
    return function


def classes(draw: st.DrawFn) -> int:
    """K."""
    return pick(draw, 10, 2, 7)


def linear(net: Net, x: str, draw: st.DrawFn, out: int, *, gain: float) -> str:
    """A linear layer in a drawn spelling."""
    return net.linear(x, out, spelling=pick(draw, "Gemm", "GemmT", "MatMul"), gain=gain)


def pooled(net: Net, x: str, draw: st.DrawFn) -> str:
    """(C,) by global pooling in a drawn spelling."""
    c = net.shapes[x][0]
    spelling = pick(draw, "GlobalAveragePool", "ReduceMean", "ReduceMean flat", "GlobalMaxPool")
    if spelling == "ReduceMean flat":
        return net.op("ReduceMean", x, shape=(c,), axes=(2, 3), keepdims=0)
    x = net.global_pool(x, spelling=spelling)
    return net.flatten(x) if draw(st.booleans()) else net.reshape(x, c, batch=pick(draw, 0, -1))


@head
def pool_linear(net: Net, x: str, draw: st.DrawFn) -> str:
    """Global pooling and one linear layer."""
    return linear(net, pooled(net, x, draw), draw, classes(draw), gain=2.0)


@head
def flatten_linear(net: Net, x: str, draw: st.DrawFn) -> str:
    """Flatten of H x W and one linear layer."""
    c, h, w = net.shapes[x]
    flat = net.flatten(x) if draw(st.booleans()) else net.reshape(x, c * h * w, batch=pick(draw, 0, -1))
    return linear(net, flat, draw, classes(draw), gain=2.0)


@head
def mlp(net: Net, x: str, draw: st.DrawFn) -> str:
    """Flatten or pooling and several linear layers."""
    x = net.flatten(x) if draw(st.booleans()) else pooled(net, x, draw)
    for _ in range(pick(draw, 1, 2)):
        x = net.op(pick(draw, "Relu", "Tanh", "HardSwish"), linear(net, x, draw, pick(draw, 16, 13), gain=RELU_GAIN))
    return linear(net, x, draw, classes(draw), gain=2.0)


@head
def conv_head(net: Net, x: str, draw: st.DrawFn) -> str:
    """A 1x1 conv as the classifier, before or after the global pooling."""
    k = classes(draw)
    if draw(st.booleans()):
        return net.flatten(net.conv(net.global_pool(x), k, gain=2.0))
    x = net.conv(x, k, gain=2.0)
    return pooled(net, net.op("Relu", x) if draw(st.booleans()) else x, draw)


@head
def two_pools_linear(net: Net, x: str, draw: st.DrawFn) -> str:
    """Average and maximum side by side and one linear layer."""
    both = net.concat(net.global_pool(x), net.global_pool(x, spelling="GlobalMaxPool"))
    return linear(net, net.flatten(both), draw, classes(draw), gain=2.0)


@st.composite
def _steps(draw: st.DrawFn, net: Net, top: list[str], names: tuple[str, ...]) -> None:
    """One more block on `net`, its output in the place of `top[0]`; or nothing, which is how a block is shrunk away."""
    name = pick(draw, None, *names)
    if name is not None and len(net.nodes) < ENOUGH_NODES:
        net.tags.append(f"block:{name}")
        top[0] = BLOCKS[name](net, top[0], draw)
        if top[0] not in net.maps:
            net.maps.append(top[0])


@st.composite
def random_graphs(
    draw: st.DrawFn, *, blocks: Collection[str] = (), heads: Collection[str] = (), max_blocks: int = MAX_BLOCKS
) -> onnx.ModelProto:
    """Valid ONNX classifiers (opset 17, symbolic batch): a stem conv, up to `max_blocks` blocks, a head, maybe Softmax.

    `blocks` and `heads` narrow the choice to some names of `BLOCKS` and `HEADS`, simplest first.
    """
    image = pick(draw, 3, 1, 4), draw(st.integers(6, 12)), draw(st.integers(6, 12))
    net = Net(image, seed=draw(st.integers(0, 2**32 - 1)))
    top = [conv_unit(net, net.image, draw, pick(draw, *WIDTHS))]
    # A list of steps, not a loop: hypothesis knows how to leave out elements of a list. It likes short ones best, too.
    least = draw(st.integers(0, (max_blocks + 1) // 2))
    draw(st.lists(_steps(net, top, tuple(blocks) or tuple(BLOCKS)), min_size=least, max_size=max_blocks))
    name, tail = pick(draw, *(tuple(heads) or tuple(HEADS))), pick(draw, *TAILS)
    net.tags += [f"head:{name}", f"tail:{tail}"]
    logits = HEADS[name](net, top[0], draw)
    return net.model(logits if tail == "none" else net.op(tail, logits, axis=-1))


def _print_model(model: onnx.ModelProto, printer: pretty.RepresentationPrinter, cycle: bool) -> None:
    """How hypothesis shows a model: without a million bytes of weights."""
    printer.text(f"<{' '.join(tags_of(model))}>\n{describe(model)}" if model.metadata_props else repr(model))


pretty.for_type_by_name(onnx.ModelProto.__module__, onnx.ModelProto.__name__, _print_model)
