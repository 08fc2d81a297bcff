"""What the format allows besides operators: branches, functions, shared weights, inputs and outputs nobody reads."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from patterns.base import around, ending, norm, number, pattern, positive
from patterns.traced import classic, dynamo


@pattern(each=["initializer", "shape"])
def branches_with_a_known_condition(known: str) -> onnx.ModelProto:
    """An If whose condition can be known: given, or a comparison of shapes as torch.jit scripts write it."""
    given = "Identity(yes)" if known == "initializer" else "Equal(eight, n)"
    return around(
        f"""h = Shape(x)  n = Gather<axis=0>(h, i1)  c = {given}
        y = If (c) <then_branch = kept () => (float[N,8,8,8] t) {{ t = Relu(x) }},
                    else_branch = cut () => (float[N,8,8,8] r) {{ r = Neg(x) }}>""",
        yes=np.array(True), i1=np.array(1), eight=np.array(8),
    )  # fmt: skip


@pattern()
def squeeze_behind_a_branch() -> onnx.ModelProto:
    """torch's Squeeze of an axis whose length the exporter did not know: If length is 1 then Squeeze else Identity."""
    return ending(
        """g = ReduceMean<axes=[2,3], keepdims=1>(z)  h = Shape(g)  n = Gather<axis=0>(h, i3)  c = Equal(n, i1)
        q = If (c) <then_branch = kept () => (float[N,16,1] t) { t = Squeeze(g, last) },
                    else_branch = cut () => (float[N,16,1,1] r) { r = Identity(g) }>
        f = Flatten(q)  logits = Gemm<transB=1>(f, wl, bl)""",
        i3=np.array(3), i1=np.array(1), last=[3],
    )  # fmt: skip


@pattern()
def input_that_nothing_reads() -> onnx.ModelProto:
    model = around("y = Sigmoid(x)")
    model.graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, [1, 4]))
    return model


@pattern()
def initializers_listed_as_inputs() -> onnx.ModelProto:
    """As files before IR version 4 had to."""
    model = around("n = BatchNormalization(x, ns, nb, nm, nv)  y = Relu(n)", norm("n", 8))
    for i in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)))
    return model


@pattern()
def initializers_that_nothing_reads() -> onnx.ModelProto:
    return around("y = Sigmoid(x)  dead = Conv(x, wd)  deader = Relu(dead)", wd=(4, 8, 1, 1), spare=(7, 5))


@pattern()
def weights_in_constant_nodes() -> onnx.ModelProto:
    """All initializers turned into Constant nodes, as exports without names for them do."""
    model = around("c = Conv<pads=[1,1,1,1]>(x, wc, bc)  y = Clip(c, low)", wc=(8, 8, 3, 3), bc=(8,), low=number(0.0))
    made = [helper.make_node("Constant", [], [i.name], value=i) for i in model.graph.initializer]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pattern()
def every_kind_of_constant_node() -> onnx.ModelProto:
    return around(
        """a = Constant<value_float=0.5>()  b = Constant<value_ints=[0,-1,8,8]>()  c = Constant<value_floats=[0.1]>()
        n = Constant<value_int=1>()  k = Add(x, a)  r = Reshape(k, b)  t = Cast<to=1>(n)  u = Mul(r, t)
        y = Sub(u, c)"""
    )


@pattern()
def constant_of_shape() -> onnx.ModelProto:
    return around("o = ConstantOfShape<value=float[1] {0.25}>(to)  y = Add(x, o)", to=[8, 8, 8])


@pattern()
def two_convs_with_one_weight() -> onnx.ModelProto:
    """The same map twice, once with the result of the first."""
    return around(
        "a = Conv<pads=[1,1,1,1]>(x, wc, bc)  r = Relu(a)  y = Conv<pads=[1,1,1,1]>(r, wc, bc)",
        wc=(8, 8, 3, 3),
        bc=(8,),
    )


@pattern()
def two_dilations_of_one_weight() -> onnx.ModelProto:
    """TridentNet: one weight, three dilations, side by side."""
    return around(
        """a = Conv<pads=[1,1,1,1]>(x, wc, bc)  b = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, wc, bc)
        c = Conv<pads=[3,3,3,3], dilations=[3,3]>(x, wc, bc)  y = Sum(a, b, c)""",
        wc=(8, 8, 3, 3), bc=(8,),
    )  # fmt: skip


@pattern()
def conv_and_linear_layer_with_one_weight() -> onnx.ModelProto:
    """A 1x1 conv, and a MatMul that reads the same weight through Reshape and Transpose."""
    return around(
        """a = Conv(x, wc)  w = Reshape(wc, two)  wt = Transpose<perm=[1,0]>(w)
        g = ReduceMean<axes=[2,3], keepdims=0>(x)
        m = MatMul(g, wt)  u = Unsqueeze(m, hw)  y = Add(a, u)""",
        wc=(8, 8, 1, 1), two=[8, 8], hw=[2, 3],
    )  # fmt: skip


