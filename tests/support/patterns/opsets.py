"""One net in the words of every opset: what was an attribute becomes an input, and operators come and go."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from patterns.base import CLASSES, LAST, around, ending, net, norm, number, pattern

NEWEST = 28  # what the installed onnxruntime runs


def _spelled(opset: int) -> str:
    """Norm, clip, dropout, upsampling and sums, as the opset spells them."""
    norm_attrs = "<spatial=1>" if opset < 9 else ""
    clipped = "Clip<min=0.1, max=2.0>(n)" if opset < 11 else "Clip(n, low, high)"
    dropped = "Dropout<ratio=0.3>(c)" if opset < 12 else "Dropout(c, ratio)"
    pooled = "d = AveragePool<kernel_shape=[2,2], strides=[2,2]>(dr)"
    if opset < 9:
        up = 'Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(d)'
    elif opset < 10:
        up = "Upsample(d, by)"
    else:
        up = "Resize(d, by)" if opset < 11 else "Resize(d, roi, by)"
    summed = "ReduceSum<axes=[3], keepdims=1>(u)" if opset < 13 else "ReduceSum<keepdims=1>(u, last)"
    return f"""n = BatchNormalization{norm_attrs}(x, ns, nb, nm, nv)  c = {clipped}  dr = {dropped}  {pooled}  u = {up}
        m = {summed}  k = Mul(m, part)  h = Sigmoid(k)  y = Mul(u, h)"""


@pattern(each=[7, 8, 9, 10, 11, 12, 13, 17, 18, 21, 23, 25, NEWEST])
def opset(version: int) -> onnx.ModelProto:
    model = around(
        _spelled(version),
        norm("n", 8),
        opset=version,
        low=number(0.1),
        high=number(2.0),
        ratio=number(0.3),
        by=[1.0, 1.0, 2.0, 2.0],
        last=[3],
        part=number(1 / 8),
        roi=np.zeros(0, np.float32),
    )
    return _old(model) if version < 9 else model


def _old(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file of that time: IR version 3, in which every initializer is an input too."""
    model.ir_version = 3
    for i in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)))
    onnx.checker.check_model(model)
    return model


@pattern(each=[11, 13, 21, 23])
def converted_by_onnx(version: int) -> onnx.ModelProto:
    """A net of opset 9, upgraded by onnx's own converter."""
    model = around(
        """n = BatchNormalization(x, ns, nb, nm, nv)  r = Relu(n)  c = Conv(r, wc)  t = Add(c, x)
        q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(t)  g = GlobalAveragePool(q)  h = Sigmoid(g)
        y = Mul(q, h)""",
        norm("n", 8),
        opset=9, wc=(8, 8, 1, 1),
    )  # fmt: skip
    return version_converter.convert_version(model, version)


def _ends(opset: int) -> str:
    """Squeeze, Unsqueeze, Split, Slice, Pad and Softmax, as the opset spells them."""
    first = opset < 13
    squeezed = "Squeeze<axes=[2,3]>(g)" if first else "Squeeze(g, hw)"
    raised = "Unsqueeze<axes=[2,3]>(f)" if first else "Unsqueeze(f, hw)"
    split = "Split<axis=1, split=[4,12]>(r)" if first else "Split<axis=1>(r, parts)"
    if opset < 10:
        cut = "Slice<axes=[1], starts=[2], ends=[12]>(b)"
    else:
        cut = "Slice(b, two, twelve, one)"
    padded = "Pad<pads=[0,0,1,1,0,0,1,1]>(z)" if opset < 11 else "Pad(z, by)"
    return f"""q = {padded}  g = GlobalAveragePool(q)  f = {squeezed}  r = {raised}  a, b = {split}  v = {cut}
        w = Concat<axis=1>(v, a)  e2 = Flatten(w)  l = Gemm<transB=1>(e2, wh, bl)  logits = Softmax<axis=1>(l)"""


@pattern(each=[7, 9, 11, 13, 17, NEWEST])
def opset_of_movements(version: int) -> onnx.ModelProto:
    model = ending(
        _ends(version),
        opset=version,
        hw=[2, 3],
        parts=[4, 12],
        one=[1],
        two=[2],
        twelve=[12],
        by=[0, 0, 1, 1, 0, 0, 1, 1],
        wh=(CLASSES, 14),
    )
    return _old(model) if version < 9 else model


@pattern(each=[7, 11, 12])
def softmax_over_all_later_axes(version: int) -> onnx.ModelProto:
    """Before opset 13 a Softmax flattened what follows its axis: over (C, H, W) together here."""
    return ending(
        """k = Softmax<axis=1>(z)  b = Mul(k, many)  a = Add(b, z)  g = GlobalAveragePool(a)  f = Flatten(g)
        logits = Gemm<transB=1>(f, wl, bl)""",
        opset=version, many=number(100),
    )  # fmt: skip


@pattern(each=[7, 11])
def reshape_and_linear_layers_of_old_files(version: int) -> onnx.ModelProto:
    """caffe2 and CNTK: the weight is reshaped in the graph, and biases have the shape (C, 1, 1)."""
    shape = f"(float[1,3,8,8] image) => (float[1,{CLASSES}] logits)"
    return net(
        f"""{shape} {{
            a = Conv<auto_pad="SAME_UPPER", kernel_shape=[5,5], strides=[1,1]>(image, ws)  b = Add(a, k)  r = Relu(b)
            p = MaxPool<auto_pad="NOTSET", kernel_shape=[2,2], strides=[2,2], pads=[0,0,0,0]>(r)
            c = Conv<auto_pad="SAME_UPPER", kernel_shape=[3,3]>(p, we)  d = Add(c, j)  z = Relu(d)
            q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(z)  f = Reshape(q, flat)  w = Reshape(wf, matrix)
            m = MatMul(f, w)  logits = Add(m, row)
        }}""",
        opset=version, ws=(8, 3, 5, 5), k=(8, 1, 1), we=(LAST, 8, 3, 3), j=(LAST, 1, 1), flat=[1, 64],
        wf=(16, 2, 2, 10), matrix=[64, 10], row=(1, 10),
    )  # fmt: skip


@pattern()
def prelu_of_opset_7() -> onnx.ModelProto:
    """The first opset in which slopes broadcast from the right."""
    return around(
        "m = Sub(x, one)  y = PRelu(m, slope)", opset=7, one=number(1), slope=np.full((8, 1, 1), 0.2, np.float32)
    )


@pattern()
def stale_value_infos() -> onnx.ModelProto:
    """Shapes written into the file when the batch was 1, though the input says N."""
    model = around("y = Sigmoid(x)")
    model.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8]))
    return model


@pattern()
def output_of_unknown_lengths() -> onnx.ModelProto:
    model = around("y = Sigmoid(x)")
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    return model


@pattern()
def metadata_and_other_domains() -> onnx.ModelProto:
    """Imports of domains that no node is of, a doc string, properties."""
    model = around("y = Sigmoid(x)")
    model.opset_import.extend([helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)])
    model.doc_string, model.producer_name = "made by hand", "nobody"
    helper.set_model_props(model, {"classes": "0..9"})
    return model
