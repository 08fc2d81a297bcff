"""The static model is held against the data before anything is trained; what would do better is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from s2d_convert.calibration.task import ONE_CLASS
from s2d_convert.data.images import Images
from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.data.presets import PixelOptions
from s2d_convert.errors import StaticCheckError
from s2d_convert.frontend.load import graph_from_proto
from s2d_convert.frontend.reference import StaticModel
from s2d_convert.frontend.static_check import check_static

NAMES = ("normal", "tumour")


def logits_of(answers: np.ndarray) -> np.ndarray:
    return 9 * np.eye(2, dtype=np.float32)[answers]


def images_of(labels: np.ndarray | None, count: int) -> Images:
    preprocess = make_preprocess(size=(1, 1), channels=3)
    kind: Any = "unlabelled" if labels is None else "labelled"
    floats = np.zeros((count, 3, 1, 1), np.float32)
    return Images(floats, preprocess, np.arange(count), labels, kind, NAMES)


def checked(answers: np.ndarray, labels: np.ndarray | None, *, force: bool = False) -> Any:
    static: Any = SimpleNamespace(graph=SimpleNamespace(task=ONE_CLASS))  # runs on no arrays that are taken as they are
    return check_static(static, images_of(labels, len(answers)), logits_of(answers), force=force)


def test_an_honest_binary_task_is_not_near_chance() -> None:
    labels = np.arange(1000) % 2
    answers = np.where(np.arange(1000) % 100 < 72, labels, 1 - labels)
    found = checked(answers, labels)
    assert found.note == "static model: accuracy 72.00 % on 1000 held-out images"
    assert found.warnings == ()


def test_a_model_that_always_answers_one_class_is_refused_unless_forced() -> None:
    labels = (np.arange(300) % 13 == 0).astype(int)
    with pytest.raises(
        StaticCheckError, match=r"near chance: not better than always answering class 0 \('normal'\)"
    ) as caught:
        checked(np.zeros(300, int), labels)
    for words in ("24 images of 'tumour' rightly", "--scale", "--order", "--resize", "--bits", "--force goes on"):
        assert words in str(caught.value)
    found = checked(np.zeros(300, int), labels, force=True)
    assert "(balanced 50.00 %)" in found.note
    (warning,) = found.warnings
    assert "hardly any of the 24 images of 'tumour' rightly" in warning


def test_too_few_images_are_no_reason_to_refuse() -> None:
    labels = np.array([0, 0, 0, 1, 0, 0])
    assert "6 images are too few to tell" in checked(labels.copy(), labels).warnings[0]


def test_a_useful_model_below_the_largest_share_passes_with_a_word() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(1000) % 50 == 0).astype(int)
    found = checked(np.where(rng.random(1000) < np.where(labels == 1, 0.8, 0.04), 1, 0), labels)
    assert "would be right more often than the static model" in found.warnings[0]


def test_one_sided_data_asks_for_images_of_the_other_class() -> None:
    with pytest.raises(StaticCheckError, match=r"for every one of 200 images: images of other classes are needed too"):
        checked(np.zeros(200, int), None)
    assert len(checked(np.zeros(200, int), None, force=True).warnings) == 1
    rare = (np.arange(200) == 7).astype(int)
    assert "agreement says little of the other classes" in checked(rare, None).warnings[0]
    assert checked(np.arange(200) % 2, None).warnings == ()


def test_numbers_that_are_none_are_never_forced() -> None:
    static: Any = None  # is not asked
    with pytest.raises(StaticCheckError, match="NaN or infinity"):
        check_static(static, images_of(None, 4), np.full((4, 2), np.nan, np.float32), force=True)


# ---- another way from pixels to model input ------------------------------------------------------------------------


def edge_model(size: int) -> StaticModel:
    """Answers class 1 where the left fifth of the picture is bright, judged on red in 0..1 units: all must be right."""
    weight = np.zeros((2, 3, size, size), np.float32)
    weight[1, 0, :, : size // 8] = 1.0
    bias = np.array([0.5 * weight.sum(), 0.0], np.float32)
    graph = onnx.parser.parse_graph(
        f"g (float[N,3,{size},{size}] image) => (float[N,2] logits) {{ y = Conv(image, w, b)  logits = Flatten(y) }}"
    )
    graph.initializer.extend([onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return StaticModel(graph_from_proto(model))


def wide_pictures(folder: Path, *, blue: bool = False) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 90, (16, 48, 3), dtype=np.uint8)
        if number % 2:
            pixels[:, :6, 2 if blue else 0] += 160
        else:
            pixels[:, :6, 0 if blue else 2] += 160
        (folder / f"{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number % 2}" / f"{number}.png")


@pytest.mark.parametrize(
    ("blue", "said", "resize", "hint"),
    [
        (False, "unit", "crop", r"with --resize (stretch|pad) it would be 100 %"),
        (True, "unit", "stretch", r"with --order bgr it would be 100 %"),
    ],
)
def test_the_way_that_does_better_is_named(blue: bool, said: str, resize: str, hint: str, tmp_path: Path) -> None:
    wide_pictures(tmp_path, blue=blue)
    static = edge_model(16)
    preprocess = make_preprocess(said, size=(16, 16), channels=3, pixels=PixelOptions(resize=resize))
    images = load_all(tmp_path, preprocess=preprocess, space=LabelSpace(2))
    with pytest.raises(StaticCheckError, match=hint):
        check_static(static, images, static.logits(images.batch(slice(None))), force=False)
