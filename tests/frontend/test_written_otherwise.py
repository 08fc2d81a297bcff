"""The same network as another tool would write it: what `test_generated_graphs` has found, each as a small net of its own.

Every file here is loaded, and answers as onnxruntime does on the plain form.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from chain_law import check_identity_law
from helpers import assert_close, random_images, run
from onnx import helper
from patterns import PATTERNS
from patterns.base import Weight, around, ending, number
from s2d_runtime import Dispatcher
from text_nets import chain

from s2d_convert.errors import ModelError
from s2d_convert.exporting.single import write_single
from s2d_convert.frontend import graph_from_proto, load_graph
from s2d_convert.frontend.graph import RESERVED
from s2d_convert.frontend.inputs import TAKEN_NAMES
from s2d_convert.workflows.split_model import SplitOptions, split_model

POOLED = "g = GlobalAveragePool(z)  f = Flatten(g)  q = Gemm<transB=1>(f, wl, bl)  "


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """The model, another name for one tensor."""
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = new if value.name == old else value.name
    return model


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["opset", "nodes", "both"])
def test_the_default_domain_has_two_names(tmp_path: Path, where: str) -> None:
    model, feeds = chain(), random_images(chain(), 2, 0)
    if where != "nodes":
        model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "" if where == "opset" else "ai.onnx"
    assert_close(run(load_graph(saved(model, tmp_path)).to_model(), feeds), run(chain(), feeds))


@pytest.mark.parametrize("name", TAKEN_NAMES)
def test_an_image_called_as_an_output_of_the_stages_gets_another_name(tmp_path: Path, name: str) -> None:
    feeds = random_images(chain(), 3, 0)
    model = renamed(renamed(chain(), "a", f"{name}_image"), "image", name)
    split_model(SplitOptions(saved(model, tmp_path), plan="depth", stages=2, out=tmp_path / "out"))
    with Dispatcher(tmp_path / "out") as runner:
        assert runner.manifest.input.name == f"{name}_image_"
        assert_close(runner(feeds["image"], exits=False).output, run(chain(), feeds)["logits"])
    write_single(tmp_path / "out", tmp_path / "single.onnx")


@pytest.mark.parametrize("name", RESERVED)
def test_a_mask_called_as_what_stages_answer(tmp_path: Path, name: str) -> None:
    """It holds no floats, and the stage's own tensor of that name does."""
    plain = around("m = Greater(x, half)  y = Where(m, x, half)", half=number(0.5))
    model = renamed(around("m = Greater(x, half)  y = Where(m, x, half)", half=number(0.5)), "m", name)
    feeds = random_images(plain, 3, 0)
    split_model(SplitOptions(saved(model, tmp_path), plan="depth", stages=2, out=tmp_path / "out"))
    with Dispatcher(tmp_path / "out") as runner:
        assert_close(runner(feeds["image"], exits=False).output, run(plain, feeds)["logits"])


def test_names_with_line_ends_leave_a_message_one_line() -> None:
    model = renamed(chain(), "a", "line\n\x1b[2J end")
    with pytest.raises(ModelError) as caught:
        graph_from_proto(model, output="line\n\x1b[2J end")
    assert str(caught.value).isprintable()
    assert "line\\n\\x1b[2J end" in str(caught.value)


@pytest.mark.parametrize("suffix", [".free8", ".free9", ".unpadded2", ".unsqueezed", ".positive", ".smallest"])
def test_names_that_loading_would_give_may_be_taken(suffix: str) -> None:
    text = """g = GlobalAveragePool(z)  r = Reshape(g, rows)  c = Concat<axis=1>(r, pad)  t = Slice(c, i0, i16, i1)
    q = Gemm<transB=1>(t, wl, bl)  k = Softmax<axis=1>(q)  m = Mul(q, half)  n = Softmax<axis=1>(m)
    o = Add(k, n)  logits = Mul(o, half)"""
    given: dict[str, Weight] = {"rows": [1, 16], "pad": np.zeros((1, 2), np.float32), "i0": [0], "i16": [16], "i1": [1],
                                "half": number(0.5)}  # fmt: skip
    plain = ending(text, given, batch="1")
    for owner in ("r", "c", "logits"):
        model = renamed(ending(text, given, batch="1"), "f" if owner == "f" else "q", f"{owner}{suffix}")
        feeds = random_images(plain, 1, 0)
        assert_close(run(graph_from_proto(model).to_model(), feeds).popitem()[1], run(plain, feeds)["logits"])


