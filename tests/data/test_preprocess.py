"""Preprocess against the formula written out, and read_image on every kind of file that people have."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from s2d_runtime.pictures import UNREADABLE, read_image

from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PRESETS, PixelOptions
from s2d_convert.errors import DataError, UsageError


def some_pixels(count: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


# ---- the numbers ---------------------------------------------------------------------------------------------------

FORMULAS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "cifar10": lambda x: (x / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616],
    "unit": lambda x: x / 255,
    "signed": lambda x: x / 127.5 - 1,
    "raw": lambda x: x,
    "bgr-caffe": lambda x: x[..., ::-1] - [103.939, 116.779, 123.68],
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_computes_its_formula(name: str, layout: Any) -> None:
    pixels = some_pixels(3, 5, 7, 3)
    got = make_preprocess(name, size=(5, 7), channels=3, layout=layout)(pixels)
    expected = FORMULAS[name](pixels.astype(np.float64))
    if layout == "NCHW":
        expected = expected.transpose(0, 3, 1, 2)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_the_default_is_imagenet_and_for_uint8_models_raw() -> None:
    assert make_preprocess(size=(4, 4), channels=3) == make_preprocess("imagenet", size=(4, 4), channels=3)
    assert make_preprocess(size=(4, 4), channels=3, dtype="uint8").scale == 1


def test_one_channel_takes_the_mean_of_the_three_numbers() -> None:
    gray = make_preprocess("imagenet", size=(4, 4), channels=1)
    assert gray.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert gray.std == pytest.approx(((0.229 + 0.224 + 0.225) / 3,))
    assert make_preprocess("bgr-caffe", size=(4, 4), channels=1).order == "RGB"


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (3, 4, 6)), ("NHWC", (4, 6, 3))])
def test_a_uint8_model_gets_the_pixels_themselves(layout: Any, shape: tuple[int, ...]) -> None:
    pixels = some_pixels(2, 4, 6, 3)
    preprocess = make_preprocess(size=(4, 6), channels=3, layout=layout, dtype="uint8")
    got = preprocess(pixels)
    assert got.dtype == np.uint8
    assert got.shape == (2, *shape) == (2, *preprocess.input_shape)
    np.testing.assert_array_equal(got, pixels.transpose(0, 3, 1, 2) if layout == "NCHW" else pixels)


@given(
    name=st.sampled_from([name for name in PRESETS if name != "bgr-caffe"]),
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 2), min_size=3, max_size=3),
)
def test_mean_and_std_mean_the_same_over_every_preset(name: str, mean: list[float], std: list[float]) -> None:
    pixels = some_pixels(1, 2, 2, 3)
    got = make_preprocess(name, size=(2, 2), channels=3, layout="NHWC", pixels=PixelOptions(mean=mean, std=std))(pixels)
    np.testing.assert_allclose(got, (pixels / 255 - mean) / std, rtol=1e-4, atol=1e-4)


def test_one_value_of_mean_or_std_counts_for_all_channels() -> None:
    one = make_preprocess(size=(2, 2), channels=3, pixels=PixelOptions(mean=[0.5], std=[0.25]))
    assert one == make_preprocess(size=(2, 2), channels=3, pixels=PixelOptions(mean=[0.5] * 3, std=[0.25] * 3))


def test_mean_alone_keeps_the_std_of_the_preset() -> None:
    assert make_preprocess(size=(2, 2), channels=3, pixels=PixelOptions(mean=[0.5])).std == PRESETS["imagenet"].std


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "imagnet"}, r"'imagnet' is unknown; allowed: imagenet, cifar10"),
        (
            {"pixels": PixelOptions(mean=[123.7, 116.3, 103.5])},
            r"mean: 123.7 is out of range.* divide values meant for 0..255 by 255",
        ),
        ({"pixels": PixelOptions(std=[58.4])}, r"std: 58.4 is out of range"),
        ({"pixels": PixelOptions(std=[0.0])}, r"std: 0 is out of range"),
        ({"pixels": PixelOptions(mean=[float("nan")])}, r"mean: nan is out of range"),
        ({"pixels": PixelOptions(mean=[0.5, 0.5])}, r"mean: got 2 values, expected 1 or 3 values"),
        ({"pixels": PixelOptions(mean=[0.5, 0.5, 0.5]), "channels": 1}, r"mean: got 3 values, expected 1 value"),
        ({"size": (0, 4)}, r"size \(0, 4\)"),
        ({"channels": 0}, r"channels 0"),
        ({"layout": "CHWN"}, r"layout 'CHWN' is unknown; allowed: NCHW, NHWC"),
        ({"dtype": "float16"}, r"dtype 'float16' is unknown; allowed: float32, uint8"),
        ({"name": "imagenet", "dtype": "uint8"}, r"takes uint8.* use the preset raw"),
    ],
)
def test_bad_options_are_usage_errors(options: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"name": None, "size": (4, 4), "channels": 3} | options
    with pytest.raises(UsageError, match=message):
        make_preprocess(values.pop("name"), **values)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5,)},
        {"std": (1.0, 1.0, -1.0)},
        {"std": (1.0, 1.0, float("inf"))},
        {"scale": 0.0},
        {"channels": True},
        {"size": [4, 4]},
        {"order": "GBR"},
    ],
)
def test_a_preprocess_is_checked_when_it_is_made(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^preprocessing: "):
        replace(make_preprocess(size=(4, 4), channels=3), **change)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 1), np.uint8),
    ],
)
def test_images_that_do_not_fit_are_refused(images: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(B, H, W, C\) with \(H, W, C\) = \(4, 4, 3\)"):
        make_preprocess(size=(4, 4), channels=3)(images)


# ---- JSON ----------------------------------------------------------------------------------------------------------


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    channels = draw(st.integers(1, 5))
    number = st.floats(-1e3, 1e3)
    layout: Any = draw(st.sampled_from(["NCHW", "NHWC"]))
    return Preprocess(
        mean=tuple(draw(number) for _ in range(channels)),
        std=tuple(draw(st.floats(1e-3, 1e3)) for _ in range(channels)),
        scale=draw(st.floats(1e-4, 10)),
        size=(draw(st.integers(1, 500)), draw(st.integers(1, 500))),
        channels=channels,
        layout=layout,
        order="BGR" if channels == 3 and draw(st.booleans()) else "RGB",
    )


@given(preprocesses())
def test_json_brings_back_the_same(preprocess: Preprocess) -> None:
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


plain_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=3)


@given(preprocesses(), st.sampled_from(["mean", "std", "scale", "size", "channels", "layout", "dtype"]), plain_values)
def test_json_with_a_wrong_value_is_a_data_error(preprocess: Preprocess, key: str, value: Any) -> None:
    plain = preprocess.to_json() | {key: value}
    try:
        again = Preprocess.from_json(plain)
    except DataError:
        return
    assert Preprocess.from_json(json.loads(json.dumps(again.to_json()))) == again


def test_json_with_missing_keys_names_them() -> None:
    with pytest.raises(DataError, match=r"keys \['std', 'scale'"):
        Preprocess.from_json({"mean": [0.0]})


# ---- image files ---------------------------------------------------------------------------------------------------

RGB = make_preprocess(size=(8, 8), channels=3)
GRAY = make_preprocess(size=(8, 8), channels=1)


def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = some_pixels(1, 8, 8, 3)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", RGB), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("preprocess", [RGB, GRAY])
def test_every_mode_becomes_the_models_channels(mode: str, preprocess: Preprocess, tmp_path: Path) -> None:
    white = np.full((8, 8), 65535, np.uint16)
    image = Image.fromarray(white) if mode == "I;16" else Image.new("RGB", (8, 8), "white").convert(mode)
    assert image.mode == mode
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    got = read_image(path, preprocess)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.full((8, 8, preprocess.channels), 255))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", GRAY)[..., 0], ramp >> 8)


def test_a_palette_with_transparency_is_read(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=b"\x80\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", RGB), np.full((8, 8, 3), [10, 20, 30]))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = some_pixels(1, 8, 8, 3)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", RGB), np.rot90(pixels, -1))


def test_the_centre_of_a_wide_image_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    for third in range(3):
        pixels[:, 16 * third : 16 * third + 16, third] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", RGB)
    np.testing.assert_allclose(got[:, 1:-1], np.full((8, 6, 3), [0, 200, 0]), atol=3)  # bicubic overshoots a little


def test_making_smaller_averages_and_does_not_pick(tmp_path: Path) -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png", GRAY).astype(int) - 127).max() <= 3


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 1), (300, 200)])
@pytest.mark.parametrize("source", [(1, 1), (8, 8), (3, 100), (641, 480)])
def test_any_size_becomes_any_size(size: tuple[int, int], source: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", source, (9, 99, 200)).save(tmp_path / "a.jpg", quality=95)
    got = read_image(tmp_path / "a.jpg", make_preprocess(size=size, channels=3))
    assert got.shape == (*size, 3)
    assert np.abs(got.astype(int) - [9, 99, 200]).max() <= 3


def test_a_large_photo_is_as_from_a_full_decode(tmp_path: Path) -> None:
    """The decoder's shortcut for large JPEGs stays close to decoding everything."""
    y, x = np.mgrid[0:600, 0:600] / 600
    pixels = (np.stack([x, y, (np.sin(9 * x) + 1) / 2], axis=-1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preprocess = make_preprocess(size=(32, 32), channels=3)
    difference = read_image(tmp_path / "a.jpg", preprocess).astype(int) - read_image(tmp_path / "a.png", preprocess)
    assert np.abs(difference).max() <= 6


def test_float_pixels_and_disguised_formats_are_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="floating-point"):
        read_image(tmp_path / "a.tif", RGB)
    (tmp_path / "b.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(UNREADABLE):
        read_image(tmp_path / "b.jpg", RGB)


def test_a_model_with_two_channels_takes_no_image_files(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 or 3 channels, the model takes 2; give the images as \.npz"):
        read_image(tmp_path / "a.png", make_preprocess(size=(8, 8), channels=2))


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(some_pixels(1, 12, 10, 3)[0]).save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow warns about odd metadata that it can live with
@settings(max_examples=60, deadline=None)
@given(
    image_format=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF"]),
    keep=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_broken_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, image_format: str, keep: float, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(encoded(image_format))
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    path.write_bytes(content[: round(keep * len(content))])
    with contextlib.suppress(*UNREADABLE):
        assert read_image(path, RGB).shape == (8, 8, 3)
