"""The V2 protocol: what goes in as JSON, as arrays or as raw bytes is what the dispatcher gets, and nothing else gets in."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2d_runtime import Answer, Dispatcher, Manifest
from s2d_runtime.serving import v2
from toy_exports import PAIR, images_of, manifest_of, policy, stage_text, write_export

TEXTS = [stage_text(number, toy) for number, toy in enumerate(PAIR, start=1)]
MANIFEST = Manifest.from_json(manifest_of(PAIR, TEXTS, policies=[policy(0.5, [0.5]), policy(0.9, [0.8])]))
ROW = [0.6, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]


def request(**changes: Any) -> dict[str, Any]:
    """A sound request for one image; `changes` replace parts of its tensor, or of the whole where it has them."""
    whole = {key: changes.pop(key) for key in ("id", "inputs", "outputs", "parameters") if key in changes}
    tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [1, 2, 4], "data": ROW, **changes}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]} | whole


def manifest_with(dtype: str) -> Manifest:
    """The toy's manifest with another type of images."""
    data = MANIFEST.to_json()
    data["input"]["dtype"] = dtype
    return Manifest.from_json(data)


def shaped(images: Any, form: str) -> tuple[dict[str, Any], bytes]:
    """A request for images in one of the ways in which `data` may come, and the bytes behind it."""
    if form == "behind":
        asked = request(shape=list(images.shape), data=None)
        asked["inputs"][0]["parameters"] = {"binary_data_size": images.nbytes}
        return asked, images.tobytes()
    data = {"flat": images.ravel().tolist(), "nested": images.tolist(), "array": images, "bytes": images.tobytes()}
    return request(shape=list(images.shape), data=data[form]), b""


@pytest.mark.parametrize("form", ["flat", "nested", "array", "bytes", "behind"])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_images_arrive_as_they_are(form: str, rows: int) -> None:
    images = images_of(np.random.default_rng(rows).random((rows, 4)))
    body, binary = shaped(images, form)
    call = v2.parse(body, MANIFEST, most_rows=3, binary=binary)
    assert call.images.dtype == np.float32
    assert call.images.flags.aligned
    assert np.array_equal(call.images, images)


def test_what_is_left_out_has_a_default() -> None:
    call = v2.parse(request(), MANIFEST, most_rows=1)
    assert (call.budget, call.id) == (None, None)
    assert (call.outputs, set(call.binary)) == (("output", "confidence", "stage"), set())


