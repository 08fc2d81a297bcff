"""Loading: what is simplified, what becomes symbolic, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from helpers import assert_close, random_images, run
from onnx import TensorProto, helper
from text_nets import chain, net, residual

from s2d_convert.base import sessions
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend import graph as graph_module
from s2d_convert.frontend.inputs import PROBE_BATCH
from s2d_convert.frontend.load import graph_from_proto, load_graph


def test_batchnorm_is_folded_and_shapes_leave_the_batch_out() -> None:
    model = net(
        """g (float[N,3,8,8] image) => (float[N,2] logits) {
            a = Conv(image, wa)  n = BatchNormalization(a, s, b, m, v)  x = Relu(n)
            p = GlobalAveragePool(x)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(4, 3, 3, 3), s=(4,), b=(4,), m=(4,), v=(4,), wl=(2, 4),
    )  # fmt: skip
    for i in model.graph.initializer:
        if i.name == "v":
            i.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 0.5, np.float32), "v"))
    graph = graph_from_proto(model)
    assert [n.op for n in graph.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert graph.shapes["x"] == (4, 6, 6)
    assert graph.classes == 2
    feeds = random_images(model, 3, 0)
    assert_close(run(graph.to_model(), feeds), run(model, feeds))


@pytest.mark.parametrize("batch", ["1", "4"])
def test_a_fixed_batch_becomes_symbolic_also_inside_a_reshape(batch: str) -> None:
    model = net(
        f"""g (float[{batch},3,6,6] image) => (float[{batch},2] logits) <int64[2] flat = {{{batch},64}}> {{
            a = Conv(image, wa)  x = Relu(a)  f = Reshape(x, flat)  logits = Gemm<transB=1>(f, wl)
        }}""",
        wa=(4, 3, 3, 3), wl=(2, 64),
    )  # fmt: skip
    graph = graph_from_proto(model)
    images = np.random.default_rng(0).normal(size=(int(batch), 3, 6, 6)).astype(np.float32)
    expected = run(model, {"image": images})["logits"]
    for rows in (1, 3, PROBE_BATCH):
        repeated = images[np.arange(rows) % len(images)]
        assert_close(run(graph.to_model(), {"image": repeated})["logits"], expected[np.arange(rows) % len(images)])


@pytest.mark.parametrize(("op", "kind"), [("Softmax", "probabilities"), ("LogSoftmax", "log_probabilities")])
def test_a_trailing_softmax_is_set_aside(op: str, kind: str) -> None:
    model = net(
        f"""g (float[N,3,6,6] image) => (float[N,2] y) {{
            a = Conv(image, wa)  p = GlobalAveragePool(a)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
            y = {op}<axis=-1>(logits)
        }}""",
        wa=(4, 3, 3, 3), wl=(2, 4),
    )  # fmt: skip
    graph = graph_from_proto(model)
    assert graph.output == "logits"
    assert graph.output_kind == kind
    assert [o.name for o in graph.to_model().graph.output] == ["y"]


def test_old_opsets_are_upgraded() -> None:
    model = chain()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 11))
    graph = graph_from_proto(model)
    assert graph.opset >= 13
    feeds = random_images(model, 2, 0)
    assert_close(run(graph.to_model(), feeds), run(model, feeds))


def test_a_dynamic_size_is_fixed_by_size() -> None:
    text = """g (float[N,3,H,W] image) => (float[N,2] logits) {
        a = Conv(image, wa)  p = GlobalAveragePool(a)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
    }"""
    model = net(text, wa=(4, 3, 3, 3), wl=(2, 4))
    with pytest.raises(ModelError, match="--size"):
        graph_from_proto(model)
    assert graph_from_proto(model, size=(10, 12)).shapes["image"] == (3, 10, 12)
    with pytest.raises(UsageError, match="is fixed to 8x8"):
        graph_from_proto(chain(), size=(9, 9))


