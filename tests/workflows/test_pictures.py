"""`s2d inspect --data`: what is shown is what the model gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import call
from PIL import Image
from s2d_runtime.pictures import read_image
from text_nets import residual

from s2d_convert.data.preprocess import make_preprocess
from s2d_convert.workflows.pictures import in_letters


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of 8x8 images and wide pictures, black on the left and white on the right."""
    monkeypatch.chdir(tmp_path)
    onnx.save(residual(), "model.onnx")
    for number in range(5):
        pixels = np.zeros((16, 32, 3), np.uint8)
        pixels[:, 16:] = 255 - number
        (tmp_path / "data" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number % 2}" / f"{number}.png")
    return tmp_path


def test_three_pictures_are_shown_as_the_model_sees_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys, *["inspect", "model.onnx", "--data", "data", "--preprocess", "unit", "--pictures", "seen", "--json"]
    )
    assert (code, err) == (0, "")
    shown = json.loads(out)["pictures"]
    assert [one["name"] for one in shown] == ["0/0.png", "0/4.png", "1/3.png"]
    assert {(tuple(one["size"]), one["cut_away"]) for one in shown} == {((32, 16), 0.5)}
    plain = make_preprocess("unit", size=(8, 8), channels=3)
    for number, one in enumerate(shown, start=1):
        pixels = read_image(place / "data" / one["name"], plain)
        np.testing.assert_array_equal(np.asarray(Image.open(place / f"seen/{number}.png")), pixels)
        for channel, values in zip(one["channels"], plain(pixels[None])[0], strict=True):
            assert [channel["min"], channel["mean"], channel["max"]] == pytest.approx(
                [values.min(), values.mean(), values.max()]
            )


def test_options_of_pixels_change_what_is_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(
        capsys,
        *[
            "inspect",
            "model.onnx",
            "--data",
            "data",
            "--resize",
            "pad",
            "--fill",
            "255",
            "--scale",
            "1",
            "--order",
            "bgr",
        ],
    )
    assert (code, err) == (0, "")
    assert "the rest 255 on both sides" in out
    assert "channels BGR" in out
    assert "0/0.png: 32x16 pixels to 8x8; channel by channel 0 to 255" in out
    assert "cropped away" not in out
    code, out, err = call(capsys, *["inspect", "model.onnx", "--resize", "pad"])
    assert code == 2
    assert "--resize: means nothing without --data" in err


def test_arrays_are_shown_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(place / "a.npz", images=np.arange(2 * 192, dtype=np.float32).reshape(2, 3, 8, 8))
    code, out, _ = call(capsys, *["inspect", "model.onnx", "--data", "a.npz"])
    assert code == 0
    assert call(capsys, *["inspect", "model.onnx", "--data", "data/1/3.png"])[1].count("3.png: 32x16 pixels") == 1
    assert "row 0; channel by channel 0 to 63, mean 31.5; 64 to 127" in out


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is no folder"), (b"", "holds no images"), (b"x", "cannot be read as")]
)
def test_data_without_pictures_is_refused(
    content: bytes | None, words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (place / "bad").mkdir()
    if content:
        (place / "bad/a.png").write_bytes(content)
    code, _, err = call(capsys, *["inspect", "model.onnx", "--data", "bad"])
    assert code == 5
    assert words in err


def test_letters_are_dark_on_the_left_and_bright_on_the_right() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    assert in_letters(pixels) == ["        @@@@@@@@"] * 8
    assert in_letters(pixels[..., :1], columns=8) == ["    @@@@"] * 4
