"""Stage files that are not what the manifest says, and folders that reach out of themselves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s2d_runtime import Dispatcher, DispatcherError
from toy_exports import PAIR, SINGLE, images_of, model_bytes, policy, stage_text, write_export, write_manifest


def fails(folder: Path) -> str:
    """What the dispatcher says about a folder; the message names a stage file in it."""
    with pytest.raises(DispatcherError) as caught:
        Dispatcher(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files ----------------------------------------------------------------------------------------------------------


def one_more_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def removed(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_out(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere.onnx")
    path.symlink_to("../elsewhere.onnx")


def a_link_in_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (one_more_byte, "its sha256 is not the one in the manifest"),
        (one_bit, "its sha256 is not the one in the manifest"),
        (cut_off, "its sha256 is not the one in the manifest"),
        (removed, "give a whole folder"),
        (a_folder, "not a file"),
        (a_pipe, "not a file"),
        (a_link_out, "a link out of the folder is not followed"),
        (a_link_in_a_circle, "give a whole folder"),
    ],
)
@pytest.mark.parametrize("file", ["stage1.onnx", "stage2.onnx"])
def test_a_damaged_stage_file_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], expected: str, file: str
) -> None:
    folder = tmp_path / "OUT"
    folder.mkdir()
    write_export(folder, PAIR)
    damage(folder / file)
    message = fails(folder)
    assert expected in message
    assert str(folder / file) in message


def test_links_to_the_folder_and_inside_it_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    (folder / "files").mkdir(parents=True)
    write_export(folder, PAIR)
    (folder / "stage1.onnx").rename(folder / "files" / "first")
    (folder / "stage1.onnx").symlink_to("files/first")
    (tmp_path / "OUT").symlink_to("real")
    with Dispatcher(tmp_path / "OUT") as run:
        assert run(images_of([[1, 1, 1, 1]]), thresholds=[0.5]).stage.tolist() == [1]


def test_nothing_is_opened_when_the_manifest_is_not_sound(tmp_path: Path) -> None:
    manifest = write_export(tmp_path, PAIR)
    (tmp_path / "stage1.onnx").write_bytes(b"not even looked at")
    write_manifest(tmp_path, {**manifest, "default_budget": 0.123})
    assert "default_budget" in fails(tmp_path)


def test_a_folder_may_be_a_text_and_may_have_a_strange_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b\u00e4 #1"
    folder.mkdir()
    write_export(folder, PAIR)
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), folder.name, f"{folder.name}/"):
        with Dispatcher(name) as run:
            assert len(run.sessions) == 2


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"onnx", b"\0" * 64, model_bytes(stage_text(1, SINGLE[0]))[:-30]])
def test_what_onnxruntime_cannot_load_is_a_dispatcher_error(tmp_path: Path, data: bytes) -> None:
    manifest = write_export(tmp_path, SINGLE)
    (tmp_path / "stage1.onnx").write_bytes(data)
    manifest["stages"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    write_manifest(tmp_path, manifest)
    message = fails(tmp_path)
    assert str(tmp_path / "stage1.onnx") in message
    assert "ONNXRuntimeError" in message or "not an ONNX file" in message


def link_of_a_line(text: str) -> str:
    """The link with one line instead of two."""
    return text.replace("link1 = Concat<axis = 1>(sure_up, output_up)", "link1 = Identity(output_up)").replace(
        "sure_up = Unsqueeze(sure, axes)\n", ""
    )


# What is replaced in the text of PAIR's first stage, and what the message says.
MISFITS: dict[str, tuple[dict[str, str], str]] = {
    "fixed batch of images": (
        {"float[N,2,4] image": "float[1,2,4] image"},
        "'image': got tensor(float) [1, 2, 4]; expected tensor(float) [B, 2, 4], as the manifest says",
    ),
    "fixed batch of answers": (
        {"float[N,4] output": "float[1,4] output"},
        "'output': got tensor(float) [1, 4]; expected tensor(float) [B, 4], as the manifest says",
    ),
    "confidence with two axes": (
        {
            "float[N] confidence": "float[N,1] confidence",
            "confidence = Gather<axis = 1>(sure, own)": "flat = Gather<axis = 1>(sure, own)\n"
            "confidence = Unsqueeze(flat, axes)",
        },
        "'confidence': got tensor(float) ['N', 1]; expected tensor(float) [B], as the manifest says",
    ),
    "no link": ({", float[N,2,4] link1": ""}, "outputs: got ['output', 'confidence']; expected"),
    "no output": ({"float[N,4] output, ": ""}, "outputs: got ['confidence', 'link1']; expected"),
    "one output more": (
        {"float[N,2,4] link1": "float[N,2,4] link1, float[N,4] sum"},
        "outputs: got ['output', 'confidence', 'link1', 'sum']; expected ['output', 'confidence', 'link1']",
    ),
    "one input more": (
        {"[N,2,4] image": "[N,2,4] image, float[N] more"},
        "inputs: got ['image', 'more']; expected ['image'], as the manifest says",
    ),
    "another input": (
        {"] image": "] picture", "(image, ": "(picture, "},
        "inputs: got ['picture']; expected ['image'], as the manifest says",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_stage_that_is_not_as_the_manifest_says_is_refused(tmp_path: Path, name: str) -> None:
    text = stage_text(1, PAIR[0])
    replaced, expected = MISFITS[name]
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    write_export(tmp_path, PAIR, texts=[text, stage_text(2, PAIR[1])])
    message = fails(tmp_path)
    assert message.startswith(f"{tmp_path / 'stage1.onnx'}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("place", "shape", "expected"),
    [
        (("input",), [None, 2, 5], "'image': got tensor(float) ['N', 2, 4]; expected tensor(float) [B, 2, 5]"),
        (("input",), [None, 8], "'image': got tensor(float) ['N', 2, 4]; expected tensor(float) [B, 8]"),
        (("output",), [None, 3], "'output': got tensor(float) ['N', 4]; expected tensor(float) [B, 3]"),
        (("stages", 0, "links_out", 0), [None, 1, 4], "'link1': got tensor(float) ['N', 2, 4]; expected tensor(float) [B, 1, 4]"),
        (("stages", 0, "links_out", 0), [None], "'link1': got tensor(float) ['N', 2, 4]; expected tensor(float) [B]"),
    ],
)  # fmt: skip
def test_a_manifest_with_other_shapes_than_the_files_is_refused(
    tmp_path: Path, place: tuple[Any, ...], shape: list[int | None], expected: str
) -> None:
    manifest = write_export(tmp_path, PAIR)
    entry: Any = manifest
    for step in place:
        entry = entry[step]
    entry["shape"] = shape
    write_manifest(tmp_path, manifest)
    assert expected in fails(tmp_path)


def test_the_second_stage_must_take_the_link_as_the_first_one_gives_it(tmp_path: Path) -> None:
    manifest = write_export(tmp_path, PAIR, texts=[link_of_a_line(stage_text(1, PAIR[0])), stage_text(2, PAIR[1])])
    assert "stage1.onnx: 'link1': got tensor(float) ['N', 1, 4]" in fails(tmp_path)
    manifest["stages"][0]["links_out"][0]["shape"] = [None, 1, 4]
    write_manifest(tmp_path, manifest)
    assert "stage2.onnx: 'link1': got tensor(float) ['N', 2, 4]; expected tensor(float) [B, 1, 4]" in fails(tmp_path)


def whole_numbers(text: str) -> str:
    """The confidence as int64."""
    return text.replace("float[N] confidence", "int64[N] confidence").replace(
        "confidence = Gather<axis = 1>(sure, own)",
        "real = Gather<axis = 1>(sure, own)\nconfidence = Cast<to = 7>(real)",
    )


def double_image(text: str) -> str:
    """The image as float64."""
    return (
        text.replace("float[N,2,4] image", "double[N,2,4] image")
        .replace("pay_image = Gather", "real = Cast<to = 1>(image)\npay_image = Gather")
        .replace("(image, ", "(real, ")
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (whole_numbers, "'confidence': got tensor(int64) ['N']; expected tensor(float) [B], as the manifest says"),
        (double_image, "'image': got tensor(double) ['N', 2, 4]; expected tensor(float) [B, 2, 4]"),
    ],
)
def test_a_stage_of_other_types_is_refused(tmp_path: Path, change: Callable[[str], str], expected: str) -> None:
    write_export(tmp_path, SINGLE, texts=[change(stage_text(1, SINGLE[0]))])
    assert expected in fails(tmp_path)


def test_images_may_be_of_another_type_than_float32(tmp_path: Path) -> None:
    manifest = write_export(tmp_path, SINGLE, texts=[double_image(stage_text(1, SINGLE[0]))])
    manifest["input"]["dtype"] = "float64"
    write_manifest(tmp_path, manifest)
    images = images_of([[0.25, 0, 0, 0]] * 2)
    with Dispatcher(tmp_path) as run:
        answer = run(images.astype("float64"))
        assert (answer.output == 3 * images[:, 1] + 1).all()
        assert answer.confidence.tolist() == [0.25, 0.25]
        with pytest.raises(DispatcherError, match=r"got float32 \[2, 2, 4\]; expected a numpy array, float64"):
            run(images)


def test_a_manifest_that_speaks_of_other_links_than_the_files_is_refused(tmp_path: Path) -> None:
    manifest: dict[str, Any] = write_export(tmp_path, PAIR, policies=[policy(0.5, [0.5])])
    manifest["stages"][0]["links_out"][0]["name"] = manifest["stages"][1]["links_in"][0] = "other"
    write_manifest(tmp_path, manifest)
    assert "outputs: got ['output', 'confidence', 'link1']; expected ['output', 'confidence', 'other']" in fails(
        tmp_path
    )
