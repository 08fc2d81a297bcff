"""The blocks of random classifiers: each takes a feature map (C, H, W) of a `Net` and returns another.

What a block leaves open it draws, the simplest choice first, so that hypothesis shrinks towards it. Adding one is one
function with `@block`, which keeps within `MAX_CHANNELS`.
"""

from __future__ import annotations

from hypothesis import strategies as st
from net_builder import END, RELU_GAIN, Net, Shape
from random_parts import (
    MAX_CHANNELS,
    WIDTHS,
    Block,
    activate,
    branch,
    conv_unit,
    depthwise,
    finish,
    join,
    pick,
    squeeze_excite,
    stride_for,
    with_multiple,
)

PADS: tuple[Shape | str, ...] = ("same", "valid", (0, 0, 1, 1), (2, 1, 0, 1), "auto")
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Register a block under the name of its function."""
    name = function.__name__
    if name in BLOCKS:
        raise ValueError(f"block {name} is registered already; choose another name")
    BLOCKS[name] = function
    return function


# --- convolutions -----------------------------------------------------------------------------------


@block
def plain_conv(net: Net, x: str, draw: st.DrawFn) -> str:
    """A conv of any geometry."""
    kernel = pick(draw, (1, 1), (3, 3), (5, 5), (3, 1))
    dilation = pick(draw, 1, 2)
    pads: Shape | str = pick(draw, *PADS)
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


@block
def opaque(net: Net, x: str, draw: st.DrawFn) -> str:
    """Attention of channels to channels: products of two computed tensors, through which no channel can be told apart."""
    c, h, w = net.shapes[x]
    flat = net.reshape(x, c, h * w)
    part = net.op("Mul", flat, net.const(1 / (h * w)))
    scores = net.op("MatMul", part, net.transpose(flat, 0, 2, 1), shape=(c, c))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), flat, shape=(c, h * w))
    return conv_unit(net, net.reshape(mixed, c, h, w), draw, pick(draw, *WIDTHS))
