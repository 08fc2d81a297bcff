"""Files as users bring them: what onnxruntime loads is loaded, and errors name the node, the value and a remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from chain_law import check_identity_law
from helpers import Array, assert_close, random_images, run
from onnx import TensorProto, helper
from patterns.base import Weight, around, ending, norm, number
from text_nets import chain

from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend import graph_from_proto, load_graph
from s2d_convert.frontend.equivalence import noise
from s2d_convert.frontend.proto import set_nodes

HEADS = """g = GlobalAveragePool(z)  f = Flatten(g)  a = Gemm<transB=1>(f, wl)  b = Gemm<transB=1>(f, wm)
    c = Unsqueeze(a, zero)  d = Unsqueeze(b, zero)  """
POOLED = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  "


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


# --- what loads --------------------------------------------------------------------------------------


def without_name(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def unsorted(model: onnx.ModelProto) -> None:
    set_nodes(model.graph, list(model.graph.node)[::-1])


def without_shapes(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.ClearField("shape")


def batch_zero(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 0


def every_axis_dynamic(model: onnx.ModelProto) -> None:
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim, ("batch", "channels", "h", "w"), strict=True):
        dim.Clear()
        dim.dim_param = name


@pytest.mark.parametrize(
    "change", [without_name, unsorted, without_shapes, batch_zero, every_axis_dynamic], ids=lambda f: f.__name__
)
def test_what_onnxruntime_loads_loads(tmp_path: Path, change: object) -> None:
    model, expected = chain(), chain()
    assert callable(change)
    change(model)
    graph = load_graph(saved(model, tmp_path), size=(8, 8) if change is every_axis_dynamic else None)
    images = noise((5, 3, 8, 8))
    assert_close(run(graph.to_model(), {"image": images}), run(expected, {"image": images}))


def one_by_one(model: onnx.ModelProto, images: Array) -> Array:
    return np.concatenate([run(model, {"image": image[None]})["logits"] for image in images])


@pytest.mark.parametrize("batch", ["1", "N"])
@pytest.mark.parametrize(
    "end",
    [
        "h = Concat<axis=0>(c, d)  logits = ReduceMean<axes=[0], keepdims=0>(h)",
        "h = Concat<axis=0>(c, d)  logits = ReduceMax<axes=[0], keepdims=0>(h)",
        "h = Concat<axis=0>(c, d)  logits = ReduceSum<keepdims=0>(h, zero)",
        "logits = ReduceMean<axes=[0], keepdims=0>(c)",
    ],
    ids=["mean", "max", "sum", "one head"],
)
def test_heads_stacked_on_a_new_axis_answer_any_batch(batch: str, end: str) -> None:
    model = ending(HEADS + end, batch=batch, wm=(10, 16), zero=[0])
    images = noise((5, 3, 8, 8))
    graph = graph_from_proto(model)
    assert_close(run(graph.to_model(), {"image": images})["logits"], one_by_one(model, images))
    (output,) = graph.to_model().graph.output
    assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim] == ["N", 10]


def test_such_a_net_is_one_stage_that_any_batch_fits() -> None:
    check_identity_law(
        ending(HEADS + "h = Concat<axis=0>(c, d)  logits = ReduceMean<axes=[0], keepdims=0>(h)", wm=(10, 16), zero=[0])
    )


def test_the_opset_of_the_file_is_told() -> None:
    model = chain()
    model.opset_import[0].version = 11
    graph = graph_from_proto(model)
    assert (graph.source_opset, graph.opset) == (11, 17)


# --- inputs ------------------------------------------------------------------------------------------


def with_inputs(model: onnx.ModelProto, **shapes: list[int]) -> onnx.ModelProto:
    for name, shape in shapes.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


@pytest.mark.parametrize("shape", [[1, 8, 1, 1], [], [8, 1, 1]])
@pytest.mark.parametrize("opset", [9, 11, 17])
def test_captured_constants_that_nothing_feeds_are_named(shape: list[int], opset: int) -> None:
    model = around("y = Add(x, half)", half=number(0.5), opset=17)
    next(n for n in model.graph.node if n.output[0] == "y").input[1] = "captured"
    model.opset_import[0].version = opset
    with pytest.raises(ModelError, match=r"nothing would feed 'captured' beside 'image': give the file their values"):
        graph_from_proto(with_inputs(model, captured=shape))


def test_inputs_that_the_export_lost_are_named(tmp_path: Path) -> None:
    """Nobody reads what the file asks for, and what should have come from there is zero."""
    model = around("y = Mul(x, nothing)", nothing=number(0))
    path = saved(with_inputs(model, captured=[8], captured_1=[]), tmp_path)
    with pytest.raises(ModelError, match=r"inputs 'captured', 'captured_1': .* the answers do not depend on the image"):
        load_graph(path)


# --- the batch ---------------------------------------------------------------------------------------

SCATTER = """h = Shape(x)  n = Gather<axis=0>(h, i0)  m = Unsqueeze(n, i00)  l = Range(i0, n, i1)
    r = Reshape(l, column)  k = Mul(r, i0)  pairs = Concat<axis=1>(r, k)  u = Slice(x, i00, i11, i11)
    v = Squeeze(u, i11)  y = ScatterND(x, pairs, v)"""
CONSTANTS: dict[str, Weight] = {
    "i0": np.array(0), "i1": np.array(1), "i00": [0], "i11": [1], "column": [-1, 1],
}  # fmt: skip


def test_a_node_that_holds_the_batch_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"'y' \(ScatterND\): they read a constant that depends on the length of the batch"
    ):
        graph_from_proto(around(SCATTER, CONSTANTS))


def test_a_node_of_a_file_for_one_image_that_holds_the_batch_is_named() -> None:
    model = around("y = ScatterElements<axis=1>(x, first, zeros)", batch="1", first=np.zeros((1, 1, 8, 8), np.int64),
                   zeros=np.zeros((1, 1, 8, 8), np.float32))  # fmt: skip
    with pytest.raises(ModelError, match=r"'y' \(ScatterElements\): they read a constant that depends on the length"):
        graph_from_proto(model)


def test_a_branch_that_the_image_decides_is_named() -> None:
    model = around(
        """m = ReduceMax<keepdims=0>(x)  c = Greater(m, two)
        y = If (c) <then_branch = yes () => (float[N,8,8,8] t) { t = Relu(x) },
                    else_branch = no () => (float[N,8,8,8] r) { r = Neg(x) }>""",
        two=number(2),
    )
    with pytest.raises(ModelError, match=r"'y' \(If\): which branch is taken depends on the image"):
        graph_from_proto(model)


def test_statistics_of_the_batch_are_refused_behind_opset_14_too() -> None:
    model = around("y, m, v = BatchNormalization<training_mode=1>(x, ns, nb, nm, nv)", norm("n", 8), opset=15)
    with pytest.raises(ModelError, match=r"'y' \(BatchNormalization\): normalisation as in training"):
        graph_from_proto(model)


# --- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 2), (1, 40)])
def test_a_size_that_cannot_fit_is_told_as_such(size: tuple[int, int]) -> None:
    model = ending(
        "k = Conv(z, wk)  g = GlobalAveragePool(k)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl, bl)",
        wk=(16, 16, 5, 5),
    )
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    assert graph_from_proto(model, size=(6, 6)).shapes["image"] == (3, 6, 6)
    with pytest.raises(UsageError, match=rf"--size {size[0]}x{size[1]}: .*choose (a larger|another) one"):
        graph_from_proto(model, size=size)


def test_a_size_that_a_flatten_has_fixed_otherwise() -> None:
    model = ending("f = Flatten(z)  logits = Gemm<transB=1>(f, wide, bl)", wide=(10, 16 * 64))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    feeds = random_images(chain(), 2, 0)
    assert_close(run(graph_from_proto(model, size=(8, 8)).to_model(), feeds), run(model, feeds))
    with pytest.raises(UsageError, match=r"--size 9x9: the model does not take images of this size"):
        graph_from_proto(model, size=(9, 9))