# --- branches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", ["initializer", "node"])
def test_a_branch_within_a_branch_reads_what_the_outer_one_made(constant: str) -> None:
    text = """y = If (yes) <
        then_branch = outer () => (float[N,8,8,8] w) {
            u = Neg(x)
            w = If (yes) <then_branch = inner () => (float[N,8,8,8] v) { v = Neg(u) },
                          else_branch = never () => (float[N,8,8,8] v) { v = Abs(u) }>
        },
        else_branch = other () => (float[N,8,8,8] o) { o = Abs(x) }>"""
    model = around(text, yes=np.array(True))
    if constant == "node":
        (yes,) = (i for i in model.graph.initializer if i.name == "yes")
        node = helper.make_node("Constant", [], ["yes"], value=yes)
        model.graph.initializer.remove(yes)
        model.graph.node.insert(0, node)
    check_identity_law(model)


# --- lengths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(0,), (0, 2, 3)])
def test_lengths_of_minus_one_in_a_file_of_an_old_opset(axes: tuple[int, ...]) -> None:
    """The converter between opsets writes them into shapes that it infers."""
    model, plain = PATTERNS["prelu_of_opset_7"](), PATTERNS["prelu_of_opset_7"]()
    for axis in axes:
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    feeds = random_images(plain, 3, 0)
    graph = graph_from_proto(model, size=(8, 8) if len(axes) > 1 else None)
    assert_close(run(graph.to_model(), feeds), run(plain, feeds))


@pytest.mark.parametrize(
    "asked",
    [
        "n = Shape(m)  y = Reshape(m, n)",
        "n = Shape<start=1, end=4>(m)  one = Constant<value = int64[1] {-1}>()  t = Concat<axis=0>(one, n)  y = Reshape(m, t)",
    ],
)
def test_lengths_that_are_asked_for_behind_an_operator_without_shapes_in_onnxruntime(asked: str) -> None:
    model = around(f"m = MeanVarianceNormalization<axes=[1,2,3]>(x)  {asked}")
    plain = around("y = MeanVarianceNormalization<axes=[1,2,3]>(x)")
    feeds = random_images(plain, 5, 0)
    assert_close(run(graph_from_proto(model).to_model(), feeds), run(plain, feeds))


# --- files for one image -----------------------------------------------------------------------------

WITHOUT_BATCH = {
    "reduction by attribute": "r = ReduceMax<axes=[0], keepdims=1>(v)  w = Sub(v, r)",
    "reduction by input": "r = ReduceSum<keepdims=1>(v, i0)  w = Sub(v, r)",
    "reduction of everything": "r = ReduceMean<keepdims=1>(v)  w = Sub(v, r)",
    "slice": "w = Slice(v, i0, i10)",
    "slice from behind": "w = Slice(v, i0, i10, last)",
    "gather": "w = Gather(v, turned)",
    "split": "a, b = Split(v, halves)  w = Concat<axis=0>(b, a)",
    "pad": "a = Pad(v, around)  w = Slice(a, i1, i11)",
    "squeeze": "a = Reshape(v, column)  b = Squeeze(a, i1)  w = Relu(b)",
    "transpose": "a = Reshape(v, table)  b = Transpose<perm=[1,0]>(a)  w = Reshape(b, flat)",
    "tile": "a = Tile(v, i1)  w = Expand(a, i10)",
    "unit length": "w = LpNormalization<axis=0>(v)",
}
LENGTHS: dict[str, Weight] = {
    "i0": [0], "i1": [1], "i10": [10], "i11": [11], "last": [-1], "turned": list(range(9, -1, -1)), "halves": [4, 6],
    "around": [1, 1], "column": [10, 1], "table": [2, 5], "flat": [10],
}  # fmt: skip


