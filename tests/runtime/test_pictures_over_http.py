"""Pictures as request bodies: the tensors of the same picture, names beside them, and a sentence for every bad one."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_exports import Example, make_example
from PIL import Image
from s2d_runtime import Answer, Classifier, Dispatcher, Manifest

pytest.importorskip("starlette", reason="the extra s2d-runtime[http] is not installed")
pytest.importorskip("prometheus_client", reason="the extra s2d-runtime[http] is not installed")

from http_client import INFER, JSON, Running, running
from s2d_runtime.serving.pictures import PictureRequests, media_type

NAMES = ["cat", "dog", "red fox"]
SMALL: dict[str, Any] = {"body_mib": 1 / 16, "megapixels": 0.01}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    made = make_example(tmp_path_factory.mktemp("pictures"))
    change(made.folder, class_names=NAMES)
    return made


@pytest.fixture(scope="module")
def server(example: Example) -> Iterator[Running]:
    with running(example.folder, **SMALL) as started:
        yield started


def change(folder: Path, *, preprocess: Any = None, **provenance: Any) -> None:
    """Change what a manifest records."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["provenance"] |= provenance
    manifest["preprocess"] |= preprocess or {}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    """A picture file's content."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PIXELS = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)


def tensors(reply: Any) -> dict[str, Any]:
    return {tensor["name"]: np.array(tensor["data"]).reshape(tensor["shape"]) for tensor in reply.json["outputs"]}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("budget", [None, 0.8])
def test_a_picture_gets_the_dispatchers_tensors_and_names(
    server: Running, example: Example, kind: str, budget: float | None
) -> None:
    body, query = encoded(PIXELS, kind), "" if budget is None else f"?budget={budget}"
    reply = server("POST", INFER + query, body, Content_Type=f"image/{kind.lower()}")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    with Classifier(example.folder) as classify:
        found = classify(body, budget=budget)
        answer = classify.dispatcher(classify.read(body)[None], budget=budget)
    got = tensors(reply)
    assert np.array_equal(got["output"].astype(np.float32), answer.output)
    assert np.array_equal(got["stage"], answer.stage)
    assert got["label"].tolist() == [[found.name]]
    assert found.name in NAMES
    assert got["probability"].shape == (1, 1)
    assert got["probability"][0, 0] == pytest.approx(found.probability)
    assert reply.json["parameters"] == {"budget": budget or 0.4}


def test_other_content_types_keep_their_answers(server: Running, example: Example) -> None:
    image = example.images[0]
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape], "data": image.ravel().tolist()}
    reply = server("POST", INFER, {"inputs": [tensor]}, **JSON)
    assert list(tensors(reply)) == ["output", "confidence", "stage"]
    with Dispatcher(example.folder) as dispatcher:
        assert np.array_equal(tensors(reply)["output"].astype(np.float32), dispatcher(image[None]).output)


PNG, JPEG = {"Content-Type": "image/png"}, {"Content-Type": "image/jpeg; q=1"}


@pytest.mark.parametrize(
    ("body", "path", "headers", "status", "words"),
    [
        (b"", INFER, PNG, 400, "the picture cannot be read (its content is no PNG)"),
        (b"hello", INFER, JPEG, 400, "the picture cannot be read (its content is no JPEG)"),
        (encoded(PIXELS), INFER, JPEG, 400, "its content is no JPEG"),
        (encoded(PIXELS)[:900], INFER, PNG, 400, "the picture cannot be read ("),
        (encoded(PIXELS, "JPEG")[:300], INFER, JPEG, 400, "the picture cannot be read ("),
        (encoded(np.zeros((200, 100, 3), np.uint8)), INFER, PNG, 400, "100x200 pixels, at most 10000 are allowed"),
        (encoded(np.zeros((9, 9), np.float32), "TIFF"), INFER, PNG, 400, "its content is no PNG"),
        (b"\x89PNG" + b"x" * 100_000, INFER, PNG, 413, "longer than 65536 bytes"),
        (encoded(PIXELS), INFER, {**PNG, "Content-Encoding": "gzip"}, 415, "Content-Encoding: got 'gzip'"),
        (encoded(PIXELS), INFER, {"Content-Type": "image/gif"}, 415, "got 'image/gif'; expected application/json"),
        (encoded(PIXELS), INFER + "?budget=7", PNG, 400, "parameters.budget: got 7"),
        (encoded(PIXELS), INFER + "?budget=much", PNG, 400, "parameters.budget: got 'much'"),
        (encoded(PIXELS), "/v2/models/other/infer", PNG, 404, "no model 'other'"),
    ],
)
def test_a_bad_picture_is_one_sentence(
    server: Running, body: bytes, path: str, headers: dict[str, str], status: int, words: str
) -> None:
    reply = server("POST", path, body, **headers)
    assert (reply.status, list(reply.json)) == (status, ["error"])
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]
    assert len(reply.json["error"]) < 250
    assert server("POST", INFER, encoded(PIXELS), **PNG).status == 200


@pytest.mark.parametrize(
    ("preprocess", "names", "words"),
    [
        ({"known": False}, NAMES, "takes no pictures (a picture: pixels, but the model was converted with float32"),
        ({"mean": "x"}, NAMES, "takes no pictures (preprocessing: mean 'x'"),
        ({}, ["cat"], "takes no pictures (manifest.json: provenance, class_names"),
    ],
)
def test_a_folder_that_takes_no_pictures_is_served_all_the_same(
    tmp_path: Path, preprocess: dict[str, Any], names: list[str], words: str
) -> None:
    example = make_example(tmp_path)
    change(example.folder, preprocess=preprocess, class_names=names)
    image = example.images[0]
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape], "data": image.ravel().tolist()}
    with running(example.folder) as server:
        reply = server("POST", INFER, encoded(PIXELS), **PNG)
        assert reply.status == 415
        assert words in reply.json["error"]
        assert server("POST", INFER, {"inputs": [tensor]}, **JSON).status == 200


def test_without_pillow_a_picture_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    body = encoded(PIXELS)
    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL" or name == "s2d_runtime.pictures"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PIL", None)
    reply = server("POST", INFER, body, **PNG)
    assert reply.status == 415
    assert "pip install 's2d-runtime[images]'" in reply.json["error"]


def test_several_labels_are_all_named(example: Example) -> None:
    manifest = Manifest.load(example.folder)
    several = replace(manifest, output=replace(manifest.output, kind="sigmoid_logits"))
    requests = PictureRequests(several, most_pixels=10_000)
    for output, expected in (([1.0, -1.0, 2.0], ["red fox", "cat"]), ([-1.0, -1.0, -2.0], [])):
        answer = Answer(np.array([output], np.float32), np.array([1]), np.array([0.5], np.float32))
        label, probability = requests.with_names({"outputs": []}, answer)["outputs"]
        assert label["data"].tolist() == expected
        assert label["shape"] == probability["shape"] == [1, len(expected)]


@pytest.mark.parametrize(
    ("header", "expected"), [(None, ""), ("image/PNG", "image/png"), ("image/jpeg; charset=x", "image/jpeg")]
)
def test_media_types(header: str | None, expected: str) -> None:
    assert media_type(header) == expected
