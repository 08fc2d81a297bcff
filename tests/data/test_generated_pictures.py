"""Pictures and folders made at random, as users might have them: each ends in the pixels that Pillow sees, or in one clear
sentence. What this has found is mended, and stands in `test_picture` and `test_folders`.

A number makes an input, always the same one: `read(number)` and `load(number)` repeat it.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from s2d_runtime.pictures import IMAGE_FORMATS, UNREADABLE, quiet_decoders, read_image, reason_of

from s2d_convert.data.labels import LabelSpace
from s2d_convert.data.loading import load_all
from s2d_convert.data.preprocess import Preprocess, make_preprocess
from s2d_convert.data.presets import RESIZES, PixelOptions
from s2d_convert.data.reading import Reading
from s2d_convert.data.roles import role_of
from s2d_convert.errors import DataError

PICTURES, FOLDERS, QUICK = 9000, 1000, 150
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif", "PPM": ".ppm",
            "AVIF": ".avif", "JPEG2000": ".jp2"}  # fmt: skip
MODES = {"JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "BMP": ("1", "L", "P", "RGB"),
         "GIF": ("L", "P", "RGB"), "WEBP": ("RGB", "RGBA"), "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"),
         "PPM": ("1", "L", "RGB", "I;16"), "AVIF": ("RGB", "RGBA"), "JPEG2000": ("L", "RGB", "RGBA")}  # fmt: skip
ODD_TAGS = (0x010E, 0x010F, 0x0112, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x0213, 0x8298, 0x8769, 0x8825, 0x9000,
            0x9003, 0x9101, 0x927C, 0x9286, 0xA001, 0xA005, 0xA301, 0xC4A5)  # fmt: skip


def pixels_of(rng: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    """A smooth picture with a mark, so that turning and cropping it shows."""
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * rng.choice((16, 257)))
    if mode == "F":
        return image.convert("L").convert("F")
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    if mode in ("LA", "RGBA"):
        image.putalpha(image.convert("L"))
    return image.convert(mode)


def exif_of(rng: random.Random) -> bytes:
    """An EXIF block, sound or with odd types, counts, places and orders."""
    order = rng.choice("<>")
    entries = [(0x0112, rng.choice((3, 3, 3, 3, 4, 5, 2, 99)), 1, struct.pack(order + "H", rng.randrange(10)))]
    for tag in rng.sample(ODD_TAGS, rng.randrange(4)):
        value = rng.randbytes(rng.choice((0, 1, 3, 4, 8, 20)))
        entries.append(
            (tag, rng.choice((1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13, 99)), rng.choice((0, 1, 2, 3, 2**31)), value)
        )
    if rng.random() < 0.8:
        entries.sort(key=lambda entry: entry[0])
    body, data, after = b"", b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        at = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(order + "L", after + len(data))
        data += b"" if len(value) <= 4 else value
        body += struct.pack(order + "HHL", tag, kind, count) + at
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(entries))
    block = b"Exif\0\0" + head + body + struct.pack(order + "L", rng.choice((0, 0, 8, 2**31))) + data
    return block[: rng.randrange(len(block))] if rng.random() < 0.1 else block


def chunk_of(rng: random.Random) -> bytes:
    """A PNG chunk that the pixels do not hang on: a text, often a long one, or a broken profile."""
    kind, many = (
        rng.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"pHYs", b"tIME", b"zzZz", b"gAMA")),
        rng.random() < 0.3,
    )
    long = zlib.compress(b"x" * (2**20 + 5 if many else 50))
    body = {b"tEXt": b"k\0" + b"v" * (2**21 if many else 9), b"zTXt": b"k\0\0" + long, b"iTXt": b"k\0\1\0\0\0" + long,
            b"iCCP": b"p\0\0" + long, b"eXIf": exif_of(rng)[6:]}.get(kind, rng.randbytes(rng.randrange(12)))  # fmt: skip
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (rng.random() < 0.1))
    )


def file_of(rng: random.Random) -> tuple[bytes, str]:
    """An image file and the suffix that its name has."""
    kind = rng.choice(tuple(SUFFIXES))
    image = pixels_of(rng, rng.choice(MODES[kind]), (rng.choice((1, 5, 8, 31, 64)), rng.choice((1, 6, 8, 40))))
    more: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") and rng.random() < 0.7:
        more["exif"] = exif_of(rng)
    if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.1:
        more["icc_profile"] = rng.randbytes(40)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **more)
    except (ValueError, TypeError, SyntaxError, OSError, KeyError, struct.error, AttributeError, ZeroDivisionError):
        buffer = io.BytesIO()  # this EXIF is too odd to be written in this format
        image.save(buffer, kind)
    content = buffer.getvalue()
    if kind == "PNG" and rng.random() < 0.5:
        at = rng.choice((33, content.rindex(b"IEND") - 4))
        content = content[:at] + chunk_of(rng) + content[at:]
    content = DAMAGES[rng.choices(range(len(DAMAGES)), (8, 1, 1, 1, 1))[0]](rng, content)
    return content, rng.choice(tuple(SUFFIXES.values())) if rng.random() < 0.1 else SUFFIXES[kind]


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    lambda _, content: content,
    lambda rng, content: content[: rng.randrange(len(content) + 1)],
    _flipped,
    lambda rng, content: content + rng.randbytes(30),
    lambda rng, content: rng.choice((b"", b"<html>404</html>", b"\0" * 99, b"%!PS-Adobe-3.0 EPSF-3.0\n", content[9:])),
)


def as_pillow_sees_it(content: bytes, preprocess: Preprocess) -> Image.Image:
    """The upright picture in the model's mode, by Pillow's own functions. Raises what they raise."""
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
        image.draft(None, (1000, 1000))
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            raise ValueError("no pixels from 0 to 255")
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")
        return upright.convert("L" if preprocess.channels == 1 else "RGB")


def read(number: int, place: Path) -> str:
    """Make, write and read one picture; how it ended, in a word. Raises AssertionError for a wrong end."""
    rng = random.Random(number)
    content, suffix = file_of(rng)
    path = place / f"{number}{suffix}"
    path.write_bytes(content)
    channels, resize = rng.choice((1, 3)), rng.choice(tuple(RESIZES))
    height, width = rng.choice((4, 8, 33)), rng.choice((4, 8, 20))
    with quiet_decoders():
        try:
            upright: Image.Image | None = as_pillow_sees_it(content, make_preprocess(size=(8, 8), channels=channels))
        except Exception:  # noqa: BLE001 (whatever Pillow raises)
            upright = None
        if upright is not None and rng.random() < 0.4:
            width, height = upright.size
        preprocess = make_preprocess(size=(height, width), channels=channels, pixels=PixelOptions(resize=resize))
        try:
            got = read_image(path, preprocess)
        except UNREADABLE as error:
            reason = reason_of(error)
            assert reason
            assert "\n" not in reason
            assert "0x" not in reason, reason
            assert upright is None, f"picture {number} is whole, but refused: {reason}"
            return "refused"
    assert got.shape == (height, width, channels)
    if upright is None:
        return "read, though Pillow gives up"
    if upright.size == (width, height) and preprocess.crop_ratio == 1:
        np.testing.assert_array_equal(got, np.asarray(upright).reshape(got.shape), err_msg=f"picture {number}")
        return "equal"
    return "resized"


def folder_of(rng: random.Random, root: Path) -> int:
    """Make a folder of one of the layouts that people have; returns how many pictures in it are sound."""
    parts = rng.choice(
        (("",), ("",), ("train", "val"), ("Training", "Testing"), ("TRAIN", "dev", "Test"), ("train_set", "eval"))
    )
    classes = rng.choice((("a", "b"), ("a", "b"), ("",), ("a", "b", "c"), ("été", "naïve name"), ("0", "10")))
    sound = 0
    for part in parts:
        for name in classes:
            here = root / part / name
            here.mkdir(parents=True, exist_ok=True)
            for number in range(rng.choice((0, 5, 20))):
                whole = rng.random() > 0.02
                sound += whole
                suffix = rng.choice((".png", ".PNG", ".jpg", ".JPeG", ".tif"))
                image = Image.effect_noise((8, 8), 40 + number).convert("RGB")
                file = here / f"{rng.choice(('IMG ', 'ünï', '-', '#', ''))}{number}{suffix}"
                image.save(file)
                if not whole:
                    file.write_bytes(file.read_bytes()[: rng.randrange(20)])
    for extra in rng.sample(
        (".DS_Store", "Thumbs.db", "notes.txt", "readme", "labels.csv", "x/deep/y"), rng.choice((0, 0, 0, 1))
    ):
        (root / extra).parent.mkdir(parents=True, exist_ok=True)
        (root / extra).write_text("x")
    return sound


def load(number: int, place: Path) -> str:
    """Make and load one folder; how it ended, in a word. Raises AssertionError for a wrong end."""
    rng = random.Random(-number - 1)
    root = place / f"folder{number}"
    root.mkdir()
    folder_of(rng, root)
    told: list[str] = []
    strict = rng.random() < 0.2
    preprocess, problem = make_preprocess(size=(8, 8), channels=3), ""
    try:
        images = load_all(root, preprocess=preprocess, space=LabelSpace(2), reading=Reading(strict, told.append))
    except DataError as error:
        problem = str(error)
    if problem:
        assert str(root) in problem
        assert "\n" not in problem
        return "refused"
    assert all("\n" not in text for text in told)
    pixels = images.raw(slice(None))
    assert pixels.shape == (len(images), 8, 8, 3)
    assert images.files is not None
    for row, store_row in enumerate(images.rows):
        file = Path(images.files[store_row])
        np.testing.assert_array_equal(pixels[row], np.asarray(Image.open(file).convert("RGB")))
        if images.labels is not None and images.class_names is not None:
            assert images.class_names[images.labels[row]] == file.parent.name
            assert role_of(file.parent.name) is None
    return "loaded"


def play(ends: Callable[[int, Path], str], count: int, place: Path) -> Counter[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, while it writes odd metadata
        return Counter(ends(number, place) for number in range(count))


def test_some_generated_pictures_end_well(tmp_path: Path) -> None:
    ends = play(read, QUICK, tmp_path)
    assert min(ends["equal"], ends["resized"], ends["refused"]) > 5


def test_some_generated_folders_end_well(tmp_path: Path) -> None:
    ends = play(load, QUICK // 3, tmp_path)
    assert min(ends["loaded"], ends["refused"]) > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_generated_pictures_end_well(tmp_path: Path) -> None:
    ends = play(read, PICTURES, tmp_path)
    assert sum(ends.values()) == PICTURES
    assert ends["equal"] > PICTURES / 10
    assert ends["refused"] < PICTURES / 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_generated_folders_end_well(tmp_path: Path) -> None:
    ends = play(load, FOLDERS, tmp_path)
    assert sum(ends.values()) == FOLDERS
    assert ends["loaded"] > FOLDERS / 10
