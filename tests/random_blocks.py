"""The parts of random classifiers: activations, blocks and heads, each a small function over `Net`.

A block takes a feature map (C, H, W) and returns another; what it leaves open it draws, the simplest choice first, so
that hypothesis shrinks towards it. Adding one is one function with `@block`, which keeps within `MAX_CHANNELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hypothesis import strategies as st
from net_builder import END, RELU_GAIN, Net

T = TypeVar("T")
Block = Callable[[Net, str, st.DrawFn], str]

MAX_CHANNELS = 48
WIDTHS = (8, 5, 13, 16, 24, 7, 12, 1)
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Register a block under the name of its function."""
    name = function.__name__
    if name in BLOCKS:
        raise ValueError(f"block {name} is registered already; choose another name")
    BLOCKS[name] = function
    return function


def pick(draw: st.DrawFn, *options: T) -> T:
    """One of `options`, the first in the simplest example."""
    return draw(st.sampled_from(options))


# --- activations ------------------------------------------------------------------------------------


def _prelu(net: Net, x: str) -> str:
    slopes = net.rng.uniform(-0.2, 0.5, (net.shapes[x][0], 1, 1))
    return net.op("PRelu", x, net.const(slopes))


def _prelu_shared(net: Net, x: str) -> str:
    return net.op("PRelu", x, net.const([0.2]))


def _relu6(net: Net, x: str) -> str:
    return net.op("Clip", x, net.const(0.0), net.const(6.0))


def _clip_below(net: Net, x: str) -> str:
    return net.op("Clip", x, net.const(-0.5))


