"""What the blocks of random classifiers are put together from: activations, convs with what follows them, branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import strategies as st
from net_builder import RELU_GAIN, Net

T = TypeVar("T")
Block = Callable[[Net, str, st.DrawFn], str]

MAX_CHANNELS = 48
WIDTHS = (8, 5, 13, 16, 24, 7, 12, 1)


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


def _plain(op: str, **attrs: Any) -> Callable[[Net, str], str]:
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
    return activate(net, x, draw) if act and pick(draw, False, True, True) else x


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
