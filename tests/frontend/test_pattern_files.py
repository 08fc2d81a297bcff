"""Whole files: weights beside the file, half precision, other image types, and the graphs that come with onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from chain_law import analysed, check_chain_law
from helpers import Array, assert_close, open_session, run
from onnx import TensorProto, helper, numpy_helper
from patterns.base import around, ending, net, norm, number, positive
from s2d_runtime import Dispatcher

from s2d_convert.errors import ModelError
from s2d_convert.frontend.equivalence import noise
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import graph_from_proto, load_graph
from s2d_convert.plans.plan import Plan
from s2d_convert.slicing.split import StageModel, split
from s2d_convert.workflows.split_model import SplitOptions, split_model

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SLOW = ("bvlc_alexnet", "densenet121", "inception_v2", "resnet50", "vgg19", "zfnet512")  # more than 5 s each
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


def example() -> onnx.ModelProto:
    """A net with a norm, a sum and a clip."""
    return around(
        """c = Conv<pads=[1,1,1,1]>(x, wc)  n = BatchNormalization(c, ns, nb, nm, nv)  t = Add(n, x)
        y = Clip(t, low, high)""",
        norm("n", 8), wc=(8, 8, 3, 3), low=number(0), high=number(6),
    )  # fmt: skip


def one_stage(model: onnx.ModelProto) -> tuple[Graph, StageModel]:
    """The graph of a model, and the model as a single stage."""
    graph, channels, weights = analysed(model)
    (stage,) = split(graph, channels, Plan((graph.output,), (1,) * channels.units), weights)
    return graph, stage


def answer(stage: StageModel, images: Array) -> Array:
    """A stage's answer to images, which are brought to the type that it takes."""
    (image,) = stage.model.graph.input
    dtype = helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    return run(stage.model, {image.name: images.astype(dtype)})["output"]


# --- where the weights are --------------------------------------------------------------------------


