"""Batch sizes: fixed to 1, hard-coded in Reshape, spelled 0 or -1, and named."""

from __future__ import annotations

import onnx

from patterns.base import around, ending, pattern

POOLED = "q = MaxPool<kernel_shape=[4,4], strides=[4,4]>(z)"


@pattern(each=["1,-1", "1,64", "-1,64", "0,-1", "0,64"])
def flatten_by_reshape(shape: str) -> onnx.ModelProto:
    """What the tracer saw (a batch of 1) or what the author wrote."""
    to = [int(n) for n in shape.split(",")]
    return ending(
        f"{POOLED}  f = Reshape(q, to)  logits = Gemm<transB=1>(f, wf, bl)",
        batch="1" if to[0] == 1 else "N", to=to, wf=(10, 64),
    )  # fmt: skip


@pattern(each=["1,-1", "1,16", "-1,16", "0,16", "0,-1"])
def pooled_flatten_by_reshape(shape: str) -> onnx.ModelProto:
    to = [int(n) for n in shape.split(",")]
    return ending(
        "g = GlobalAveragePool(z)  f = Reshape(g, to)  logits = Gemm<transB=1>(f, wl, bl)",
        batch="1" if to[0] == 1 else "N", to=to,
    )  # fmt: skip


@pattern()
def reshape_in_which_zero_is_a_length() -> onnx.ModelProto:
    """allowzero, and the batch of 1 that the tracer saw."""
    return ending(
        "g = GlobalAveragePool(z)  f = Reshape<allowzero=1>(g, to)  logits = Gemm<transB=1>(f, wl, bl)",
        batch="1",
        to=[1, -1],
    )


@pattern()
def concat_of_a_vector_with_itself_without_its_batch() -> onnx.ModelProto:
    return ending(
        """g = GlobalAveragePool(z)  v = Squeeze(g)  d = Concat<axis=0>(v, v)  u = Unsqueeze(d, front)
        logits = Gemm<transB=1>(u, wd, bl)""",
        batch="1", front=[0], wd=(10, 32),
    )  # fmt: skip


@pattern(each=["1", "0", "-1"])
def shuffle_with_batch(first: str) -> onnx.ModelProto:
    five, four = [int(first), 2, 4, 8, 8], [int(first), 8, 8, 8]
    return around(
        "q = Reshape(x, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  y = Reshape(t, four)",
        batch="1" if first == "1" else "N", five=five, four=four,
    )  # fmt: skip


@pattern()
def shuffle_with_a_free_axis_inside() -> onnx.ModelProto:
    """-1 stands for the batch in one Reshape, and for the channels in the other, whose batch is baked."""
    return around(
        "q = Reshape(x, five)  t = Transpose<perm=[0,2,1,3,4]>(q)  y = Reshape(t, four)",
        batch="1", five=[1, 2, -1, 8, 8], four=[1, -1, 8, 8],
    )  # fmt: skip


@pattern(splits=0.4)
def batch_merged_with_channels() -> onnx.ModelProto:
    """A map per channel through a one-channel conv: [N * C, 1, H, W], and back; no cut by channels, but static."""
    return around(
        "q = Reshape(x, alone)  c = Conv<pads=[1,1,1,1]>(q, wc)  y = Reshape(c, four)",
        alone=[-1, 1, 8, 8], four=[-1, 8, 8, 8], wc=(1, 1, 3, 3),
    )  # fmt: skip


@pattern()
def batch_squeezed_away() -> onnx.ModelProto:
    """A file made for single images: the batch of one is squeezed off before the classifier."""
    return ending(
        """g = GlobalAveragePool(z)  v = Squeeze(g, four)  m = Unsqueeze(v, zero)
        logits = Gemm<transB=1>(m, wl, bl)""",
        batch="1", four=[0, 2, 3], zero=[0],
    )  # fmt: skip


@pattern()
def squeeze_without_axes() -> onnx.ModelProto:
    """All axes of length one go, the batch too; a vector times the matrix, and the batch put back."""
    return ending(
        "g = GlobalAveragePool(z)  v = Squeeze(g)  u = MatMul(v, wt)  b = Add(u, bl)  logits = Unsqueeze(b, zero)",
        batch="1", zero=[0], wt=(16, 10),
    )  # fmt: skip


@pattern()
def gate_with_a_baked_batch() -> onnx.ModelProto:
    return around(
        """g = GlobalAveragePool(x)  v = Reshape(g, flat)  a = Gemm<transB=1>(v, wa, ba)  r = Relu(a)
        b = Gemm<transB=1>(r, wb, bb)  h = Sigmoid(b)  u = Reshape(h, four)  y = Mul(x, u)""",
        batch="1", flat=[1, 8], four=[1, 8, 1, 1], wa=(4, 8), ba=(4,), wb=(8, 4), bb=(8,),
    )  # fmt: skip


@pattern()
def expand_with_a_baked_batch() -> onnx.ModelProto:
    """A learned map spread over the batch of one that the tracer saw."""
    return around("w = Expand(table, to)  y = Add(x, w)", batch="1", table=(1, 8, 8, 8), to=[1, 8, 8, 8])


@pattern(splits=0.5)
def windows_as_rows_of_the_batch() -> onnx.ModelProto:
    """Windows become rows of the batch and come back, as in MobileViT and Swin; by channels only the last conv."""
    return around(
        """q = Reshape(x, cut)  t = Transpose<perm=[0,2,4,1,3,5]>(q)  w = Reshape(t, rows)
        c = Conv<pads=[1,1,1,1]>(w, wc, bc)  v = Reshape(c, grid)  u = Transpose<perm=[0,3,1,4,2,5]>(v)
        y = Reshape(u, four)""",
        cut=[-1, 8, 2, 4, 2, 4], rows=[-1, 8, 4, 4], grid=[-1, 2, 2, 8, 4, 4], four=[-1, 8, 8, 8], wc=(8, 8, 3, 3),
        bc=(8,),
    )  # fmt: skip
