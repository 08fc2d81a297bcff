"""More blocks of random classifiers: those that look at all channels at once (norms, gates by place, softmax over
branches) or that bring channels and places into another shape. See `random_blocks`, whose table they join."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from hypothesis import strategies as st
from net_builder import END, RELU_GAIN, Net, Shape
from random_blocks import block
from random_parts import MAX_CHANNELS, WIDTHS, activate, conv_unit, depthwise, finish, pick, stride_for, with_multiple

# A norm of few channels magnifies rounding by up to 1 / sqrt(epsilon); real nets have 1e-5 or 1e-6 over many channels.
EPSILON = 1e-3
LARGEST = 12  # no map grows beyond 2 * LARGEST


# --- pieces -----------------------------------------------------------------------------------------


def per_channel(net: Net, count: int, form: Shape) -> tuple[str, str]:
    """Constants that scale and shift `count` channels, in the shape `form`."""
    scale, shift = net.rng.uniform(0.6, 1.4, count), net.normal(count, std=0.2)
    return net.const(scale.reshape(form)), net.const(shift.reshape(form))


def scaled_and_shifted(net: Net, x: str, draw: st.DrawFn) -> str:
    """(C, H, W) times and plus one constant per channel."""
    c = net.shapes[x][0]
    scale, shift = per_channel(net, c, pick(draw, (c, 1, 1), (1, c, 1, 1)))
    return net.op("Add", net.op("Mul", x, scale), shift)


def reduced(net: Net, x: str, op: str, *axes: int, keepdims: bool = True) -> str:
    """A Reduce over `axes`, which count the batch."""
    shape = tuple(1 if a in axes else n for a, n in enumerate(net.shapes[x], start=1) if keepdims or a not in axes)
    if op == "ReduceSum":  # the first whose axes became an input
        return net.op(op, x, net.const(list(axes)), shape=shape, keepdims=int(keepdims))
    return net.op(op, x, shape=shape, axes=axes, keepdims=int(keepdims))


def unsqueezed(net: Net, x: str, axis: int) -> str:
    """One more axis of length 1; `axis` counts the batch."""
    shape = list(net.shapes[x])
    shape.insert(axis - 1, 1)
    return net.op("Unsqueeze", x, net.const([axis]), shape=tuple(shape))


def dense(net: Net, x: str, out: int, *, gain: float = 1.0) -> str:
    """A linear layer over the last axis, whatever stands before it."""
    *places, features = net.shapes[x]
    weight, bias = net.normal(features, out, std=gain / sqrt(features)), net.normal(out, std=0.2)
    return net.op("Add", net.op("MatMul", x, net.const(weight), shape=(*places, out)), net.const(bias))


def gelu(net: Net, x: str) -> str:
    """GELU as opset 17 spells it."""
    bent = net.op("Erf", net.op("Div", x, net.const(sqrt(2))))
    return net.op("Mul", net.op("Mul", x, net.op("Add", bent, net.const(1.0))), net.const(0.5))


def resize(net: Net, x: str, draw: st.DrawFn, size: Sequence[int]) -> str:
    """`x` brought to `size` (H, W) by scales."""
    c, *before = net.shapes[x]
    mode, place = pick(
        draw,
        ("nearest", "asymmetric"),
        ("nearest", "half_pixel"),
        ("linear", "half_pixel"),
        ("linear", "align_corners"),
    )
    # The length is rounded down: a little more than the quotient makes sure of it.
    scales = [
        1.0,
        1.0,
        *(new / old if new % old == 0 else (new + 0.01) / old for old, new in zip(before, size, strict=True)),
    ]
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": place}
    if mode == "nearest":
        attrs["nearest_mode"] = pick(draw, "floor", "round_prefer_floor")
    return net.op("Resize", x, "", net.const(scales), shape=(c, *size), **attrs)


def added(net: Net, draw: st.DrawFn, x: str, y: str) -> str:
    """`y`, or the residual x + y."""
    return net.op("Add", *draw(st.permutations((x, y)))) if draw(st.booleans()) else y


# --- norms ------------------------------------------------------------------------------------------


@block
def layer_norm(net: Net, x: str, draw: st.DrawFn) -> str:
    """A norm over the channels of every place, as one operator between two transpositions or in its parts; behind it
    maybe the linear layers of ConvNeXt."""
    c = net.shapes[x][0]
    if pick(draw, "operator", "parts") == "parts":
        y = _norm_in_parts(net, x, draw)
        return added(net, draw, x, net.conv(y, c) if draw(st.booleans()) else y)
    y = net.transpose(x, 0, 2, 3, 1)
    y = net.op("LayerNormalization", y, *per_channel(net, c, (c,)), axis=-1, epsilon=EPSILON)
    if draw(st.booleans()):
        y = gelu(net, dense(net, y, min(MAX_CHANNELS, 2 * c + pick(draw, 0, 3)), gain=RELU_GAIN))
        y = dense(net, y, c)
    if draw(st.booleans()):  # the layer scale
        y = net.op("Mul", y, net.const(net.rng.uniform(0.3, 1, c)))
    return added(net, draw, x, net.transpose(y, 0, 3, 1, 2))


def _norm_in_parts(net: Net, x: str, draw: st.DrawFn) -> str:
    centred = net.op("Sub", x, reduced(net, x, "ReduceMean", 1))
    squared = pick(draw, "Pow", "Mul")
    squares = net.op("Pow", centred, net.const(2.0)) if squared == "Pow" else net.op("Mul", centred, centred)
    variance = net.op("Add", reduced(net, squares, "ReduceMean", 1), net.const(EPSILON))
    return scaled_and_shifted(net, net.op("Div", centred, net.op("Sqrt", variance)), draw)


@block
def length_norm(net: Net, x: str, draw: st.DrawFn) -> str:
    """Channels over their length at every place, by LpNormalization, ReduceL2 or a root mean square."""
    c = net.shapes[x][0]
    spelling = pick(draw, "LpNormalization", "ReduceL2", "rms", "ReduceL1")
    if spelling == "LpNormalization":
        x = net.op("LpNormalization", x, axis=1, p=pick(draw, 2, 1))
    elif spelling == "rms":
        mean = reduced(net, net.op("Mul", x, x), "ReduceMean", 1)
        x = net.op("Div", x, net.op("Sqrt", net.op("Add", mean, net.const(EPSILON))))
    else:
        length = reduced(net, x, spelling, 1)
        least = pick(draw, "Clip", "Add")
        x = net.op("Div", x, net.op(least, length, net.const(EPSILON)))
    return net.op("Mul", x, net.const(net.rng.uniform(0.5, 1, (c, 1, 1)) * (1 if spelling == "rms" else sqrt(c))))


@block
def local_response(net: Net, x: str, draw: st.DrawFn) -> str:
    """AlexNet's norm over neighbouring channels."""
    return net.op("LRN", x, size=pick(draw, 3, 5), alpha=pick(draw, 0.1, 0.5), beta=0.75, bias=1.0)


