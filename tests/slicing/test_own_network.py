"""A user's own network before the model: the stage answers like its file, whatever the two take as their input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import assert_close
from onnx import numpy_helper

from s2d_convert.calibration.thresholds import softmax
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PixelOptions
from s2d_convert.errors import ModelError, UsageError
from s2d_convert.frontend.graph import Graph
from s2d_convert.frontend.load import load_graph
from s2d_convert.plans.plan import FirstNetwork
from s2d_convert.slicing.chain import build_stages
from s2d_convert.slicing.own_network import OwnNetwork, Side, check_colours, own_network, read_own

CLASSES = 5


def network(
    path: Path,
    image: str = "float[N, 3, 12, 12] image",
    *,
    seed: int = 0,
    ending: str = "",
    opset: int = 17,
    grey: bool = False,
) -> Path:
    """Write a small network that takes this image, with random weights; returns its path. ending: nodes behind the logits."""
    cast = "pixels = Cast<to: int = 1>(image)" if image.startswith("uint8") else "pixels = Identity(image)"
    last = image.rstrip().split("]")[0].endswith((" 3", " 1"))
    order = "moved = Transpose<perm = [0, 3, 1, 2]>(pixels)" if last else "moved = Identity(pixels)"
    answer = "answer" if ending else "logits"
    text = f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        small ({image}) => (float[N, {CLASSES}] {answer}) {{
            {cast}
            {order}
            made = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(moved, weight, bias)
            active = Relu(made)
            mean = GlobalAveragePool(active)
            flat = Flatten(mean)
            logits = Gemm<transB = 1>(flat, last, shift)
            {ending}
        }}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    scale = 1 / 255 if cast.startswith("pixels = Cast") else 1.0
    arrays = {
        "weight": rng.normal(0, scale, (8, 1 if grey else 3, 3, 3)),
        "bias": rng.normal(0, 1, 8),
        "last": rng.normal(0, 1, (CLASSES, 8)),
        "shift": rng.normal(0, 1, CLASSES),
    }
    for name, value in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def side(path: Path, preset: str, order: str | None = None) -> Side:
    """A network with its preprocessing."""
    graph = load_graph(path)
    return Side(graph, preprocess_of(graph, preset, order))


def preprocess_of(graph: Graph, preset: str, order: str | None) -> Preprocess:
    shape, last = graph.shapes[graph.image], graph.image_axis == 2
    return make_preprocess(
        preset,
        size=(shape[0], shape[1]) if last else (shape[1], shape[2]),
        channels=shape[2] if last else shape[0],
        layout="NHWC" if last else "NCHW",
        dtype="uint8" if graph.image_type == "uint8" else "float32",
        pixels=PixelOptions(order=order),
    )


def first_of(own: Side, base: Side) -> OwnNetwork:
    return own_network(FirstNetwork("small.onnx", "0" * 64), own, base)


def stage_answers(own: OwnNetwork, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the one stage of the chain answers."""
    (stage,) = build_stages([own.chain])
    assert stage.image
    assert not stage.links_in
    assert not stage.links_out
    session = ort.InferenceSession(stage.model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def file_answers(path: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"image": images})[0]
    return answer


def pixels(count: int = 6, *, channels: int = 3, size: int = 12) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


NCHW, NHWC, UINT8 = "float[N, 3, 12, 12] image", "float[N, 12, 12, 3] image", "uint8[N, 3, 12, 12] image"
GREY = "float[N, 1, 12, 12] image"
PAIRS = {
    "equal": ((NCHW, "imagenet", None), (NCHW, "imagenet", None)),
    "other numbers": ((NCHW, "signed", None), (NCHW, "imagenet", None)),
    "the model is BGR": ((NCHW, "imagenet", None), (NCHW, "bgr-caffe", None)),
    "it is BGR": ((NCHW, "unit", "bgr"), (NCHW, "cifar10", None)),
    "both are BGR": ((NCHW, "unit", "bgr"), (NCHW, "imagenet", "bgr")),
    "it is channels last": ((NHWC, "unit", None), (NCHW, "imagenet", None)),
    "the model is channels last": ((NCHW, "unit", "bgr"), (NHWC, "imagenet", None)),
    "both are channels last": ((NHWC, "unit", "bgr"), (NHWC, "imagenet", None)),
    "it takes pixels": ((UINT8, "raw", None), (NCHW, "imagenet", None)),
    "the model takes pixels": ((NCHW, "imagenet", None), (UINT8, "raw", None)),
    "both take pixels": ((UINT8, "raw", None), (UINT8, "raw", None)),
}


