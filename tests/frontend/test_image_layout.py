"""Which axis of an image has the channels, and how many: what the graph says, whatever the lengths look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_close, run
from patterns.base import Weight, net, norm

from s2d_convert.conversion.options import ConvertOptions
from s2d_convert.conversion.prepare import preprocess_of
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_data
from s2d_convert.errors import ModelError
from s2d_convert.frontend import graph_from_proto
from s2d_convert.frontend.equivalence import noise
from s2d_convert.frontend.layout import Layout, layout_of

END = "x = Relu(a)  g = GlobalAveragePool(x)  f = Flatten(g)  logits = Gemm<transB=1>(f, wl)"
SWAP = "t = Transpose<perm=[0,3,1,2]>(image)  "


def classifier(start: str, shape: str, *, channels: int, read: int = 0, **weights: Weight) -> onnx.ModelProto:
    """A net that begins with `start`, which makes `a` of an image [N, *shape]; its convolution reads `read` channels."""
    return net(
        f"(float[N,{shape}] image) => (float[N,5] logits) {{ {start}  {END} }}",
        {**norm("n", channels), "w": (8, read or channels, 1, 1), "wl": (5, 8), **weights},
    )


@pytest.mark.parametrize(
    ("start", "shape", "channels", "expected"),
    [
        ("a = Conv(image, w)", "3,8,8", 3, Layout(1, 3)),
        ("a = Conv(image, w)", "9,128,1", 9, Layout(1, 9)),  # sensors: one pixel wide
        ("a = Conv(image, w)", "16,16,4", 16, Layout(1, 16)),
        (SWAP + "a = Conv(t, w)", "8,8,13", 13, Layout(3, 13)),  # bands last
        (SWAP + "a = Conv(t, w)", "3,3,3", 3, Layout(3, 3)),
        ("s = Mul(image, half)  t = Transpose<perm=[0,3,1,2]>(s)  a = Conv(t, w)", "8,8,6", 6, Layout(3, 6)),
        ("b = BatchNormalization(image, ns, nb, nm, nv)  a = Conv(b, w)", "9,16,1", 9, Layout(1, 9)),
        (SWAP + "p = Pad(t, pads)  a = Conv(p, w)", "8,8,13", 13, Layout(3, None)),
    ],
)
def test_the_graph_tells(start: str, shape: str, channels: int, expected: Layout) -> None:
    model = classifier(start, shape, channels=channels, half=[0.5], pads=[0, 0, 1, 1, 0, 0, 1, 1])
    assert layout_of(model.graph, "image") == expected
    graph = graph_from_proto(model)
    assert graph.image_axis == expected.axis - 1
    assert graph.shapes["image"][graph.image_axis] == channels


@pytest.mark.parametrize(("shape", "axis"), [("3,6,4", 0), ("4,6,3", 0), ("6,4,3", 2), ("6,4,1", 2), ("6,4,5", 0)])
def test_where_it_does_not_the_lengths_do(shape: str, axis: int) -> None:
    """A Reshape mixes the axes before anything tells them apart."""
    count = [int(n) for n in shape.split(",")]
    elements = count[0] * count[1] * count[2]
    model = classifier("r = Reshape(image, to)  a = Conv(r, w)", shape, channels=elements, to=[0, elements, 1, 1])
    assert layout_of(model.graph, "image") is None
    assert graph_from_proto(model).image_axis == axis


@pytest.mark.parametrize(
    ("start", "shape", "size", "expected"),
    [
        ("a = Conv(image, w)", "C,H,W", (6, 9), (13, 6, 9)),
        ("a = Conv(image, w)", "C,8,8", None, (13, 8, 8)),
        (SWAP + "a = Conv(t, w)", "H,W,C", (6, 9), (6, 9, 13)),
        (SWAP + "a = Conv(t, w)", "H,W,13", (6, 9), (6, 9, 13)),
    ],
)
def test_dynamic_channels_are_those_of_the_first_convolution(
    start: str, shape: str, size: tuple[int, int] | None, expected: tuple[int, ...]
) -> None:
    model = classifier(start, shape, channels=13)
    graph = graph_from_proto(model, size=size)
    assert graph.shapes["image"] == expected
    images = noise((5, *expected))
    assert_close(run(graph.to_model(), {"image": images}), run(model, {"image": images}))


def test_a_grouped_convolution_reads_more_channels_than_its_weight_shows() -> None:
    model = classifier("a = Conv<group=4>(image, w)", "C,8,8", channels=12, read=3)
    assert graph_from_proto(model).shapes["image"] == (12, 8, 8)


def test_an_image_of_unknown_shape_is_one_of_four_axes() -> None:
    model = classifier("a = Conv(image, w)", "3,8,8", channels=3)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert graph_from_proto(model, size=(6, 7)).shapes["image"] == (3, 6, 7)


def test_channels_that_nothing_tells_are_asked_for() -> None:
    model = classifier("r = Reshape(image, to)  a = Conv(r, w)", "C,8,8", channels=3, to=[0, 3, 8, 8])
    with pytest.raises(ModelError, match="dynamic number of channels, and no convolution that reads it tells"):
        graph_from_proto(model)


@pytest.mark.parametrize(
    ("start", "shape", "channels"),
    [(SWAP + "a = Conv(t, w)", "16,16,13", 13), ("a = Conv(image, w)", "9,32,1", 9)],
    ids=["bands last", "sensors"],
)
def test_augmentation_moves_pixels_and_never_channels(tmp_path: Path, start: str, shape: str, channels: int) -> None:
    """Every channel holds its own number, so that one that came from elsewhere would show."""
    graph = graph_from_proto(classifier(start, shape, channels=channels))
    preprocess = preprocess_of(graph, ConvertOptions(model=tmp_path / "model.onnx", out=tmp_path / "out"))
    assert preprocess.channels == channels
    marks = np.arange(channels, dtype=np.float32)
    if graph.image_axis == 0:
        marks = marks[:, None, None]
    images = marks + 1e-3 * noise((40, *graph.shapes["image"]))
    np.savez(tmp_path / "marked.npz", images=images, labels=np.arange(40) % 5)
    dataset = load_data(tmp_path / "marked.npz", preprocess=preprocess, space=LabelSpace(5), seed=0)
    rows = np.arange(len(dataset.train))
    augmented = dataset.train.augmented(rows, np.random.default_rng(1))
    assert_close(np.round(augmented), np.broadcast_to(marks, augmented.shape))