@pattern()
def one_bias_for_several() -> onnx.ModelProto:
    """A bias and the scale of a norm are one initializer, and so are all of another norm's shifts."""
    return around(
        """a = Conv<pads=[1,1,1,1]>(x, wa, b)  r = Relu(a)  c = Conv<pads=[1,1,1,1]>(r, wc, b)  t = Add(c, x)
        n = BatchNormalization(t, v, b, b, v)  y = Relu(n)""",
        wa=(8, 8, 3, 3), wc=(8, 8, 3, 3), b=(8,), v=positive(8),
    )  # fmt: skip


class _Tied(nn.Module):
    """One block applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.block(0.5 * self.block(x))


@pattern(each=["classic", "dynamo"])
def block_applied_twice(exporter: str) -> onnx.ModelProto:
    return classic(_Tied()) if exporter == "classic" else dynamo(_Tied(), optimize=True)


@pattern(each=["plain", "mask", "training input", "ratio"])
def dropout(how: str) -> onnx.ModelProto:
    made = {
        "plain": "y = Dropout(i)",
        "mask": "y, mask = Dropout(i, r)",
        "training input": "y = Dropout(i, r, no)",
        "ratio": "y = Dropout<seed=3>(i, r)",
    }[how]
    return around(f"i = Identity(x)  {made}", r=number(0.4), no=np.array(False))


@pattern()
def chain_of_identities() -> onnx.ModelProto:
    """At the image, in the middle, and at the logits."""
    return ending(
        """i = Identity(z)  j = Identity(i)  g = GlobalAveragePool(j)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)
        logits = Identity(q)"""
    )


@pattern(
    each=["Softmax<axis=1>", "Softmax<axis=-1>", "LogSoftmax<axis=1>", "Sigmoid", "Softmax Identity", "Div Softmax"]
)
def tail(kind: str) -> onnx.ModelProto:
    """What may follow the logits; a temperature in the last case."""
    end = {
        "Softmax Identity": "k = Softmax<axis=1>(q)  logits = Identity(k)",
        "Div Softmax": "k = Div(q, two)  logits = Softmax<axis=1>(k)",
    }.get(kind, f"logits = {kind}(q)")
    return ending(f"g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  {end}", two=number(2))


@pattern(splits=0.8, each=["plain", "Softmax", "Flatten Softmax", "Squeeze"])
def logits_by_a_conv(end: str) -> onnx.ModelProto:
    """SqueezeNet: the classifier is a 1x1 conv; logits of shape (N, 10, 1, 1) unless flattened."""
    made, shape = {
        "plain": ("logits = GlobalAveragePool(c)", "N,10,1,1"),
        "Softmax": ("g = GlobalAveragePool(c)  logits = Softmax<axis=1>(g)", "N,10,1,1"),
        "Flatten Softmax": ("g = GlobalAveragePool(c)  f = Flatten(g)  logits = Softmax(f)", "N,10"),
        "Squeeze": ("g = GlobalAveragePool(c)  logits = Squeeze(g, hw)", "N,10"),
    }[end]
    return ending(f"c = Conv(z, wc, bl)  {made}", logits=shape, wc=(10, 16, 1, 1), hw=[2, 3])


@pattern(each=["local", "nested"])
def function_of_the_file(how: str) -> onnx.ModelProto:
    """A model-local function, one of them built of the other."""
    inner = '<domain: "own", opset_import: ["" : 17]> Swish (a) => (b) { h = Sigmoid(a) b = Mul(a, h) }'
    outer = (
        '<domain: "own", opset_import: ["" : 17, "own" : 1]> Block (a, w) => (b) '
        "{ c = Conv<pads=[1,1,1,1]>(a, w) d = own.Swish(c) b = Add(d, a) }"
    )
    functions, made = (inner, "y = own.Swish(x)") if how == "local" else (inner + outer, "y = own.Block(x, wc)")
    return around(made, functions=functions, wc=(8, 8, 3, 3))


class _Blocks(nn.Module):
    """A list of blocks with skips, which an exporter may keep as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 1), nn.GELU()) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = 0.7 * (x + block(x))
        return torch.clamp(x, max=4)


@pattern()
def modules_of_the_dynamo_exporter() -> onnx.ModelProto:
    return dynamo(_Blocks())


@pattern()
def names_that_need_care() -> onnx.ModelProto:
    """Slashes, dots, colons, spaces, and a name that this program gives itself."""
    model = around("a = Relu(x)  y = Identity(a)")
    names: dict[str, str] = {
        "x": "/stem/act.0/Relu_output_0",
        "e": "e.s1",
        "z": "tower:0 (main)",
        "image": "data/img:0",
    }
    for node in model.graph.node:
        for group in (node.input, node.output):
            group[:] = [names.get(n, n) for n in group]
        node.name = f"{node.op_type}: {node.output[0]}/."
    model.graph.input[0].name = names["image"]
    return model