def test_one_of_several_outputs_is_chosen_by_name() -> None:
    model = residual()
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 4]))
    with pytest.raises(ModelError, match=r"2 outputs .* --output"):
        graph_from_proto(model)
    assert graph_from_proto(model, output="f").classes == 4
    with pytest.raises(UsageError, match="no such output"):
        graph_from_proto(model, output="x9")


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ("g (float[N,3,4,4] a, float[N,3,4,4] b) => (float[N,3,4,4] y) { y = Add(a, b) }", {}, "2 inputs"),
        ("g (float[N,12] a) => (float[N,2] y) { y = Gemm<transB=1>(a, w) }", {"w": (2, 12)}, "2 axes"),
        (
            "g (float[N,3,4,4] a) => (float[N,2] y) { f = Flatten(a) y = Gemm<transB=1>(f, w) }",
            {"w": (2, 48)},
            "no Conv",
        ),
        ("g (float[N,3,8,8] a) => (float[N,4,6,6] y) { y = Conv(a, w) }", {"w": (4, 3, 3, 3)}, "logits of shape"),
        ("g (int32[N,3,8,8] a) => (int32[N,3,8,8] y) { y = Identity(a) }", {}, "type int32"),
        (
            "g (float[N,3,8,8] a) => (float[N,2] y) { q = DynamicQuantizeLinear(a) y = Conv(a, w) }",
            {"w": (2, 3, 8, 8)},
            "quantise",
        ),
    ],
)
def test_what_is_no_static_classifier_is_refused(text: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    if "DynamicQuantizeLinear" in text:
        model = chain()
        model.graph.node.insert(0, helper.make_node("DynamicQuantizeLinear", ["image"], ["q", "s", "z"], name="quant"))
    else:
        model = net(text, **shapes)
    with pytest.raises(ModelError, match=message):
        graph_from_proto(model)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    whole = chain().SerializeToString()
    for name, content in {"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a valid ONNX model"):
            load_graph(path)
    with pytest.raises(ModelError, match="no such file"):
        load_graph(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="no such file"):
        load_graph(tmp_path)


def test_operators_outside_the_standard_are_named() -> None:
    model = chain()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    gelu = helper.make_node("Gelu", ["x"], ["x2"], domain="com.microsoft", name="odd")
    model.graph.node.insert(2, gelu)
    model.graph.node[3].input[0] = "x2"
    with pytest.raises(ModelError, match=r"'odd' \(com.microsoft.Gelu\)"):
        graph_from_proto(model)


def test_an_image_with_channels_last_keeps_its_axes() -> None:
    text = """g (float[N,H,W,3] image) => (float[N,2] logits) {
        t = Transpose<perm=[0,3,1,2]>(image)  a = Conv(t, wa)  p = GlobalAveragePool(a)  f = Flatten(p)
        logits = Gemm<transB=1>(f, wl)
    }"""
    model = net(text, wa=(4, 3, 3, 3), wl=(2, 4))
    graph = graph_from_proto(model, size=(6, 9))
    assert graph.shapes["image"] == (6, 9, 3)
    assert graph.shapes["t"] == (3, 6, 9)
    assert graph.nodes[0].op == "Transpose"
    feeds = {"image": np.random.default_rng(0).normal(size=(3, 6, 9, 3)).astype(np.float32)}
    assert_close(run(graph.to_model(), feeds), run(model, feeds))


POOLED = "p = GlobalAveragePool(a)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)"


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        # The number of channels is not known, and no convolution reads the image as it is.
        (
            f"""(float[N,C,8,8] image) => (float[N,2] logits) <int64[4] r = {{0,3,8,8}}>
            {{ i = Reshape(image, r) a = Conv(i, wa) {POOLED} }}""",
            {},
            "number of channels",
        ),
        # Places of the feature map have become rows of the batch.
        (
            """(float[N,3,8,8] image) => (float[M,2] logits) <int64[2] r = {-1,4}>
            { a = Conv(image, wa)  f = Reshape(a, r)  logits = Gemm<transB=1>(f, wl) }""",
            {},
            "axis 0 is not the batch alone",
        ),
        # How many values there are depends on the values.
        (
            """(float[N,3,8,8] image) => (float[N,2] logits)
            { a = Conv(image, wa)  z = NonZero(a)  c = Cast<to=1>(z)  logits = Transpose(c) }""",
            {},
            "not static after simplification",
        ),
        # The classifier expects five features of four.
        (
            f"(float[N,3,8,8] image) => (float[N,2] logits) {{ a = Conv(image, wa) {POOLED} }}",
            {"wl": (2, 5)},
            "onnxruntime cannot load",
        ),
    ],
    ids=["dynamic channels", "batch and space mixed", "value-dependent shapes", "shapes that clash"],
)
def test_what_cannot_be_reasoned_about_is_refused(text: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        graph_from_proto(net(f"g {text}", **{"wa": (4, 3, 3, 3), "wl": (2, 4), **shapes}))


def test_a_size_may_fill_in_what_is_free_but_not_change_what_is_fixed() -> None:
    text = f"g (float[N,3,8,W] image) => (float[N,2] logits) {{ a = Conv(image, wa) {POOLED} }}"
    model = net(text, wa=(4, 3, 3, 3), wl=(2, 4))
    assert graph_from_proto(model, size=(8, 10)).shapes["image"] == (3, 8, 10)
    with pytest.raises(UsageError, match="--size 9x10"):
        graph_from_proto(model, size=(9, 10))


def test_an_opset_that_cannot_be_upgraded_is_refused() -> None:
    model = chain()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 1))  # Gemm broadcast by an attribute then
    with pytest.raises(ModelError, match="opset 1 could not be upgraded"):
        graph_from_proto(model)