@pytest.mark.parametrize("middle", WITHOUT_BATCH)
def test_what_is_done_to_a_vector_without_its_batch(middle: str) -> None:
    """A file for one image squeezes the batch away, works on, and puts it back."""
    text = f"{POOLED} v = Squeeze(q, i0)  {WITHOUT_BATCH[middle]}  logits = Unsqueeze(w, i0)"
    model = ending(text, LENGTHS, batch="1")
    feeds = random_images(model, 4, 0)
    alone = [run(model, {"image": feeds["image"][i : i + 1]})["logits"] for i in range(4)]
    assert_close(run(graph_from_proto(model).to_model(), feeds)["logits"], np.concatenate(alone))


def test_an_axis_put_in_and_taken_away_before_a_reshape_to_one_row() -> None:
    """At another batch the Reshape hides where the batch goes."""
    text = """g = GlobalAveragePool(z)  u = Unsqueeze(g, i0)  n = Neg(u)  v = Squeeze(n, i0)  f = Reshape(v, row)
    logits = Gemm<transB=1>(f, wl, bl)"""
    model = ending(text, {"i0": [0], "row": [1, 16]}, batch="1")
    feeds = random_images(model, 4, 0)
    alone = [run(model, {"image": feeds["image"][i : i + 1]})["logits"] for i in range(4)]
    assert_close(run(graph_from_proto(model).to_model(), feeds)["logits"], np.concatenate(alone))


@pytest.mark.parametrize("baked", [True, False])
def test_an_axis_put_before_the_batch_and_taken_away_again(baked: bool) -> None:
    """With a batch that is written into a Reshape there is no second look at another one."""
    reshape = "r = Reshape(z, baked)" if baked else "r = Identity(z)"
    text = f"{reshape}  u = Unsqueeze(r, i0)  n = Neg(u)  a, b = Split<axis=2>(n, halves)  c = Concat<axis=2>(b, a)  "
    text += "z2 = Squeeze(c, i0)  " + POOLED.replace("(z)", "(z2)") + "logits = Identity(q)"
    model = ending(text, {"i0": [0], "baked": [1, 16, 8, 8], "halves": [6, 10]}, batch="1")
    feeds = random_images(model, 4, 0)
    alone = [run(model, {"image": feeds["image"][i : i + 1]})["logits"] for i in range(4)]
    assert_close(run(graph_from_proto(model).to_model(), feeds)["logits"], np.concatenate(alone))


# --- ends --------------------------------------------------------------------------------------------

STILL = {
    "gather": "b = Gather<axis=1>(k, every)",
    "gather from behind": "b = Gather<axis=1>(k, behind)",
    "tile": "b = Tile(k, i11)",
    "pad": "b = Pad(k, i0000)",
    "slice": "b = Slice(k, i0, i10, i1)",
    "transpose": "u = Unsqueeze(k, i2)  t = Transpose<perm=[0,2,1]>(u)  b = Squeeze(t, i1)",
    "concat": "b = Concat<axis=1>(k)",
}
PLACES: dict[str, Weight] = {
    "every": list(range(10)), "behind": list(range(-10, 0)), "i11": [1, 1], "i0000": [0, 0, 0, 0], "i0": [0], "i1": [1],
    "i2": [2], "i10": [10],
}  # fmt: skip


@pytest.mark.parametrize("still", STILL)
def test_what_moves_nothing_behind_a_softmax_is_set_aside_with_it(still: str) -> None:
    model = ending(f"{POOLED} k = Softmax<axis=1>(q)  {STILL[still]}  logits = Log(b)", PLACES)
    graph = graph_from_proto(model)
    feeds = random_images(model, 3, 0)
    assert graph.output_kind == "log_probabilities"
    assert_close(run(graph.to_model(), feeds), run(model, feeds))
    check_identity_law(model)


def test_what_moves_classes_behind_a_softmax_is_refused() -> None:
    model = ending(f"{POOLED} k = Softmax<axis=1>(q)  b = Gather<axis=1>(k, turned)  logits = Log(b)", LENGTHS)
    with pytest.raises(ModelError, match=r"\(Softmax\): what output 'logits' makes of its probabilities"):
        graph_from_proto(model)