@block
def group_norm(net: Net, x: str, draw: st.DrawFn) -> str:
    """The norm of one, two or four groups of channels, as an InstanceNormalization between two reshapes."""
    groups = pick(draw, 1, 2, 4)
    x = with_multiple(net, x, draw, groups)
    c, h, w = net.shapes[x]
    y = net.op("Reshape", x, net.const([0, groups, -1]), shape=(groups, c // groups * h * w))
    y = net.op("InstanceNormalization", y, net.const(np.ones(groups)), net.const(np.zeros(groups)), epsilon=EPSILON)
    y = scaled_and_shifted(net, net.reshape(y, c, h, w, batch=pick(draw, 0, -1)), draw)
    return activate(net, y, draw) if draw(st.booleans()) else y


@block
def instance_norm(net: Net, x: str, draw: st.DrawFn) -> str:
    """Every channel by itself: the other end of the norms of groups."""
    c = net.shapes[x][0]
    y = net.op("InstanceNormalization", x, *per_channel(net, c, (c,)), epsilon=EPSILON)
    return added(net, draw, x, y)


@block
def response_norm(net: Net, x: str, draw: st.DrawFn) -> str:
    """ConvNeXt V2's global response norm: each channel's length in space, over the mean of all."""
    c = net.shapes[x][0]
    is_last = pick(draw, False, True)  # the channels, as the original has them
    y = net.transpose(x, 0, 2, 3, 1) if is_last else x
    channel, space = (3, (1, 2)) if is_last else (1, (2, 3))
    length = reduced(net, y, "ReduceL2", *space)
    mean = net.op("Add", reduced(net, length, "ReduceMean", channel), net.const(1e-6))
    z = net.op("Mul", y, net.op("Div", length, mean))
    scale, shift = per_channel(net, c, (c,) if is_last else (1, c, 1, 1))
    z = net.op("Add", net.op("Add", net.op("Mul", scale, z, shape=net.shapes[z]), shift), y)
    return net.transpose(z, 0, 3, 1, 2) if is_last else z


@block
def channel_softmax(net: Net, x: str, draw: st.DrawFn) -> str:
    """Softmax over the channels, scaled to what it was; maybe as weights of the channels."""
    y = net.op("Mul", net.op("Softmax", x, axis=pick(draw, 1, -3)), net.const(float(net.shapes[x][0])))
    return net.op("Mul", x, net.op("Min", y, net.const(2.0))) if draw(st.booleans()) else y


# --- gates ------------------------------------------------------------------------------------------


@block
def spatial_gate(net: Net, x: str, draw: st.DrawFn) -> str:
    """One value per place for all channels, made of their mean and/or maximum or by a conv; multiplied or added."""
    kind = pick(draw, "conv", "mean", "max", "both")
    if kind == "conv":
        gate = net.conv(x, 1, kernel=pick(draw, (1, 1), (3, 3)), gain=2.0)
    else:
        seen = [reduced(net, x, op, 1) for op in ("ReduceMean", "ReduceMax") if kind in ("both", op[6:].lower())]
        gate = net.concat(*seen) if kind == "both" else seen[0]
        if kind == "both" or draw(st.booleans()):
            gate = net.conv(gate, 1, kernel=pick(draw, (3, 3), (5, 5)), gain=2.0)
    op = pick(draw, "Mul", "Add")
    if op == "Mul" or draw(st.booleans()):
        gate = net.op("Sigmoid", gate)
    x = net.op(op, *draw(st.permutations((x, gate))), shape=net.shapes[x])
    return activate(net, x, draw) if draw(st.booleans()) else x


@block
def expanded_gate(net: Net, x: str, draw: st.DrawFn) -> str:
    """What global pooling sees, brought to the map's size by Expand: multiplied as a gate, or appended as context."""
    c, h, w = net.shapes[x]
    is_gate = pick(draw, "gate", "context") == "gate"
    width = c if is_gate else min(pick(draw, 4, 5), MAX_CHANNELS - c)
    hidden = net.op("Relu", net.conv(net.global_pool(x), max(1, c // 4), gain=2.0))
    seen = net.conv(hidden, max(1, width), gain=2.0)
    target = pick(draw, (1, 1, h, w), (1, net.shapes[seen][0], h, w))
    spread = net.op("Expand", net.op("Sigmoid", seen), net.const(list(target)), shape=(net.shapes[seen][0], h, w))
    if is_gate:
        return net.op("Mul", *draw(st.permutations((x, spread))))
    return net.concat(x, spread) if width > 0 else net.op("Mul", x, spread)


@block
def neighbour_gate(net: Net, x: str, draw: st.DrawFn) -> str:
    """ECA-Net's gate: a conv that slides over the pooled channels."""
    c = net.shapes[x][0]
    pooled = net.global_pool(x, spelling=pick(draw, "GlobalAveragePool", "ReduceMean"))
    is_reshaped = pick(draw, "transposed", "reshaped") == "reshaped"
    if is_reshaped:
        line = net.reshape(pooled, 1, c)
    else:
        line = net.transpose(net.op("Squeeze", pooled, net.const([3]), shape=(c, 1)), 0, 2, 1)
    weight = net.const(net.normal(1, 1, 3, std=1.0))
    gate = net.op("Sigmoid", net.op("Conv", line, weight, kernel_shape=(3,), pads=(1, 1)))
    gate = net.reshape(gate, c, 1, 1) if is_reshaped else unsqueezed(net, net.transpose(gate, 0, 2, 1), 3)
    return net.op("Mul", *draw(st.permutations((x, gate))), shape=net.shapes[x])


@block
def split_attention(net: Net, x: str, draw: st.DrawFn) -> str:
    """Two branches weighed per channel by a softmax over the two: two convs stacked, or the halves of a grouped one."""
    c = pick(draw, 8, 5, 12)
    if pick(draw, "stacked", "radix") == "stacked":
        paths = [net.conv(x, c, kernel=(3, 3), dilation=d, gain=RELU_GAIN) for d in pick(draw, (1, 1), (1, 2))]
        rows = [unsqueezed(net, net.op("Relu", path), 1) for path in paths]
        both = net.op("Concat", *rows, shape=(2, *net.shapes[paths[0]]), axis=1)
    else:
        x = with_multiple(net, x, draw, 2)
        wide = net.op("Relu", net.conv(x, 2 * c, kernel=(3, 3), groups=pick(draw, 1, 2), gain=RELU_GAIN))
        both = net.reshape(wide, 2, c, *net.shapes[wide][1:])
    pooled = net.global_pool(reduced(net, both, "ReduceSum", 1, keepdims=False))
    hidden = net.op("Relu", net.conv(pooled, pick(draw, 4, 3), gain=RELU_GAIN))
    chosen = net.reshape(net.conv(hidden, 2 * c, gain=2.0), 2, c, 1, 1, batch=pick(draw, 0, -1))
    weighed = net.op("Mul", both, net.op("Softmax", chosen, axis=1))
    return reduced(net, weighed, "ReduceSum", 1, keepdims=False)


# --- places -----------------------------------------------------------------------------------------


def small_enough(net: Net, x: str) -> bool:
    """Whether the map may be doubled."""
    return max(net.shapes[x][1:]) <= LARGEST


@block
def resized(net: Net, x: str, draw: st.DrawFn) -> str:
    """A map doubled by Resize, or pooled, convolved, brought back and added."""
    c, *size = net.shapes[x]
    if small_enough(net, x) and pick(draw, "doubled", "hourglass") == "doubled":
        return resize(net, x, draw, [2 * n for n in size])
    low = net.pool(x, "AveragePool", kernel=2, stride=2) if min(size) > 1 else x
    low = conv_unit(net, low, draw, c) if draw(st.booleans()) else low
    return net.op("Add", *draw(st.permutations((x, resize(net, low, draw, size)))))


@block
def depth_space(net: Net, x: str, draw: st.DrawFn) -> str:
    """Places become channels by SpaceToDepth, or channels places by DepthToSpace, between two convs."""
    if not small_enough(net, x) or pick(draw, "deep", "wide") == "deep":
        x = conv_unit(net, x, draw, pick(draw, 4, 5, 8))
        c, h, w = net.shapes[x]
        if h % 2 or w % 2:
            x = net.pad(x, (0, 0, 0), (0, h % 2, w % 2))
        x = net.op("SpaceToDepth", x, shape=(4 * c, (h + 1) // 2, (w + 1) // 2), blocksize=2)
    else:
        x = conv_unit(net, x, draw, 4 * pick(draw, 4, 3, 1))
        c, h, w = net.shapes[x]
        x = net.op("DepthToSpace", x, shape=(c // 4, 2 * h, 2 * w), blocksize=2, mode=pick(draw, "DCR", "CRD"))
    return conv_unit(net, x, draw, pick(draw, *WIDTHS)) if draw(st.booleans()) else x


@block
def transposed(net: Net, x: str, draw: st.DrawFn) -> str:
    """ConvTranspose with one or two groups or one per channel, of stride 1 or 2."""
    kind = pick(draw, "full", "groups", "depthwise")
    x = with_multiple(net, x, draw, 2) if kind == "groups" else x
    c, *size = net.shapes[x]
    groups = {"full": 1, "groups": 2, "depthwise": c}[kind]
    out = c if kind == "depthwise" else groups * pick(draw, 4, 3, 8)
    stride = pick(draw, 1, 2) if small_enough(net, x) else 1
    kernel, pad, more = (3, 1, 0) if stride == 1 else pick(draw, (2, 0, 0), (4, 1, 0), (3, 1, 1))
    fan_in = c // groups * kernel**2 / stride**2
    weights = [net.const(net.normal(c, out // groups, kernel, kernel, std=RELU_GAIN / sqrt(fan_in)))]
    if draw(st.booleans()):
        weights.append(net.const(net.normal(out, std=0.2)))
    place: dict[str, Any] = {"kernel_shape": (kernel,) * 2, "strides": (stride,) * 2, "pads": (pad,) * 4}
    shape = (out, *(n * stride for n in size))
    return finish(
        net, net.op("ConvTranspose", x, *weights, shape=shape, group=groups, output_padding=(more,) * 2, **place), draw
    )


@block
def image_again(net: Net, x: str, draw: st.DrawFn) -> str:
    """The image once more, resized to the map: appended, added or multiplied. Its channels belong to nobody."""
    c, *size = net.shapes[x]
    picture = net.image if list(net.shapes[net.image][1:]) == size else resize(net, net.image, draw, size)
    count = net.shapes[picture][0]
    op = pick(draw, "Concat", "Add", "Mul")
    if op == "Concat" and c + count <= MAX_CHANNELS:
        return net.concat(*draw(st.permutations((x, picture))))
    x = x if c == count else net.conv(x, count)
    return net.op("Add" if op == "Concat" else op, *draw(st.permutations((x, picture))))


# --- parts of the channels --------------------------------------------------------------------------


@block
def ghost(net: Net, x: str, draw: st.DrawFn) -> str:
    """GhostNet: channels, then as many cheap ones made of them, of which not all are kept."""
    primary = conv_unit(net, x, draw, pick(draw, 4, 5, 8), stride=stride_for(net, x, draw))
    both = net.concat(primary, depthwise(net, primary, draw))
    return net.slice(both, (1, 0, net.shapes[both][0] - pick(draw, 1, 3, 0), 1))


@block
def partial_residual(net: Net, x: str, draw: st.DrawFn) -> str:
    """ReXNet: the input is added to the first channels of a wider map, or the first of the input to a narrower one."""
    c = net.shapes[x][0]
    more = pick(draw, 4, 3, -1)
    out = c + more if 0 < c + more <= MAX_CHANNELS else c
    y = finish(net, conv_unit(net, x, draw, out), draw, act=False)
    if out < c:
        return net.op("Add", y, net.slice(x, (1, 0, out, 1)))
    if out == c:
        return net.op("Add", y, x)
    summed = net.op("Add", *draw(st.permutations((net.slice(y, (1, 0, c, 1)), x))))
    return net.concat(summed, net.slice(y, (1, c, END, 1)))


@block
def zero_channels(net: Net, x: str, draw: st.DrawFn) -> str:
    """Channels of zeros before or behind the others, which norms and groups then count."""
    before, after = pick(draw, (0, 3), (2, 2), (1, 0))
    if net.shapes[x][0] + before + after > MAX_CHANNELS:
        return activate(net, x, draw)
    return net.pad(x, (before, 0, 0), (after, 0, 0))