def test_inputs_that_nothing_reads_or_that_are_weights_do_not_count() -> None:
    model = chain()
    model.graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, ["N", 7]))
    for i in model.graph.initializer:  # as files of the first ONNX years list them
        model.graph.input.append(helper.make_tensor_value_info(i.name, TensorProto.FLOAT, list(i.dims)))
    graph = graph_from_proto(model)
    assert graph.image == "image"
    assert [n.op for n in graph.nodes] == [n.op for n in graph_from_proto(chain()).nodes]


def test_the_models_own_proto_is_left_as_it_was() -> None:
    model = chain()
    before = model.SerializeToString()
    graph_from_proto(model)
    assert model.SerializeToString() == before


def test_every_node_has_a_name_of_its_own() -> None:
    model = residual()
    model.graph.node[0].name = "Relu_1"  # what the second node, which has no name, would be called
    names = [n.name for n in graph_from_proto(model).nodes]
    assert names[:2] == ["Relu_1", "Relu_1_"]
    assert len(set(names)) == len(names)


def test_readers_and_makers_of_a_tensor() -> None:
    graph = graph_from_proto(residual())
    assert graph.producer["t"].op == "Add"
    assert "image" not in graph.producer
    assert [(node.op, index) for node, index in graph.consumers["x"]] == [("Conv", 0), ("Add", 1)]
    assert graph.consumers["logits"] == ()


def with_baked_batch(line: str, batch: int) -> onnx.ModelProto:
    return net(
        f"""g (float[{batch},3,6,6] image) => (float[{batch},2] logits)
            <int64[4] z = {{{batch},4,8,8}}, int64[4] same = {{{batch},4,4,4}}> {{
            a = Conv(image, wa)  s = GlobalAveragePool(a)  {line}
            p = GlobalAveragePool(u)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }}""",
        wa=(4, 3, 3, 3), wl=(2, 4),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "line",
    [
        'u = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(a, , , z)',
        "e = Expand(s, same)  u = Mul(a, e)",
        "u = Expand(s, same)",
    ],
)
def test_a_baked_batch_is_freed_in_sizes_and_shapes(line: str, batch: int) -> None:
    model = with_baked_batch(line, batch)
    graph = graph_from_proto(model)
    images = np.random.default_rng(0).normal(size=(batch, 3, 6, 6)).astype(np.float32)
    expected = run(model, {"image": images})["logits"]
    twice = run(graph.to_model(), {"image": np.concatenate([images, images])})["logits"]
    assert_close(twice, np.concatenate([expected, expected]))


@pytest.mark.parametrize("line", ["u = ReduceMean<axes=[0], keepdims=1>(a)", "u = Softmax<axis=0>(a)"])
def test_a_baked_batch_of_one_is_noticed(line: str) -> None:
    model = with_baked_batch(line, 1)
    with pytest.raises(ModelError, match="dynamic batch"):
        graph_from_proto(model)


def test_weights_that_do_not_fit_into_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ONE_FILE", 100)
    monkeypatch.setattr(sessions, "IN_MEMORY", 100)
    model = net(
        """g (float[N,3,8,8] image) => (float[N,4] logits) {
            a = Conv(image, wa)  x = Relu(a)  p = GlobalAveragePool(x)  f = Flatten(p)  logits = Gemm<transB=1>(f, wl)
        }""",
        wa=(64, 3, 3, 3), wl=(4, 64),
    )  # fmt: skip
    onnx.save(model, str(tmp_path / "model.onnx"))
    graph = load_graph(tmp_path / "model.onnx")
    feeds = random_images(model, 2, 0)
    assert_close(run(graph.to_model(), feeds), run(model, feeds))


def test_a_pass_takes_as_many_images_as_their_values_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_from_proto(nets.export("vgg_bn"))
    of_image = 4 * sum(int(np.prod(shape)) for shape in graph.shapes.values())
    assert graph.batch_of(100) == 100
    monkeypatch.setattr(graph_module, "PASS_BYTES", 7 * of_image)
    assert graph.batch_of(100) == 7
    assert graph.batch_of(5) == 5
    monkeypatch.setattr(graph_module, "PASS_BYTES", 1)
    assert graph.batch_of(100) == 1