def test_what_is_asked_for_is_told() -> None:
    outputs = [{"name": "stage"}, {"name": "output", "parameters": {"binary_data": True}}]
    asked = request(id="a", outputs=outputs, parameters={"budget": 0.7, "gateway": "x"})
    call = v2.parse(asked, MANIFEST, most_rows=1)
    assert (call.budget, call.id) == (0.7, "a")
    assert (call.outputs, set(call.binary)) == (("stage", "output"), {"output"})
    assert v2.parse(request(parameters={"budget": "0.7"}), MANIFEST, most_rows=1).budget == 0.7
    call = v2.parse(request(parameters={"binary_data_output": True}), MANIFEST, most_rows=1)
    assert set(call.binary) == set(call.outputs)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "inputs"),
        (request(inputs=[]), "inputs"),
        (request(inputs={"a": 1}), "inputs"),
        (request(inputs="ab"), "inputs"),
        (request(inputs=[*request()["inputs"], *request()["inputs"]]), "inputs"),
        (request(inputs=[3]), "inputs[0]: got 3"),
        (request(id=7), "id: got 7"),
        (request(id="x" * 2000), "id: got"),
        (request(name="picture"), "inputs[0].name: got 'picture'; expected 'image'"),
        (request(name=["image"]), "inputs[0].name"),
        (request(datatype="FP64"), "inputs[0].datatype: got 'FP64'; expected 'FP32'"),
        (request(shape=None), "inputs[0].shape: got None; expected [B, 2, 4]"),
        (request(shape=[2, 4]), "inputs[0].shape: got [2, 4]"),
        (request(shape=[1, 2, 5]), "inputs[0].shape: got [1, 2, 5]"),
        (request(shape=[-1, 2, 4]), "inputs[0].shape: got [-1, 2, 4]"),
        (request(shape=[True, 2, 4]), "inputs[0].shape: got [True, 2, 4]"),
        (request(shape=[1.0, 2, 4]), "inputs[0].shape"),
        (request(shape=["1", 2, 4]), "inputs[0].shape"),
        (request(shape=[2**70, 2, 4]), "at most 2 rows"),
        (request(shape=[3, 2, 4], data=[0.0] * 24), "at most 2 rows; send several requests"),
        (request(data=None), "either data or the parameter binary_data_size"),
        (request(parameters=3), "parameters: got 3; expected an object"),
        (request(data="1, 2, 3"), "inputs[0].data"),
        (request(data=ROW[:7]), "inputs[0].data: got shape [7]; expected 8 numbers, flat or as [1, 2, 4]"),
        (request(data=[ROW[:4], ROW[4:]]), "inputs[0].data: got shape [2, 4]"),
        (request(data=[[ROW[:4], ROW[:3]]]), "lists of different lengths"),
        (request(data=[*ROW[:7], None]), "expected numbers"),
        (request(data=["1"] * 8), "expected numbers"),
        (request(data=[True] * 8), "expected numbers"),
        (request(data=[10**30] * 8), "expected numbers"),
        (request(data=[*ROW[:7], {"a": 1}]), "expected numbers"),
        (request(data=[*ROW[:7], float("nan")]), "NaN or a number beyond float32"),
        (request(data=[*ROW[:7], 1e39]), "NaN or a number beyond float32"),
        (request(data=b"1234"), "got 4 bytes; expected 32 for the shape [1, 2, 4]"),
        (request(outputs="output"), "outputs: got 'output'"),
        (request(outputs=["output"]), "outputs[0]"),
        (request(outputs=[{"name": "logits"}]), "outputs[0].name: got 'logits'; expected one of output, confidence"),
        (request(outputs=[{"name": "stage"}, {"name": "stage"}]), "outputs[1].name"),
        (request(parameters={"budget": 0}), "parameters.budget: got 0; expected a share"),
        (request(parameters={"budget": 2}), "parameters.budget: got 2"),
        (request(parameters={"budget": "half"}), "parameters.budget: got 'half'"),
        (request(parameters={"budget": "nan"}), "parameters.budget: got nan"),
        (request(parameters={"budget": None}), "parameters.budget: got None; expected a number above 0"),
        (request(parameters={"budget": True}), "parameters.budget: got True"),
        (request(parameters={"budget": 10**400}), "parameters."),
    ],
)
def test_a_bad_request_is_one_sentence(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(v2.RequestError) as caught:
        v2.parse(asked, MANIFEST, most_rows=2)
    assert caught.value.status == 400
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", [31, True, "32", -1])
def test_raw_bytes_must_be_as_long_as_they_say(size: object) -> None:
    asked = request(data=None, parameters={})
    asked["inputs"][0]["parameters"] = {"binary_data_size": size}
    with pytest.raises(v2.RequestError, match="binary_data_size"):
        v2.parse(asked, MANIFEST, most_rows=1, binary=bytes(32))


def test_raw_bytes_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(v2.RequestError, match="belong to no tensor"):
        v2.parse(request(), MANIFEST, most_rows=1, binary=bytes(32))


@pytest.mark.parametrize(
    ("data", "fits"), [([0, 255] * 4, True), ([0.0] * 8, False), ([-1] * 8, False), ([256] * 8, False)]
)
def test_bytes_are_whole_numbers_below_256(data: list[Any], fits: bool) -> None:
    asked = request(datatype="UINT8", data=data)
    if fits:
        assert v2.parse(asked, manifest_with("uint8"), most_rows=1).images.ravel().tolist() == data
    else:
        with pytest.raises(v2.RequestError, match="whole numbers from 0 to 255"):
            v2.parse(asked, manifest_with("uint8"), most_rows=1)


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(v2.RequestError, match="beyond float16"):
        v2.parse(request(datatype="FP16", data=[70000.0] * 8), manifest_with("float16"), most_rows=1)


@pytest.mark.parametrize(
    ("body", "header", "words"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"[1]", None, "a JSON object"),
        (b'{"a": NaN}', None, "NaN is not a number"),
        (b'{"a": -Infinity}', None, "-Infinity is not a number"),
        (b"\xff\xfe{", None, "not valid JSON"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", None, "not valid JSON"),
        (b"{}", 3, "within 2 bytes"),
        (b"{}", 0, "within 2 bytes"),
        (b"{}", -1, "within 2 bytes"),
    ],
)
def test_a_bad_body_is_one_sentence(body: bytes, header: int | None, words: str) -> None:
    with pytest.raises(v2.RequestError, match=words) as caught:
        v2.decode(body, header)
    assert "\n" not in str(caught.value)


@given(text=st.text(max_size=40) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_whatever_the_body_is_only_a_request_error_comes_out(text: str) -> None:
    with contextlib.suppress(v2.RequestError):
        asked, rest = v2.decode(text.encode("utf-8", "surrogatepass"))
        v2.parse(asked, MANIFEST, most_rows=1, binary=rest)


@given(
    change=st.dictionaries(
        st.sampled_from(["id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
        min_size=1,
    )
)
def test_whatever_a_part_is_only_a_request_error_comes_out(change: dict[str, Any]) -> None:
    with contextlib.suppress(v2.RequestError):
        assert v2.parse(request(**change), MANIFEST, most_rows=1).images.shape[1:] == (2, 4)


@pytest.mark.parametrize("binary", [frozenset(), {"output"}, {"output", "confidence", "stage"}])
def test_the_answer_is_the_dispatchers(tmp_path: Path, binary: set[str]) -> None:
    write_export(tmp_path, PAIR, policies=[policy(0.5, [0.5])])
    images = images_of([[0.7, 0, 0, 0], [0.1, 0.2, 0, 0]])
    with Dispatcher(tmp_path) as dispatcher:
        expected = dispatcher(images)
        call = v2.parse(request(shape=[2, 2, 4], data=images.tolist(), id="x"), dispatcher.manifest, most_rows=2)
        answered = v2.response(call, dispatcher(call.images), name="toy", budget=0.5)
        about = v2.model_metadata(dispatcher.manifest, name="toy")
    body, length = v2.encode(answered, binary=frozenset(binary))
    assert (length is None) == (not binary)
    found, raw = v2.decode(body, length)
    assert {key: found[key] for key in ("model_name", "model_version", "id", "parameters")} == {
        "model_name": "toy",
        "model_version": "1",
        "id": "x",
        "parameters": {"budget": 0.5},
    }
    kinds = {"FP32": "<f4", "INT64": "<i8"}
    for tensor, spec in zip(found["outputs"], about["outputs"], strict=True):
        wanted = getattr(expected, tensor["name"])
        assert (tensor["name"], tensor["datatype"]) == (spec["name"], spec["datatype"])
        assert tensor["shape"] == list(wanted.shape) == [2, *spec["shape"][1:]]
        if tensor["name"] in binary:
            size = tensor["parameters"]["binary_data_size"]
            got, raw = np.frombuffer(raw[:size], kinds[tensor["datatype"]]), raw[size:]
        else:
            got = np.array(tensor["data"], kinds[tensor["datatype"]])
        assert np.array_equal(got, wanted.ravel())
    assert len(raw) == 0


def test_an_answer_that_json_cannot_say_is_an_error_there_only() -> None:
    answer = Answer(np.full((1, 4), np.nan, np.float32), np.ones(1, np.int64), np.ones(1, np.float32))
    answered = v2.response(v2.parse(request(), MANIFEST, most_rows=1), answer, name="toy")
    with pytest.raises(v2.RequestError, match="NaN") as caught:
        v2.encode(answered)
    assert caught.value.status == 500
    assert v2.encode(answered, binary=frozenset({"output"}))[1] is not None