@pytest.mark.parametrize("one_file", [True, False])
def test_weights_beside_the_file(tmp_path: Path, one_file: bool) -> None:
    model, path = example(), tmp_path / "net.onnx"
    expected = run(model, {"image": IMAGES})["logits"]
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=one_file,
        location="w.bin" if one_file else None, size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    assert len(list(tmp_path.iterdir())) == (2 if one_file else 1 + len(model.graph.initializer))
    assert_close(run(load_graph(path).to_model(), {"image": IMAGES})["logits"], expected)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(example(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"w\.bin"):
        load_graph(path)


def test_weights_may_stand_in_fields_of_their_type() -> None:
    """As the lists that tools without numpy write, not as raw bytes."""
    model = example()
    expected = run(model, {"image": IMAGES})["logits"]
    for i in model.graph.initializer:
        value = numpy_helper.to_array(i)
        i.CopyFrom(helper.make_tensor(i.name, i.data_type, i.dims, value.ravel().tolist()))
    assert_close(answer(one_stage(model)[1], IMAGES), expected)


def test_an_old_softmax_after_a_pool_still_gives_probabilities() -> None:
    """Before opset 13 it flattened what follows its axis, so that an upgrade puts Reshapes around it."""
    model = ending(
        "c = Conv(z, wc, bl)  g = GlobalAveragePool(c)  logits = Softmax(g)",
        opset=9, logits="N,10,1,1", wc=(10, 16, 1, 1),
    )  # fmt: skip
    graph, stage = one_stage(model)
    assert graph.output_kind == "probabilities"
    assert_close(answer(stage, IMAGES), run(model, {"image": IMAGES})["logits"])


# --- types ------------------------------------------------------------------------------------------


def test_an_image_of_bytes_stays_one_in_the_stages(tmp_path: Path) -> None:
    model = net(
        """(uint8[N,8,8,3] image) => (float[N,10] logits) {
            c = Cast<to=1>(image)  d = Mul(c, by)  t = Transpose<perm=[0,3,1,2]>(d)  s = Conv(t, ws)  x = Relu(s)
            e = Conv(x, we)  g = GlobalAveragePool(e)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl)
        }""",
        by=number(1 / 255), ws=(8, 3, 3, 3), we=(16, 8, 3, 3), wl=(10, 16),
    )  # fmt: skip
    path = tmp_path / "bytes.onnx"
    onnx.save(model, str(path))
    graph = load_graph(path)
    images = noise((5, 8, 8, 3), "uint8")
    expected = run(model, {"image": images})["logits"]
    assert graph.image_type == "uint8"
    assert_close(run(graph.to_model(), {"image": images})["logits"], expected)
    split_model(SplitOptions(path, plan="depth", stages=2, out=tmp_path / "out"))
    with Dispatcher(tmp_path / "out") as runner:
        assert runner.manifest.input.dtype == "uint8"
        assert_close(runner(images, exits=False).output, expected)
    for seed in range(3):
        check_chain_law(model, seed)


def test_an_image_of_another_type_is_refused_in_one_sentence() -> None:
    model = net(
        "(int32[N,3,8,8] image) => (float[N,4] logits) { c = Cast<to=1>(image)  s = Conv(c, ws)  g = GlobalAveragePool(s)  "
        "f = Flatten(g)  logits = Gemm<transB=1>(f, wl) }",
        ws=(8, 3, 3, 3), wl=(4, 8),
    )  # fmt: skip
    with pytest.raises(ModelError, match="input 'image' has type int32; float32 and uint8 are allowed"):
        graph_from_proto(model)


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A whole model in half precision: weights, image and logits."""
    for i in model.graph.initializer:
        if i.data_type == TensorProto.FLOAT:
            i.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(i).astype(np.float16), i.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    return model


def between_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision inside, a float image and float logits outside."""
    model = half(model)
    for node in model.graph.node:
        node.input[:] = ["image.half" if n == "image" else n for n in node.input]
        node.output[:] = ["logits.half" if n == "logits" else n for n in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["image.half"], to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["logits.half"], ["logits"], to=TensorProto.FLOAT))
    onnx.checker.check_model(model, full_check=True)
    return model


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Only the weights are stored in half precision, with a Cast to float behind each."""
    casts = []
    for i in model.graph.initializer:
        if i.data_type == TensorProto.FLOAT:
            name = i.name
            i.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(i).astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [i.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_half_precision_in_the_weights_alone_changes_nothing() -> None:
    model = with_half_weights(example())
    expected = run(model, {"image": IMAGES})["logits"]
    graph, stage = one_stage(model)
    assert {value.dtype for value in graph.constants.values() if value.dtype.kind == "f"} == {np.dtype(np.float32)}
    assert_close(answer(stage, IMAGES), expected)


def test_fp16_model_as_a_whole() -> None:
    model = half(example())
    expected = run(model, {"image": IMAGES.astype(np.float16)})["logits"].astype(np.float32)
    assert_close(answer(one_stage(model)[1], IMAGES).astype(np.float32), expected, rel=2e-2)


def test_fp16_model_between_casts() -> None:
    model = between_casts(example())
    expected = run(model, {"image": IMAGES})["logits"]
    assert_close(answer(one_stage(model)[1], IMAGES), expected, rel=2e-2)


def test_fp16_model_with_a_float_island() -> None:
    """Mixed precision: a norm over the channels is computed in float, between two Casts."""
    model = half(
        around("u = Cast<to=1>(x)  n = LayerNormalization<axis=1>(u, g)  y = Cast<to=1>(n)", g=positive(8, 8, 8))
    )
    up, down = [node for node in model.graph.node if node.op_type == "Cast"]
    up.attribute[0].i = TensorProto.FLOAT
    (scale,) = [i for i in model.graph.initializer if i.name == "g"]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale).astype(np.float32), "g"))
    assert down.attribute[0].i == TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    expected = run(model, {"image": IMAGES.astype(np.float16)})["logits"].astype(np.float32)
    assert_close(answer(one_stage(model)[1], IMAGES).astype(np.float32), expected, rel=2e-2)


@pytest.mark.parametrize("opset", [9, 17])
def test_a_norm_in_training_mode_is_refused(opset: int) -> None:
    """It uses the statistics of the batch, so it would answer an image differently in each: five outputs ask for that
    before opset 14, an attribute since."""
    call = "y, m1, v1, m2, v2 = BatchNormalization" if opset < 14 else "y, m1, v1 = BatchNormalization<training_mode=1>"
    model = around(f"{call}(x, ns, nb, nm, nv)", norm("n", 8), opset=opset)
    alone = run(model, {"image": IMAGES[:1]})["logits"]
    assert np.abs(run(model, {"image": IMAGES})["logits"][:1] - alone).max() > 1e-2
    with pytest.raises(ModelError):
        graph_from_proto(model)


# --- the graphs that come with onnx -----------------------------------------------------------------


def roles(model: onnx.ModelProto) -> dict[str, str]:
    """What each weight is for: "matrix", "scale", "variance" or "shift"; unread and integer ones are left out."""
    found = {}
    through = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Unsqueeze"}
    readers = {name: (n.op_type, index) for n in model.graph.node for index, name in enumerate(n.input)}
    for name in readers:
        op, index = readers.get(through.get(name, name), ("", 0))
        if op in ("Conv", "Gemm") and index == 1:
            found[name] = "matrix"
        elif op == "BatchNormalization" and index == 4:
            found[name] = "variance"
        elif (op == "BatchNormalization" and index == 1) or op == "Mul":
            found[name] = "scale"
        else:
            found[name] = "shift"
    return found


def filled(name: str) -> onnx.ModelProto:
    """A graph that comes with onnx, with random weights for its constant-filled ones, which say nothing."""
    model = onnx.load(LIGHT / f"{name}.onnx")
    graph, wanted, rng = model.graph, roles(model), np.random.default_rng(0)
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    shapes = {n.output[0]: tuple(values[n.input[0]].tolist()) for n in graph.node if n.op_type == "ConstantOfShape"}
    shapes |= {k: v.shape for k, v in values.items() if v.dtype == np.float32}
    kept = [i for i in graph.initializer if i.name in wanted and i.name not in shapes]
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    gain = 0.5 if any(n.op_type == "Sum" for n in graph.node) else 1.0  # or the sums of residual nets grow and grow
    fresh = [numpy_helper.from_array(_weight(wanted[k], s, rng, gain), k) for k, s in shapes.items() if k in wanted]
    for field, content in ((graph.initializer, kept + fresh), (graph.node, nodes)):
        del field[:]
        field.extend(content)
    image = [i for i in graph.input if i.name not in values]
    listed = [helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in graph.initializer]
    del graph.input[:]
    graph.input.extend([*image, *listed])
    onnx.checker.check_model(model)
    return model


def _weight(role: str, shape: tuple[int, ...], rng: np.random.Generator, gain: float) -> Array:
    if role == "scale":
        return (gain * rng.uniform(0.7, 1.3, shape)).astype(np.float32)
    if role == "variance":
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    scale = np.sqrt(2 / np.prod(shape[1:])) if role == "matrix" else 0.1
    return np.float32(scale) * rng.standard_normal(shape, np.float32)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=pytest.mark.slow if path.stem.removeprefix("light_") in SLOW else ())
        for path in sorted(LIGHT.glob("*.onnx"))
    ],
)
def test_a_graph_that_comes_with_onnx(name: str) -> None:
    model = filled(name)
    graph, stage = one_stage(model)
    shape = (2, *graph.shapes[graph.image])
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    session = open_session(model)
    (output,) = model.graph.output
    expected = np.concatenate([run(session, {graph.image: images[i : i + 1]})[output.name] for i in range(2)])
    got = answer(stage, images)
    if model.graph.node[-1].op_type == "Softmax":  # probabilities of a thousand classes differ too little
        assert graph.output_kind == "probabilities"
        got, expected = np.log(got), np.log(expected)
    assert expected.std(axis=0).max() > 1e-2, "both images get the same answer"
    assert_close(got, expected, rel=1e-3)
