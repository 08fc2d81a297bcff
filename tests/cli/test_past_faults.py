"""Files that once gave wrong answers, a broken folder or a traceback: right answers now, or one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_close, random_images, run
from text_nets import net

from s2d_convert.errors import ModelError
from s2d_convert.frontend.load import load_graph
from s2d_convert.workflows.split_model import SplitOptions, split_model

WEIGHTS = {"wa": (8, 3, 3, 3), "wl": (4, 8), "bl": (4,)}


def classifier(middle: str, *, end: str = "logits = Gemm<transB=1>(f, wl, bl)") -> onnx.ModelProto:
    """conv -> `middle`, which makes y of x -> pooled linear."""
    return net(
        f"""g (float[N,3,8,8] image) => (float[N,4] logits) {{
            a = Conv(image, wa)  x = Relu(a)  {middle}  p = GlobalAveragePool(y)  f = Flatten(p)  {end}
        }}""",
        **WEIGHTS,
    )


def stored(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "middle",
    [
        "k = Constant<value_int=1>()  i = CastLike(x, k)  y = Cast<to=1>(i)",
        "h = Shape(x)  i = CastLike(x, h)  y = Cast<to=1>(i)",
        "z = Constant<value_float=0.5>()  b = Greater(x, z)  i = CastLike(x, b)  y = Cast<to=1>(i)",
    ],
)
def test_a_cast_like_something_else_is_that_cast(middle: str, tmp_path: Path) -> None:
    model = classifier(middle)
    feeds = random_images(model, 2, 0)
    assert_close(run(load_graph(stored(model, tmp_path)).to_model(), feeds), run(model, feeds))


@pytest.mark.parametrize("large", [-np.inf, -1e9, -1e4])
def test_one_large_logit_does_not_hide_that_the_batch_is_mixed(large: float, tmp_path: Path) -> None:
    model = classifier("s = Softmax<axis=0>(x)  y = Mul(x, s)")
    bias = next(i for i in model.graph.initializer if i.name == "bl")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([large, 0, 0, 0], np.float32), "bl"))
    with pytest.raises(ModelError, match="in a batch and alone"):
        load_graph(stored(model, tmp_path))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (classifier("d = Cast<to=11>(x)  k = Constant<value_float=1e9>()  c = Cast<to=11>(k)  e = Add(d, c)  "
                    "g2 = Sub(e, c)  y = Cast<to=1>(g2)"), "otherwise than the file"),
        (classifier("y = Identity(x)", end="l = Gemm<transB=1>(f, wl, bl)  logits = Cast<to=7>(l)"), "has type int64"),
        (classifier("y = RandomNormalLike(x)"), "random"),
        (classifier("q = SequenceConstruct(x)  i = Constant<value_int=0>()  y = SequenceAt(q, i)"), "'q' .*: sequences"),
    ],
    ids=["float64 arithmetic", "integers as logits", "random numbers", "a sequence"],
)  # fmt: skip
def test_what_cannot_be_right_is_refused(model: onnx.ModelProto, words: str, tmp_path: Path) -> None:
    if "int64" in words:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(ModelError, match=words):
        load_graph(stored(model, tmp_path))


@pytest.mark.parametrize("image", ["x.s1", "a.s1", "exit.scaled.s1", "logits.s2", "a.1.s1"])
def test_an_image_may_be_named_like_something_in_a_stage(image: str, tmp_path: Path) -> None:
    model = classifier("y = Identity(x)")
    for node in model.graph.node:
        node.input[:] = [image if name == "image" else name for name in node.input]
    model.graph.input[0].name = image
    manifest = split_model(SplitOptions(stored(model, tmp_path), plan="depth", stages=2, out=tmp_path / "out"))
    assert manifest.input.name == image


def test_a_second_input_of_another_output_does_not_matter(tmp_path: Path) -> None:
    model = classifier("y = Identity(x)")
    model.graph.input.append(onnx.helper.make_tensor_value_info("target", onnx.TensorProto.FLOAT, ["N", 4]))
    model.graph.node.append(onnx.helper.make_node("Sub", ["logits", "target"], ["loss"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("loss", onnx.TensorProto.FLOAT, ["N", 4]))
    assert load_graph(stored(model, tmp_path), output="logits").image == "image"


def test_what_onnxruntime_says_comes_without_its_codes_and_our_paths(tmp_path: Path) -> None:
    model = classifier("y = Identity(x)")
    weight = next(i for i in model.graph.initializer if i.name == "wl")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((4, 9), np.float32), "wl"))
    with pytest.raises(ModelError, match=r"onnxruntime cannot load the model \(Node"):
        load_graph(stored(model, tmp_path))