def _silu(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def _plain(op: str, **attrs: float) -> Callable[[Net, str], str]:
    return lambda net, x: net.op(op, x, **attrs)


ACTIVATIONS: dict[str, Callable[[Net, str], str]] = {
    "Relu": _plain("Relu"),
    "LeakyRelu": _plain("LeakyRelu", alpha=0.1),
    "Relu6": _relu6,
    "HardSwish": _plain("HardSwish"),
    "Sigmoid": _plain("Sigmoid"),
    "Tanh": _plain("Tanh"),
    "Elu": _plain("Elu", alpha=0.7),
    "PRelu": _prelu,
    "PReluShared": _prelu_shared,
    "ClipBelow": _clip_below,
    "SiLU": _silu,
}


def activate(net: Net, x: str, draw: st.DrawFn) -> str:
    """A drawn activation."""
    name = pick(draw, *ACTIVATIONS)
    net.tags.append(f"act:{name}")
    return ACTIVATIONS[name](net, x)


# --- shared pieces ----------------------------------------------------------------------------------


def stride_for(net: Net, x: str, draw: st.DrawFn) -> int:
    """1, or 2 where the image is large enough."""
    return pick(draw, 1, 2) if min(net.shapes[x][1:]) >= 4 else 1


def finish(net: Net, x: str, draw: st.DrawFn, *, act: bool = True) -> str:
    """What follows a conv: maybe BatchNormalization, then maybe an activation."""
    if draw(st.booleans()):
        x = net.norm(x)
    return activate(net, x, draw) if act and pick(draw, True, True, False) else x


def conv_unit(net: Net, x: str, draw: st.DrawFn, c_out: int, *, stride: int = 1, act: bool = True) -> str:
    """A conv that keeps H and W (over the stride), with what follows it."""
    kernel = pick(draw, (1, 1), (3, 3), (1, 3), (5, 5), (3, 1))
    x = net.conv(x, c_out, kernel=kernel, stride=stride, bias=draw(st.booleans()), gain=RELU_GAIN if act else 1.0)
    return finish(net, x, draw, act=act)


def depthwise(net: Net, x: str, draw: st.DrawFn, *, stride: int = 1, multiplier: int = 1) -> str:
    """A depthwise conv with what follows it."""
    c = net.shapes[x][0]
    kernel = pick(draw, (3, 3), (5, 5))
    x = net.conv(x, c * multiplier, kernel=kernel, stride=stride, groups=c, bias=draw(st.booleans()), gain=RELU_GAIN)
    return finish(net, x, draw)


def with_multiple(net: Net, x: str, draw: st.DrawFn, multiple: int) -> str:
    """`x`, or a 1x1 conv of it where its channels are no multiple of `multiple`."""
    if net.shapes[x][0] % multiple == 0:
        return x
    return net.conv(x, multiple * pick(draw, 2, 3, 5), gain=RELU_GAIN)


def branch(net: Net, x: str, draw: st.DrawFn, c_out: int) -> str:
    """`c_out` channels of the same H and W by a drawn short way."""
    kind = pick(draw, "conv", "separable", "two convs", "pool")
    if kind == "separable":
        x = depthwise(net, x, draw)
    elif kind == "two convs":
        x = conv_unit(net, x, draw, pick(draw, 4, 7))
    elif kind == "pool":
        x = net.pool(x, pick(draw, "MaxPool", "AveragePool"), kernel=3, stride=1, pad=1)
    return conv_unit(net, x, draw, c_out)


def join(net: Net, draw: st.DrawFn, *tensors: str) -> str:
    """The Add of tensors of one shape in a drawn order, maybe with an activation after it."""
    first, second = draw(st.permutations(tensors))
    x = net.op("Add", first, second)
    return activate(net, x, draw) if draw(st.booleans()) else x


def squeeze_excite(net: Net, x: str, draw: st.DrawFn) -> str:
    """`x` times a gate per channel; the gate by 1x1 convs, or by linear layers between two reshapes."""
    c = net.shapes[x][0]
    squeezed = pick(draw, max(1, c // 4), 3)
    pooled = net.global_pool(x, spelling=pick(draw, "GlobalAveragePool", "ReduceMean"))
    if pick(draw, "conv", "linear") == "conv":
        hidden = net.op("Relu", net.conv(pooled, squeezed, gain=2.0))
        gate = net.conv(hidden, c, gain=2.0)
    else:
        hidden = net.op("Relu", net.linear(net.flatten(pooled), squeezed, gain=2.0))
        gate = net.reshape(net.linear(hidden, c, gain=2.0), c, 1, 1, batch=pick(draw, 0, -1))
    gate = net.op(pick(draw, "Sigmoid", "HardSigmoid"), gate)
    return net.op("Mul", *draw(st.permutations((x, gate))), shape=net.shapes[x])


# --- convolutions -----------------------------------------------------------------------------------


@block
def plain_conv(net: Net, x: str, draw: st.DrawFn) -> str:
    """A conv of any geometry."""
    kernel = pick(draw, (1, 1), (3, 3), (5, 5), (3, 1))
    dilation = pick(draw, 1, 2)
    pads = pick(draw, "same", "valid", (0, 0, 1, 1), (2, 1, 0, 1), "auto")
    size = net.shapes[x][1:]
    fits = all(n > dilation * (k - 1) for n, k in zip(size, kernel, strict=True))
    if not fits or (pads == "auto" and dilation > 1):  # onnxruntime has no automatic padding with dilation
        pads = "same"
    x = net.conv(
        x,
        pick(draw, *WIDTHS),
        kernel=kernel,
        dilation=dilation,
        stride=stride_for(net, x, draw),
        pads=pads,
        bias=draw(st.booleans()),
        gain=RELU_GAIN,
    )
    return finish(net, x, draw)


@block
def grouped_conv(net: Net, x: str, draw: st.DrawFn) -> str:
    """A conv in two to four groups, of one or more channels each."""
    groups = pick(draw, 2, 3, 4)
    x = with_multiple(net, x, draw, groups)
    c_out = groups * pick(draw, 4, 1, 5, 8)
    kernel = pick(draw, (1, 1), (3, 3))
    x = net.conv(x, c_out, kernel=kernel, groups=groups, stride=stride_for(net, x, draw), gain=RELU_GAIN)
    return finish(net, x, draw)


@block
def depthwise_separable(net: Net, x: str, draw: st.DrawFn) -> str:
    """A depthwise conv, maybe with two outputs per channel, then maybe a pointwise one."""
    multiplier = pick(draw, 1, 2) if 2 * net.shapes[x][0] <= MAX_CHANNELS else 1
    if multiplier > 1:
        net.tags.append("depthwise:multiplier")
    x = depthwise(net, x, draw, stride=stride_for(net, x, draw), multiplier=multiplier)
    return conv_unit(net, x, draw, pick(draw, *WIDTHS)) if draw(st.booleans()) else x


@block
def padded_conv(net: Net, x: str, draw: st.DrawFn) -> str:
    """A Pad of H and W as a node of its own, then a valid conv."""
    modes = ("constant", "reflect", "edge") if min(net.shapes[x][1:]) > 1 else ("constant", "edge")
    x = net.pad(x, (0, 1, 1), (0, 1, pick(draw, 1, 0)) if net.shapes[x][2] > 1 else (0, 1, 1), mode=pick(draw, *modes))
    x = net.conv(x, pick(draw, *WIDTHS), kernel=(3, 3), pads="valid", stride=pick(draw, 1, 2), gain=RELU_GAIN)
    return finish(net, x, draw)


# --- one tensor, channel by channel -----------------------------------------------------------------


@block
def activation(net: Net, x: str, draw: st.DrawFn) -> str:
    """An activation by itself."""
    return activate(net, x, draw)


@block
def pooling(net: Net, x: str, draw: st.DrawFn) -> str:
    """Max or average pooling."""
    op = pick(draw, "MaxPool", "AveragePool")
    small = min(net.shapes[x][1:]) < 3
    kernel = 3 if small else pick(draw, 2, 3)
    pad = 1 if small else pick(draw, 0, kernel // 2)
    stride = stride_for(net, x, draw)
    # Rounding up together with padding is where runtimes disagree about the last window.
    return net.pool(x, op, kernel=kernel, stride=stride, pad=pad, ceil=pad == 0 and draw(st.booleans()))


@block
def channel_affine(net: Net, x: str, draw: st.DrawFn) -> str:
    """Mul and/or Add by constants: one per channel, or one for all."""
    c = net.shapes[x][0]
    for op in pick(draw, ("Mul",), ("Add",), ("Mul", "Add")):
        shape = pick(draw, (c, 1, 1), (1, c, 1, 1), (1,), ())
        values = net.rng.uniform(0.5, 1.5, shape) if op == "Mul" else net.rng.normal(scale=0.3, size=shape)
        x = net.op(op, *draw(st.permutations((x, net.const(values)))), shape=net.shapes[x])
    return x


@block
def batch_norm(net: Net, x: str, draw: st.DrawFn) -> str:
    """BatchNormalization by itself: after an Add, a Concat or a pool it cannot be folded backwards."""
    x = net.norm(x)
    return activate(net, x, draw) if draw(st.booleans()) else x


@block
def gate(net: Net, x: str, draw: st.DrawFn) -> str:
    """Squeeze and excite."""
    return squeeze_excite(net, x, draw)


@block
def double(net: Net, x: str, draw: st.DrawFn) -> str:
    """Add(x, x)."""
    return net.op("Add", x, x)


# --- residual ties ----------------------------------------------------------------------------------


@block
def residual(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two convs plus the input."""
    inner = conv_unit(net, x, draw, pick(draw, *WIDTHS))
    return join(net, draw, conv_unit(net, inner, draw, net.shapes[x][0], act=False), x)


@block
def residual_projection(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two convs plus a 1x1 conv of the input, or of the pooled input."""
    stride, c_out = stride_for(net, x, draw), pick(draw, *WIDTHS)
    body = conv_unit(net, x, draw, c_out, stride=stride)
    body = conv_unit(net, body, draw, c_out, act=False)
    if stride == 2 and draw(st.booleans()):
        x, stride = net.pool(x, "AveragePool", kernel=2, stride=2, ceil=True), 1
    shortcut = net.conv(x, c_out, stride=stride)
    return join(net, draw, body, net.norm(shortcut) if draw(st.booleans()) else shortcut)


@block
def residual_option_a(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two convs plus every second pixel of the input, with zeros as the new channels."""
    c = net.shapes[x][0]
    before, after = pick(draw, (0, 3), (2, 2), (c, 0))
    if c + before + after > MAX_CHANNELS:
        before, after = 0, 0
    stride = stride_for(net, x, draw)
    body = conv_unit(net, x, draw, c + before + after, stride=stride)
    body = conv_unit(net, body, draw, c + before + after, act=False)
    if stride == 2:
        x = net.slice(x, (2, 0, END, 2), (3, 0, END, 2))
    return join(net, draw, body, net.pad(x, (before, 0, 0), (after, 0, 0)) if before + after else x)


@block
def residual_preactivation(net: Net, x: str, draw: st.DrawFn) -> str:
    """BN-act-conv twice plus the input; the norm reads the stream, so it stays."""
    body = x
    for c_out in (pick(draw, *WIDTHS), net.shapes[x][0]):
        body = net.conv(activate(net, net.norm(body), draw), c_out, kernel=(3, 3), bias=False)
    return net.op("Add", x, body)


@block
def inverted_residual(net: Net, x: str, draw: st.DrawFn) -> str:
    """Expand, depthwise, maybe a gate, project, plus the input."""
    c = net.shapes[x][0]
    body = net.conv(x, min(MAX_CHANNELS, 2 * c + pick(draw, 0, 3)), gain=RELU_GAIN)
    body = depthwise(net, finish(net, body, draw), draw)
    if draw(st.booleans()):
        body = squeeze_excite(net, body, draw)
    body = finish(net, net.conv(body, c), draw, act=False)
    return net.op("Add", x, body)


@block
def long_skip(net: Net, x: str, draw: st.DrawFn) -> str:
    """A feature map from far back, added or appended."""
    c, *size = net.shapes[x]
    alike = [t for t in net.maps if t != x and list(net.shapes[t][1:]) == size]
    adds = [t for t in alike if net.shapes[t][0] == c]
    appends = [t for t in alike if net.shapes[t][0] + c <= MAX_CHANNELS]
    if adds and (not appends or draw(st.booleans())):
        return net.op("Add", *draw(st.permutations((x, pick(draw, *adds)))))
    return net.concat(x, pick(draw, *appends)) if appends else net.op("Add", x, x)


@block
def product(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two branches multiplied, one of them squashed."""
    c_out = pick(draw, *WIDTHS)
    left, right = branch(net, x, draw, c_out), branch(net, x, draw, c_out)
    return net.op("Mul", left, net.op(pick(draw, "Sigmoid", "Tanh"), right))


# --- concatenation ----------------------------------------------------------------------------------


@block
def inception(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two or three branches side by side, one of them maybe the input itself."""
    parts = [branch(net, x, draw, pick(draw, 4, 5, 8, 1)) for _ in range(pick(draw, 2, 3))]
    if net.shapes[x][0] <= MAX_CHANNELS - 24 and draw(st.booleans()):
        parts.append(x)
    return net.concat(*draw(st.permutations(parts)))


@block
def nested_concat(net: Net, x: str, draw: st.DrawFn) -> str:
    """A concat of concats, the inner one also read by a branch of its own."""
    inner = net.concat(branch(net, x, draw, pick(draw, 4, 3)), branch(net, x, draw, pick(draw, 4, 7)))
    outer = net.concat(inner, branch(net, inner, draw, pick(draw, 4, 5)))
    return finish(net, outer, draw)


@block
def dense(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two or three times: the features, and a few new ones made of them."""
    for _ in range(pick(draw, 2, 3)):
        growth = pick(draw, 4, 3, 5)
        if net.shapes[x][0] + growth > MAX_CHANNELS:
            break
        source = activate(net, net.norm(x), draw) if draw(st.booleans()) else x
        x = net.concat(x, conv_unit(net, source, draw, growth))
    return x


# --- splits and shuffles ----------------------------------------------------------------------------


@block
def split_branches(net: Net, x: str, draw: st.DrawFn) -> str:
    """Channels split in two or three, even or not, each part going its own way, then concatenated."""
    x = with_multiple(net, x, draw, 4)
    quarter = net.shapes[x][0] // 4
    sizes = pick(draw, (2, 2), (1, 3), (3, 1), (1, 2, 1))
    parts = []
    for part in net.split(x, [quarter * size for size in sizes]):
        way = pick(draw, "pass", "conv", "depthwise", "activation")
        if way == "conv":
            part = conv_unit(net, part, draw, net.shapes[part][0])
        elif way == "depthwise":
            part = depthwise(net, part, draw)
        elif way == "activation":
            part = activate(net, part, draw)
        parts.append(part)
    return net.concat(*draw(st.permutations(parts)))


@block
def slice_branches(net: Net, x: str, draw: st.DrawFn) -> str:
    """Channels sliced in two, the halves concatenated, added, or one of them added to the first of a new map."""
    x = with_multiple(net, x, draw, 2)
    c = net.shapes[x][0]
    merge = pick(draw, "concat", "add", "partial")
    cuts = pick(draw, ((0, c // 2, 1), (c // 2, END, 1)), ((0, END, 2), (1, END, 2)))
    left, right = (net.slice(x, (1, *cut)) for cut in cuts)
    if merge == "add":
        return net.op("Add", activate(net, left, draw), right)
    worked = conv_unit(net, right, draw, c // 2)
    if merge == "concat":
        return net.concat(left, worked)
    wide = conv_unit(net, x, draw, c // 2 + pick(draw, 3, 1))
    tail = net.slice(wide, (1, c // 2, END, 1))
    return net.concat(net.op("Add", net.slice(wide, (1, 0, c // 2, 1)), worked), tail)


@block
def channel_shuffle(net: Net, x: str, draw: st.DrawFn) -> str:
    """Channels dealt out from two to four packs, by Reshape-Transpose-Reshape or by Gather."""
    groups = pick(draw, 2, 3, 4)
    x = with_multiple(net, x, draw, groups)
    c, h, w = net.shapes[x]
    spelling = pick(draw, "5-D", "4-D", "Gather")
    if spelling == "Gather":
        return net.gather(x, [g * (c // groups) + i for i in range(c // groups) for g in range(groups)])
    batch = pick(draw, 0, -1)
    inner = (h, w) if spelling == "5-D" else (h * w,)
    x = net.reshape(x, groups, c // groups, *inner, batch=batch)
    x = net.transpose(x, 0, 2, 1, *range(3, 3 + len(inner)))
    return net.reshape(x, c, h, w, batch=batch)


@block
def gather_channels(net: Net, x: str, draw: st.DrawFn) -> str:
    """Channels in another order, some of them dropped or taken twice."""
    c = net.shapes[x][0]
    order = [int(i) for i in net.rng.permutation(c)]
    kind = pick(draw, "permuted", "dropped", "twice")
    if kind == "dropped":
        order = order[: max(1, c - 2)]
    elif kind == "twice" and c < MAX_CHANNELS:
        order.append(order[0])
    return net.gather(x, order)


# --- what cannot be split ---------------------------------------------------------------------------


def _opaque(kind: str, net: Net, x: str, draw: st.DrawFn) -> str:
    c, h, w = net.shapes[x]
    if kind == "LRN":
        x = net.op("LRN", x, size=3, alpha=0.1, beta=0.75, bias=1.0)
    elif kind == "Softmax":
        x = net.op("Mul", net.op("Softmax", x, axis=1), net.const(float(c)))
    elif pick(draw, "channels", "all") == "channels":
        scale, bias = net.const(net.rng.uniform(0.6, 1.4, c)), net.const(net.normal(c, std=0.2))
        x = net.op("LayerNormalization", net.transpose(x, 0, 2, 3, 1), scale, bias, axis=-1)
        x = net.transpose(x, 0, 3, 1, 2)
    else:
        scale = net.const(net.rng.uniform(0.6, 1.4, (c, h, w)))
        x = net.op("LayerNormalization", x, scale, net.const(net.normal(c, h, w, std=0.2)), axis=1)
    return conv_unit(net, x, draw, pick(draw, *WIDTHS))


OPAQUE: dict[str, Block] = {kind: partial(_opaque, kind) for kind in ("LRN", "Softmax", "LayerNormalization")}


@block
def opaque(net: Net, x: str, draw: st.DrawFn) -> str:
    """An operator that mixes channels without a weight, then a conv."""
    kind = pick(draw, *OPAQUE)
    net.tags.append(f"opaque:{kind}")
    return OPAQUE[kind](net, x, draw)
