"""Pictures in, names out: every kind of image, the dispatcher's answers, calibrated probabilities, a sentence for faults."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from example_exports import Example, make_example
from PIL import Image
from s2d_runtime import Answer, Classifier, Dispatcher, DispatcherError, Label, Manifest, Prediction
from s2d_runtime.classifier import predictions
from s2d_runtime.pictures import read_image
from s2d_runtime.preprocess import Preprocess
from text_nets import residual

from s2d_convert.exporting.provenance import recorded_preprocess
from s2d_convert.workflows.split_model import SplitOptions, split_model


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A folder of two stages for pictures of 8x8 pixels, whose manifest has names."""
    made = make_example(tmp_path_factory.mktemp("example"))
    edit(made.folder, class_names=[f"name {k}" for k in range(classes_of(made.folder))])
    return made


def classes_of(folder: Path) -> int:
    return int(np.prod([n or 1 for n in Manifest.load(folder).output.shape]))


def edit(folder: Path, **provenance: Any) -> None:
    """Add to the provenance of a manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["provenance"] |= provenance
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def classify(example: Example) -> Classifier:
    return Classifier(example.folder)


def test_answers_are_the_dispatchers_with_names(example: Example, classify: Classifier) -> None:
    with Dispatcher(example.folder) as dispatcher:
        expected = dispatcher(example.images)
    found = classify(example.pixels)
    assert [p.name for p in found] == [f"name {k}" for k in expected.output.argmax(axis=1)]
    assert [p.stage for p in found] == expected.stage.tolist()
    assert [p.confidence for p in found] == expected.confidence.tolist()
    assert [p.probability for p in found] == pytest.approx(expected.confidence, abs=1e-5)
    assert {p.stage for p in found} == {1, 2}


def test_all_kinds_of_images_are_one(example: Example, classify: Classifier, tmp_path: Path) -> None:
    pixels = example.pixels[0]
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    kinds = [path, str(path), path.read_bytes(), Image.fromarray(pixels), Image.open(path), pixels, example.images[0]]
    found = [classify(kind) for kind in kinds]
    assert found == [found[0]] * len(kinds)
    assert isinstance(found[0], Prediction)
    assert classify(kinds) == found
    assert classify(tuple(kinds[:2])) == found[:2]
    assert classify(example.images) == classify(example.pixels) == [classify(p) for p in example.pixels]
    assert classify([]) == []


def test_other_sizes_and_modes_are_read_like_files_of_the_converter(classify: Classifier, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    preprocess = recorded_preprocess(classify.dispatcher.manifest)
    wide = rng.integers(0, 256, (20, 33, 4), np.uint8)
    for name, image in (
        ("rgb", Image.fromarray(wide[:, :, :3])),
        ("rgba", Image.fromarray(wide)),
        ("grey", Image.fromarray(wide[:, :, 0])),
        ("palette", Image.fromarray(wide[:, :, :3]).quantize(16)),
    ):
        path = tmp_path / f"{name}.png"
        image.save(path)
        expected = preprocess(read_image(path, preprocess)[None])[0]
        assert np.array_equal(classify.read(path), expected)
        assert np.array_equal(classify.read(image), expected)
    for array in (wide[:, :, :3], wide, wide[:, :, 0], wide[:, :, :1]):
        picture = Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array)
        assert np.array_equal(classify.read(array), classify.read(picture))


def test_a_turned_picture_is_upright_however_it_comes(classify: Classifier, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(classify.read(opened), classify.read(tmp_path / "turned.png"))
    assert np.array_equal(
        classify.read(tmp_path / "turned.png"), classify.read(image.transpose(Image.Transpose.ROTATE_270))
    )


def test_many_images_are_the_same_in_any_batches(example: Example, classify: Classifier) -> None:
    many = np.concatenate([example.pixels] * 6)
    assert classify(many) == classify(example.pixels) * 6


def test_budget_top_and_own_names(example: Example) -> None:
    count = classes_of(example.folder)
    with Classifier(example.folder, top=count, classes=[f"own {k}" for k in range(count)], budget=0.8) as classify:
        found = classify(example.pixels[0])
        assert sum(label.probability for label in found.labels) == pytest.approx(1)
        assert [x.probability for x in found.labels] == sorted((x.probability for x in found.labels), reverse=True)
        assert found.name == f"own {found.labels[0].index}"
        assert classify(example.pixels, budget=0.4) == Classifier(example.folder, top=count, classes=classify.names)(
            example.pixels, budget=0.4
        )
    assert found.to_json()["labels"][0]["class"] == found.labels[0].index


def test_folders_without_names_answer_with_numbers(tmp_path: Path) -> None:
    example = make_example(tmp_path)
    found = Classifier(example.folder)(example.pixels[0])
    assert found.name == str(found.labels[0].index)


ANSWER = np.array([[2.0, -1.0, 0.5], [-3.0, -2.0, -1.0]], np.float32)


def manifest_of(example: Example, kind: str, temperatures: tuple[float, ...]) -> Manifest:
    manifest = Manifest.load(example.folder)
    stages = [replace(stage, temperature=t) for stage, t in zip(manifest.stages, temperatures, strict=True)]
    return replace(manifest, output=replace(manifest.output, kind=kind, shape=(None, 3)), stages=tuple(stages))


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities", "percent"])
def test_probabilities_are_those_at_the_stages_temperature(example: Example, kind: str) -> None:
    temperatures = (0.5, 2.0)
    shares = np.exp(ANSWER) / np.exp(ANSWER).sum(axis=1, keepdims=True)
    output = {"logits": ANSWER, "probabilities": shares, "log_probabilities": np.log(shares), "percent": 100 * shares}
    answer = Answer(output[kind], np.array([2, 1]), np.array([0.5, 0.25], np.float32))
    manifest = manifest_of(example, "probabilities" if kind == "percent" else kind, temperatures)
    found = predictions(manifest, answer, ("a", "b", "c"), top=3)
    for row, temperature in ((0, 2.0), (1, 0.5)):
        raised = np.exp(ANSWER[row].astype(np.float64) / temperature)
        expected = raised / raised.sum()
        order = np.argsort(-expected)
        assert [label.index for label in found[row].labels] == order.tolist()
        assert [label.probability for label in found[row].labels] == pytest.approx(expected[order], abs=1e-6)
    assert [p.name for p in found] == ["a", "c"]
    assert [p.confidence for p in found] == [0.5, 0.25]


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_logits"])
def test_all_labels_above_a_half_are_given(example: Example, kind: str) -> None:
    output = ANSWER if kind == "sigmoid_logits" else (1 / (1 + np.exp(-ANSWER))).astype(np.float32)
    answer = Answer(output, np.array([1, 1]), np.array([0.5, 0.5], np.float32))
    some, none = predictions(manifest_of(example, kind, (2.0, 1.0)), answer, ("a", "b", "c"))
    expected = [1 / (1 + np.exp(-x / 2)) for x in (2.0, 0.5)]
    assert [(x.name, x.index) for x in some.labels] == [("a", 0), ("c", 2)]
    assert [x.probability for x in some.labels] == pytest.approx(expected, abs=1e-6)
    assert none.labels == ()
    assert none.name is None
    assert none.probability is None


@pytest.mark.parametrize("ending", ["Softmax", "Sigmoid"])
def test_confidence_and_probability_agree_where_the_model_ends_otherwise(ending: str, tmp_path: Path) -> None:
    model = residual()
    logits = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node(ending, [logits], ["answer"]))
    model.graph.output[0].name = "answer"
    onnx.save(model, str(tmp_path / "model.onnx"))
    split_model(SplitOptions(tmp_path / "model.onnx", plan="depth", stages=2, out=tmp_path / "OUT"))
    images = np.random.default_rng(0).normal(size=(6, 3, 8, 8)).astype(np.float32)
    with Classifier(tmp_path / "OUT") as classify:
        found = classify(images)
        spec = classify.dispatcher.manifest.output
        answer = classify.dispatcher(images)
    for one, output in zip(found, answer.output, strict=True):
        assert {label.index for label in one.labels} == set(spec.said(output))
        if ending == "Softmax":
            assert one.probability == pytest.approx(one.confidence, abs=1e-5)
        else:
            assert all(
                label.probability == pytest.approx(output.ravel()[label.index], abs=1e-5) for label in one.labels
            )


def test_results_are_values() -> None:
    one = Prediction((Label("cat", 3, 0.9),), 1, 0.9)
    assert one == Prediction((Label("cat", 3, 0.9),), 1, 0.9)
    assert hash(one) == hash(Prediction((Label("cat", 3, 0.9),), 1, 0.9))
    assert json.dumps(one.to_json()) == (
        '{"labels": [{"name": "cat", "class": 3, "probability": 0.9}], "stage": 1, "confidence": 0.9}'
    )


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("missing.png", "missing.png: cannot be read as a picture (No such file or directory)"),
        (b"no picture", "a picture: cannot be read as a picture (its content is none of JPEG"),
        (np.zeros((2, 2, 2, 2, 3), np.uint8), "got uint8 of shape (2, 2, 2, 2, 3); expected uint8 pixels"),
        (
            np.zeros((3, 8, 8)),
            "got float64 of shape (3, 8, 8); expected uint8 pixels (H, W, C), or float32 of (3, 8, 8)",
        ),
        (np.zeros((3, 9, 8), np.float32), "got float32 of shape (3, 9, 8)"),
        (np.zeros((5, 5, 5), np.uint8), "cannot be read as a picture"),
        (3, "got int; expected a path, bytes"),
        ([None], "got NoneType; expected a path"),
    ],
)
def test_what_is_no_image_is_one_sentence(classify: Classifier, image: Any, words: str) -> None:
    with pytest.raises(DispatcherError) as caught:
        classify(image)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 0}, "top: got 0"),
        ({"classes": ["a"]}, "classes: expected the names of the model's"),
        ({"classes": "abc"}, "classes: expected the names"),
        ({"budget": 2}, "budget: got 2"),
    ],
)
def test_faulty_options_are_one_sentence(example: Example, options: dict[str, Any], words: str) -> None:
    with pytest.raises(DispatcherError) as caught:
        Classifier(example.folder, **options)
    assert words in str(caught.value)


def test_faulty_records_are_one_sentence(tmp_path: Path) -> None:
    example = make_example(tmp_path)
    edit(example.folder, class_names=["too few"])
    with pytest.raises(DispatcherError, match="class_names: got"):
        Classifier(example.folder)
    edit(example.folder, class_names=None)
    path = example.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"preprocess": {"mean": 1}}), encoding="utf-8")
    with pytest.raises(DispatcherError, match="preprocess: keys"):
        Classifier(example.folder)
    unknown = manifest["preprocess"] | {"known": False}
    path.write_text(json.dumps(manifest | {"preprocess": unknown}), encoding="utf-8")
    with Classifier(example.folder) as classify:
        assert len(classify(example.images)) == len(example.images)
        with pytest.raises(DispatcherError, match="converted with float32 arrays that it takes as they are"):
            classify(example.pixels)
    path.write_text(json.dumps(manifest | {"preprocess": None}), encoding="utf-8")
    with Classifier(example.folder) as classify:
        assert len(classify(example.images)) == len(example.images)
        with pytest.raises(DispatcherError, match="records no preprocessing"):
            classify(io.BytesIO())


def test_without_pillow_arrays_are_read_and_pictures_are_one_sentence(
    example: Example, classify: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL" or name == "s2d_runtime.pictures"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(classify(example.pixels)) == len(example.pixels)
    with pytest.raises(DispatcherError, match=r"pip install 's2d-runtime\[images\]'"):
        classify("photo.jpg")


def test_importing_the_runtime_loads_no_pillow() -> None:
    code = "import sys; from s2d_runtime import Classifier; print({'PIL', 's2d_runtime.pictures'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_converter_and_the_runtime_share_their_preprocessing(example: Example, classify: Classifier) -> None:
    assert isinstance(recorded_preprocess(classify.dispatcher.manifest), Preprocess)
    assert np.array_equal(recorded_preprocess(classify.dispatcher.manifest)(example.pixels), example.images)
    assert np.array_equal(np.stack([classify.read(p) for p in example.pixels]), example.images)