@pytest.mark.parametrize("name", list(PAIRS))
def test_the_stage_answers_like_the_file(name: str, tmp_path: Path) -> None:
    (own_image, own_preset, own_order), (base_image, base_preset, base_order) = PAIRS[name]
    path = network(tmp_path / "small.onnx", own_image, seed=1)
    own, base = (
        side(path, own_preset, own_order),
        side(network(tmp_path / "large.onnx", base_image), base_preset, base_order),
    )
    images, first = pixels(), first_of(own, base)
    got = stage_answers(first, base.preprocess(images))
    expected = file_answers(path, own.preprocess(images))
    assert_close(got["output"], expected)
    assert_close(got["confidence"], softmax(expected).max(axis=1))


def test_equal_inputs_need_no_nodes(tmp_path: Path) -> None:
    path = network(tmp_path / "small.onnx", seed=1)
    own, base = side(path, "imagenet"), side(network(tmp_path / "large.onnx"), "imagenet")
    assert [n.op for n in first_of(own, base).chain.model.graph.nodes] == [n.op for n in own.graph.nodes]


def test_a_grey_network_reads_the_luma_of_colours(tmp_path: Path) -> None:
    path = network(tmp_path / "small.onnx", GREY, grey=True)
    own, base = side(path, "unit"), side(network(tmp_path / "large.onnx"), "imagenet")
    images = pixels()
    luma = (images @ np.array([0.299, 0.587, 0.114]))[:, None].astype(np.float32) / 255
    assert_close(stage_answers(first_of(own, base), base.preprocess(images))["output"], file_answers(path, luma))


def test_a_network_of_colours_reads_grey_images(tmp_path: Path) -> None:
    path = network(tmp_path / "small.onnx")
    own, base = side(path, "unit"), side(network(tmp_path / "large.onnx", GREY, grey=True), "imagenet")
    images = pixels(channels=1)
    expected = file_answers(path, own.preprocess(np.repeat(images, 3, axis=3)))
    assert_close(stage_answers(first_of(own, base), base.preprocess(images))["output"], expected)


def test_colours_behind_a_model_of_luma_are_grey(tmp_path: Path) -> None:
    path = network(tmp_path / "small.onnx", GREY, grey=True)
    own, base = side(path, "unit"), side(network(tmp_path / "large.onnx"), "imagenet", "grey")
    images = pixels()
    luma = base.preprocess(images)[:, :1] * 0.229 + 0.485
    assert_close(stage_answers(first_of(own, base), base.preprocess(images))["output"], file_answers(path, luma))


@pytest.mark.parametrize(("sides", "last"), [((6, 6), False), ((6, 6), True), ((3, 4), False), ((24, 24), False)])
def test_a_network_of_another_size_reads_resized_images(sides: tuple[int, int], last: bool, tmp_path: Path) -> None:
    height, width = sides
    image = f"float[N, {height}, {width}, 3] image" if last else f"float[N, 3, {height}, {width}] image"
    path = network(tmp_path / "small.onnx", image)
    own, base = side(path, "unit"), side(network(tmp_path / "large.onnx", NHWC if last else NCHW), "unit")
    images = base.preprocess(pixels())
    moved = images.transpose(0, 3, 1, 2) if last else images
    small = resized(moved, sides)
    expected = file_answers(path, small.transpose(0, 2, 3, 1) if last else small)
    assert_close(stage_answers(first_of(own, base), images)["output"], expected)


