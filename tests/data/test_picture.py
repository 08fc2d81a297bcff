"""Image files as people have them: odd metadata, other depths, other aspect ratios. References are Pillow and numpy."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from s2d_runtime.pictures import read_image

from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import PRESETS, PixelOptions
from s2d_convert.errors import DataError, UsageError

RGB = make_preprocess(size=(8, 8), channels=3)


def asked(size: tuple[int, int] = (8, 8), channels: int = 3, **said: Any) -> Preprocess:
    return make_preprocess(size=size, channels=channels, pixels=PixelOptions(**said))


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, value) entries, little-endian."""
    body, data, after = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        at = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<L", after + len(data))
        data += b"" if len(value) <= 4 else value
        body += struct.pack("<HHL", tag, kind, count) + at
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + body + struct.pack("<L", 0) + data


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))
ODD_ENTRIES: dict[str, tuple[int, int, int, bytes]] = {
    "Software is a rational": (0x0131, 5, 1, struct.pack("<LL", 3, 2)),
    "Software is a rational of nothing": (0x0131, 5, 1, struct.pack("<LL", 3, 0)),
    "Software is a double": (0x0131, 12, 1, struct.pack("<d", 2.5)),
    "XResolution is bytes": (0x011B, 1, 3, b"\0\0\0"),
    "ResolutionUnit too large": (0x0128, 4, 1, struct.pack("<L", 70000)),
    "GPS pointer negative": (0x8825, 9, 1, struct.pack("<l", -200)),
    "Exif pointer beyond the end": (0x8769, 4, 1, struct.pack("<L", 2**31)),
    "a float where bytes belong": (0x9000, 11, 1, struct.pack("<f", 1.5)),
    "MakerNote without end": (0x927C, 7, 2**30, struct.pack("<L", 40)),
    "an unknown type": (0x9001, 99, 1, b"\0\0\0\0"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns about odd metadata that it can live with
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("case", ODD_ENTRIES)
def test_one_odd_entry_of_an_exif_does_not_cost_the_picture(case: str, suffix: str, tmp_path: Path) -> None:
    pixels = picture(8, 8)
    quality: dict[str, dict[str, Any]] = {".jpg": {"quality": 95}, ".webp": {"lossless": True}, ".png": {}}
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", exif=exif(TURNED, ODD_ENTRIES[case]), **quality[suffix])
    with Image.open(tmp_path / f"a{suffix}") as image:
        stored = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}", RGB), np.rot90(stored, -1))


@pytest.mark.parametrize(
    "value", [(3, 1, struct.pack("<H", 9)), (2, 2, b"6\0"), (5, 1, struct.pack("<LL", 6, 0)), (3, 0, b"")]
)
def test_an_orientation_that_is_none_is_left_alone(value: tuple[int, int, bytes], tmp_path: Path) -> None:
    pixels = picture(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif((0x0112, *value)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", RGB), pixels)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_as_pillow_turns_it(turn: int, tmp_path: Path) -> None:
    corner = np.zeros((8, 8, 3), np.uint8)
    corner[0, 0], corner[0, -1] = 255, 128
    Image.fromarray(corner).save(tmp_path / "a.png", exif=exif((0x0112, 3, 1, struct.pack("<H", turn))))
    turned = {1: corner, 2: corner[:, ::-1], 3: corner[::-1, ::-1], 4: corner[::-1], 5: corner.transpose(1, 0, 2),
              6: np.rot90(corner, -1), 7: np.rot90(corner, 2).transpose(1, 0, 2), 8: np.rot90(corner)}  # fmt: skip
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", RGB), turned[turn])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_that_has_to_be_turned_is_whole(compression: str, tmp_path: Path) -> None:
    """Pillow itself garbles an uncompressed one that it opens by its name."""
    pixels = picture(5, 8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression, exif=exif(TURNED))
    got = read_image(tmp_path / "a.tif", make_preprocess(size=(8, 5), channels=3))
    np.testing.assert_array_equal(got, np.rot90(pixels, -1))


def png_with(pixels: NDArray[np.uint8], *chunks: tuple[bytes, bytes], at: int = 33) -> bytes:
    """A PNG with more chunks behind its header; a chunk of no sound checksum is one of text "bad"."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    content = buffer.getvalue()
    made = b""
    for kind, data in chunks:
        made += (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ (data == b"bad"))
        )
    return content[:at] + made + content[at:]


TEXTS = {
    "a long compressed text": (b"zTXt", b"prompt\0\0" + zlib.compress(b"a" * (PngImagePlugin.MAX_TEXT_CHUNK + 9))),
    "a long text in Unicode": (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"b" * (PngImagePlugin.MAX_TEXT_CHUNK + 9))),
    "a text with a wrong checksum": (b"tEXt", b"bad"),
    "a colour profile without end": (b"iCCP", b"x\0\0" + zlib.compress(b"c" * (PngImagePlugin.MAX_TEXT_CHUNK + 9))),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_of_a_png_do_not_cost_the_picture(case: str, tmp_path: Path) -> None:
    pixels = picture(8, 8)
    turned = exif(TURNED)[6:]
    (tmp_path / "a.png").write_bytes(png_with(pixels, TEXTS[case], (b"eXIf", turned)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", RGB), np.rot90(pixels, -1))


def test_a_broken_png_is_named_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_with(picture(8, 8))[:60])
    with pytest.raises((OSError, SyntaxError)) as caught:
        read_image(tmp_path / "a.png", RGB)
    assert "BytesIO" not in str(caught.value)


# ---- the way to the model's size -----------------------------------------------------------------------------------


def edges(height: int, width: int) -> Image.Image:
    """A grey picture with a red column on its left and a blue one on its right edge, each an eighth of its width."""
    pixels = np.full((height, width, 3), 100, np.uint8)
    pixels[:, : width // 8], pixels[:, -width // 8 :] = (255, 0, 0), (0, 0, 255)
    return Image.fromarray(pixels)


def test_stretching_is_pillows_resize(tmp_path: Path) -> None:
    edges(16, 64).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", asked(resize="stretch"))
    np.testing.assert_array_equal(got, np.asarray(edges(16, 64).resize((8, 8), Image.Resampling.BICUBIC)))
    assert got[4, 0, 0] > 230
    assert got[4, -1, 2] > 230


@pytest.mark.parametrize(
    ("source", "ratio"), [((48, 48), 0.875), ((64, 96), 0.875), ((100, 60), 0.5), ((32, 32), 0.875)]
)
def test_a_crop_ratio_is_resizing_to_more_and_cutting_the_centre(
    source: tuple[int, int], ratio: float, tmp_path: Path
) -> None:
    """The two steps of torchvision and timm, of 256 and 224 pixels for instance, in one."""
    y, x = np.mgrid[0 : source[1], 0 : source[0]]
    pixels = np.stack([255 * x / source[0], 255 * y / source[1], 127 + 100 * np.sin(x / 9)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    larger = round(28 / ratio)
    scale = larger / min(source)
    resized = Image.fromarray(pixels).resize(
        (round(source[0] * scale), round(source[1] * scale)), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 28) // 2, (resized.height - 28) // 2
    two_steps = np.asarray(resized.crop((left, top, left + 28, top + 28))).astype(int)
    got = read_image(tmp_path / "a.png", asked((28, 28), crop_ratio=ratio)).astype(int)
    assert np.abs(got - two_steps).mean() < 3
    assert np.abs(got - two_steps).max() <= 24  # half a pixel of a ramp beside an edge


def test_stretching_and_cropping_cuts_the_same_share_of_both_sides(tmp_path: Path) -> None:
    edges(16, 64).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", asked(resize="stretch", crop_ratio=0.5))
    np.testing.assert_allclose(got, 100, atol=3)  # the edges are outside the middle half
    preset = read_image(tmp_path / "a.png", asked(resize="stretch-256-224"))
    np.testing.assert_array_equal(preset, read_image(tmp_path / "a.png", asked(resize="stretch", crop_ratio=0.875)))


@pytest.mark.parametrize("channels", [1, 3])
def test_padding_keeps_the_whole_picture(channels: int, tmp_path: Path) -> None:
    edges(16, 64).save(tmp_path / "wide.png")
    edges(64, 16).save(tmp_path / "tall.png")
    centred = asked(channels=channels, resize="pad", fill=9)
    rows = np.asarray(read_image(tmp_path / "wide.png", centred)).astype(int)
    assert (rows[:3] == 9).all()
    assert (rows[5:] == 9).all()
    assert (rows[3:5, 2:6] != 9).all()
    right = asked(channels=channels, resize="pad-right", fill=9)
    wide, tall = read_image(tmp_path / "wide.png", right), read_image(tmp_path / "tall.png", right)
    assert (wide[2:] == 9).all()
    assert (wide[:2, 2:6] != 9).all()
    assert (tall[:, 2:] == 9).all()
    assert (tall[2:6, :2] != 9).all()


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad", "pad-right"])
@pytest.mark.parametrize("source", [(1, 3000), (3000, 1), (1, 1)])
def test_a_line_of_pixels_is_a_picture(fit: str, source: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", source, (10, 20, 30)).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", asked(resize=fit, fill=200))
    assert {tuple(pixel) for pixel in got.reshape(-1, 3).tolist()} <= {(10, 20, 30), (200, 200, 200)}
    assert (got == [10, 20, 30]).all(axis=2).any()


def test_padding_is_pillows_pad(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 16), (31, 50), (8, 8), (100, 99)]):
        image = Image.fromarray(picture(size[1], size[0], number))
        image.save(tmp_path / "a.png")
        want = ImageOps.pad(image, (24, 16), method=Image.Resampling.BICUBIC, color=(7, 7, 7))
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.png", asked((16, 24), resize="pad", fill=7)), np.asarray(want)
        )


def test_a_photograph_with_a_preview_behind_it_is_read(tmp_path: Path) -> None:
    """Phones write several pictures into one JPEG (MPO); the first counts."""
    image = Image.fromarray(picture(8, 8))
    image.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_90)])
    with Image.open(tmp_path / "a.jpg") as first:
        np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", RGB), np.asarray(first))


# ---- channels and scale --------------------------------------------------------------------------------------------


def test_the_numbers_of_a_preset_stay_with_their_colours() -> None:
    pixels = picture(8, 8)[None]
    plain, turned = RGB(pixels), asked(order="bgr")(pixels)
    np.testing.assert_array_equal(turned, plain[:, ::-1])
    caffe = make_preprocess("bgr-caffe", size=(8, 8), channels=3)
    back = make_preprocess("bgr-caffe", size=(8, 8), channels=3, pixels=PixelOptions(order="RGB"))
    np.testing.assert_array_equal(back(pixels), caffe(pixels)[:, ::-1])
    own = make_preprocess(
        size=(8, 8), channels=3, pixels=PixelOptions(order="bgr", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    )
    np.testing.assert_allclose(own(pixels)[0, 0], pixels[0, :, :, 2] / 255 - 0.1, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_grey_is_pillows_luma_in_all_channels(layout: Any) -> None:
    pixels = picture(8, 8)
    grey = make_preprocess("raw", size=(8, 8), channels=3, layout=layout, pixels=PixelOptions(order="grey"))
    got = grey(pixels[None])[0]
    luma = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    np.testing.assert_array_equal(got, np.stack([luma] * 3, axis=0 if layout == "NCHW" else -1))


@pytest.mark.parametrize(
    ("said", "formula"),
    [
        ({"pixels": PixelOptions(scale=1 / 127.5)}, lambda x: x / 127.5),
        ({"pixels": PixelOptions(scale=1.0, mean=(104, 117, 124), std=(57,))},
         lambda x: (x - [104, 117, 124]) / 57),
        ({"pixels": PixelOptions(scale=0.017, mean=(1.7,))}, lambda x: x * 0.017 - 1.7),
        ({"name": "imagenet", "pixels": PixelOptions(scale=1 / 256)},
         lambda x: (x / 256 - PRESETS["imagenet"].mean) / PRESETS["imagenet"].std),
    ],
)  # fmt: skip
def test_a_scale_gives_mean_and_std_its_units(said: dict[str, Any], formula: Any) -> None:
    pixels = picture(8, 8)
    got = make_preprocess(size=(8, 8), channels=3, layout="NHWC", **said)(pixels[None])[0]
    np.testing.assert_allclose(got, formula(pixels.astype(np.float64)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"scale": 255.0}, "scale 255: pixels from 0 to 255 are multiplied by it"),
        ({"scale": 0.0}, "scale 0"),
        ({"order": "gbr"}, "order 'gbr' is unknown; allowed: rgb, bgr, grey"),
        ({"order": "bgr", "channels": 1}, "the model has 1 channels, expected 3"),
        ({"resize": "squash"}, "resize 'squash' is unknown; allowed: crop"),
        ({"resize": "pad", "crop_ratio": 0.9}, "means nothing with --resize pad"),
        ({"crop_ratio": 1.5}, "crop-ratio 1.5: 0.1 to 1 is allowed"),
        ({"fill": 256}, "fill 256; expected a whole number from 0 to 255"),
        ({"bits": 32}, "bits 32; expected a whole number from 8 to 16"),
    ],
)
def test_what_cannot_be_meant_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asked(**said)


# ---- the record ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"resize": "stretch-256-224"},
        {"resize": "pad-right", "fill": 114},
        {"order": "grey", "bits": 12},
        {"crop_ratio": 0.8},
    ],
)
def test_json_brings_back_all_of_it(said: dict[str, Any]) -> None:
    preprocess = asked(**said)
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_records_of_older_versions_mean_what_they_meant() -> None:
    old = {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": 1 / 255, "size": [8, 8], "channels": 3,
        "layout": "NCHW", "dtype": "float32", "order": "RGB",
        "formula": "(pixel * scale - mean) / std, pixel in 0..255, per channel",
        "resize": "shorter side to size (bicubic, antialiased), then centre crop",
    }  # fmt: skip
    assert Preprocess.from_json(old) == RGB
    assert RGB.to_json()["resize"] == old["resize"]
    for key, value in (("fit", "squash"), ("crop_ratio", 0), ("fill", -1), ("bits", 7.5), ("order", ["RGB"])):
        with pytest.raises(DataError, match=key):
            Preprocess.from_json(old | {key: value})