def resized(images: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Images [B, C, H, W] in other sides: means of whole cells where more than two pixels become one, else linear."""
    steps = [max(1, before // after) for before, after in zip(images.shape[2:], sides, strict=True)]
    if max(steps) > 2:
        batch, channels, height, width = images.shape
        cells = images.reshape(batch, channels, height // steps[0], steps[0], width // steps[1], steps[1])
        images = cells.mean(axis=(3, 5))
    for axis, wanted in zip((2, 3), sides, strict=True):
        length = images.shape[axis]
        at = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
        low = np.minimum(at.astype(int), length - 1)
        high, part = np.minimum(low + 1, length - 1), (at - low).astype(np.float32)
        part = part.reshape([-1 if a == axis else 1 for a in range(4)])
        images = images.take(low, axis) * (1 - part) + images.take(high, axis) * part
    return np.ascontiguousarray(images)


@pytest.mark.parametrize("own_ends", [True, False])
@pytest.mark.parametrize("model_ends", [True, False])
def test_probabilities_and_logits_are_told_apart(own_ends: bool, model_ends: bool, tmp_path: Path) -> None:
    ending = "answer = Softmax<axis = 1>(logits)"
    path = network(tmp_path / "small.onnx", seed=1, ending=ending if own_ends else "")
    large = network(tmp_path / "large.onnx", ending=ending if model_ends else "")
    own, base = side(path, "unit"), side(large, "unit")
    images = own.preprocess(pixels())
    first = first_of(own, base)
    expected = file_answers(path, images)
    got = stage_answers(first, images)
    assert_close(got["confidence"], (expected if own_ends else softmax(expected)).max(axis=1))
    as_probabilities = expected if own_ends else softmax(expected)
    if model_ends:
        assert_close(got["output"], as_probabilities)
    else:
        assert_close(softmax(got["output"]), as_probabilities)
    assert first.chain.model.graph.output_kind == base.graph.output_kind


@pytest.mark.parametrize("opset", [13, 15, 18, 20])
def test_the_stage_has_the_operator_set_of_the_model(opset: int, tmp_path: Path) -> None:
    path = network(tmp_path / "small.onnx", "float[N, 3, 6, 6] image", opset=opset)
    base = side(network(tmp_path / "large.onnx"), "unit")
    (stage,) = build_stages([first_of(side(path, "imagenet"), base).chain])
    assert {o.version for o in stage.model.opset_import} == {base.graph.opset}


def test_another_number_of_classes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_graph(network(tmp_path / "large.onnx"))
    monkeypatch.setattr(f"{__name__}.CLASSES", 7)
    path = network(tmp_path / "small.onnx")
    with pytest.raises(
        ModelError, match=r"--first .*small.onnx: it has 7 classes, the model has 5; the same classes in the same"
    ):
        read_own(path, size=None, base=base)


def test_a_dynamic_size_is_asked_for(tmp_path: Path) -> None:
    base = load_graph(network(tmp_path / "large.onnx"))
    path = network(tmp_path / "small.onnx", "float[N, 3, H, W] image")
    with pytest.raises(ModelError, match=r"--first .*dynamic height or width; fix it with --first-size HxW"):
        read_own(path, size=None, base=base)
    assert read_own(path, size=(8, 8), base=base).shapes["image"] == (3, 8, 8)
    fixed = network(tmp_path / "fixed.onnx")
    with pytest.raises(UsageError, match=r"--first .*--first-size 8x8: input 'image' is fixed to 12x12"):
        read_own(fixed, size=(8, 8), base=base)


def test_files_that_are_no_classifier_are_refused(tmp_path: Path) -> None:
    base = load_graph(network(tmp_path / "large.onnx"))
    with pytest.raises(ModelError, match=r"--first .*missing.onnx: no such file"):
        read_own(tmp_path / "missing.onnx", size=None, base=base)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match=r"--first .*text.onnx: not a valid ONNX model"):
        read_own(tmp_path / "text.onnx", size=None, base=base)
    model = onnx.load(network(tmp_path / "small.onnx"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, ["N", 8]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match=r"--first .*has 2 outputs \(logits, flat\); export it with the logits alone"):
        read_own(tmp_path / "two.onnx", size=None, base=base)


def test_channels_that_cannot_be_made_are_refused() -> None:
    path = Path("small.onnx")
    four, three = (make_preprocess("unit", size=(4, 4), channels=c) for c in (4, 3))
    with pytest.raises(UsageError, match="it takes 4 channels, the model 3; only 1 and 3 can be made of each other"):
        check_colours(four, three, known=True, path=path)
    check_colours(four, four, known=True, path=path)
    other = make_preprocess("imagenet", size=(4, 4), channels=3)
    with pytest.raises(UsageError, match="how it was made of pixels is not known"):
        check_colours(other, three, known=False, path=path)
    check_colours(other, other, known=False, path=path)
    check_colours(other, three, known=True, path=path)
