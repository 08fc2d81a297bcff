"""Reading one picture: decoding, turning it upright, and conversion to the model's channels and size. Needs Pillow.

The converter reads its images with the same functions.

Letters: H height, W width, C channels.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from s2d_runtime.preprocess import Preprocess

# The decoders that Pillow may use. One of the others (EPS) starts an external program.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"}
)
# The errors that Pillow's decoders raise for broken files.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    ZeroDivisionError,
    AttributeError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_UPRIGHT: Mapping[Any, Image.Transpose] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
Source = str | os.PathLike[str] | bytes  # a file, or its content
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"})  # the chunks that determine the pixels


@dataclass(frozen=True)
class Picture:
    """A decoded picture: the pixels for the preprocessing, uint8 [H, W, C]; the (width, height) of the upright picture in
    the file; whether that is grey with more than 8 bits."""

    pixels: NDArray[np.uint8]
    source: tuple[int, int]
    wide: bool


@dataclass(frozen=True)
class Limits:
    """The decoders that may be used, and the most pixels that a picture may have (None: as many as Pillow allows)."""

    formats: tuple[str, ...] = IMAGE_FORMATS
    pixels: int | None = None


ANY = Limits()


def read_image(source: Source, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read one picture as uint8 [H, W, C], with the model's size and channels (always in RGB order).

    The EXIF orientation is applied. Grey, palette, alpha, 16-bit and CMYK images are converted. The picture is resized as
    `preprocess.fit` says (bicubic, antialiased); an image of the right size keeps its pixels. Raises one of UNREADABLE for
    a broken file, and the preprocessing's `image_error` when the model takes neither 1 nor 3 channels.
    """
    return load_picture(source, preprocess).pixels


def load_picture(source: Source, preprocess: Preprocess, limits: Limits = ANY) -> Picture:
    """Read one picture like `read_image`, with its size in the file. Raises ValueError, too, where it exceeds the limits."""
    side = round(2 * max(preprocess.size) / preprocess.crop_ratio)
    image, wide = _open(source, preprocess, side, limits)
    return Picture(_pixels(image, preprocess), image.size, wide)


def fit_picture(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Return an opened picture as `read_image` returns files. Raises the same errors."""
    mode = _mode(preprocess, "a picture")
    return _pixels(_to_mode(_turned(image), mode, bits=preprocess.bits), preprocess)


def _pixels(image: Image.Image, preprocess: Preprocess) -> NDArray[np.uint8]:
    return np.asarray(_fitted(image, preprocess), np.uint8).reshape(*preprocess.size, preprocess.channels)


def read_picture(source: Source, preprocess: Preprocess, side: int) -> NDArray[np.uint8]:
    """Read one picture without fitting it to the model, uint8 [H, W, C], reduced if it is longer than `side`.

    Raises the errors of `read_image`.
    """
    image, _ = _open(source, preprocess, side, ANY)
    image.thumbnail((side, side))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, preprocess.channels)


def reason_of(error: BaseException) -> str:
    """Return in a few words why a file cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "its content is none of " + ", ".join(IMAGE_FORMATS)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Suppress Pillow's warnings about odd metadata within the block: the pixels are complete, or reading fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def cut_away(source: tuple[int, int], preprocess: Preprocess) -> float:
    """Return the share of a picture that is cropped away because its aspect ratio differs from the model's.

    source: its (width, height).
    """
    if preprocess.fit != "crop":
        return 0.0
    height, width = preprocess.size
    ratio = (source[0] / source[1]) / (width / height)
    return 1 - min(ratio, 1 / ratio)


def _mode(preprocess: Preprocess, name: str) -> str:
    """Return Pillow's mode of the model's channels. Raises `image_error` when there is none."""
    if preprocess.channels not in {1, 3}:
        raise preprocess.image_error(
            f"{name}: image files have 1 or 3 channels, the model takes {preprocess.channels}; give the images as .npz"
        )
    return "L" if preprocess.channels == 1 else "RGB"


def _open(source: Source, preprocess: Preprocess, side: int, limits: Limits) -> tuple[Image.Image, bool]:
    """Return the upright picture in the model's mode, and whether it had more than 8 bits.

    A large JPEG is decoded with no more detail than `side` pixels need.
    """
    mode = _mode(preprocess, "a picture" if isinstance(source, bytes) else str(source))
    try:
        # Opened as a stream, not by name: Pillow would map an uncompressed TIFF into memory, and then mix up width and
        # height where it has to be turned.
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
            return _decoded(stream, mode, side, bits=preprocess.bits, limits=limits)
    except UNREADABLE as error:
        bare = _without_metadata(source)
        if bare is None:
            raise
        try:
            return _decoded(io.BytesIO(bare), mode, side, bits=preprocess.bits, limits=limits)
        except UNREADABLE:
            raise error from None  # the first error names the file


def _decoded(file: IO[bytes], mode: str, side: int, *, bits: int, limits: Limits) -> tuple[Image.Image, bool]:
    with Image.open(file, formats=limits.formats) as image:
        if limits.pixels is not None and image.width * image.height > limits.pixels:
            raise ValueError(f"it has {image.width}x{image.height} pixels, at most {limits.pixels} are allowed")
        image.draft(None, (side, side))
        return _to_mode(_turned(image), mode, bits=bits).copy(), _is_wide(image)


def _turned(image: Image.Image) -> Image.Image:
    """Return the picture as its EXIF orientation says, which loads it."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> object:
    """Return the EXIF orientation of a loaded image.

    Other entries are not read, because they may be broken. `ImageOps.exif_transpose` rewrites all of them, and fails for
    one odd number.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
        return value if value in _UPRIGHT else None
    except UNREADABLE:
        return None


def _without_metadata(source: Source) -> bytes | None:
    """Return a PNG without chunks that do not affect the pixels (long texts, a broken colour profile), None for other
    files."""
    if isinstance(source, bytes):
        content = source
    else:
        content = Path(source).read_bytes() if Path(source).is_file() else b""
    if not content.startswith(_PNG_SIGNATURE):
        return None
    chunks, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        end = at + 12 + length
        if kind in _PNG_CHUNKS:
            chunks.append(content[at:end])
        at = end
    return b"".join(chunks)


def _to_mode(image: Image.Image, mode: str, *, bits: int) -> Image.Image:
    """Return the image in mode L or RGB. The pixels of a grey image with more than 8 bits are scaled from `bits` bits.

    Pillow alone would clip them. Raises ValueError for pixels that do not fit.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if _is_wide(image):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() >= 2**bits:
            raise ValueError(f"pixels from {wide.min()} to {wide.max()} do not fit into {bits} bits")
        image = Image.fromarray((wide >> (bits - 8)).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting straight to RGB, Pillow would warn about the transparency
    return image if image.mode == mode else image.convert(mode)


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith("I")  # I;16, and I of 32 bits


def _fitted(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Return the image in the model's size."""
    height, width = preprocess.size
    ratio, method = preprocess.crop_ratio, Image.Resampling.BICUBIC
    if image.size == (width, height) and ratio == 1:
        return image
    if preprocess.fit == "stretch":
        left, top = image.width * (1 - ratio) / 2, image.height * (1 - ratio) / 2
        return image.resize((width, height), method, box=(left, top, image.width - left, image.height - top))
    if preprocess.fit == "crop":
        return ImageOps.fit(image, (width, height), method=method, bleed=(1 - ratio) / 2)
    scale = min(width / image.width, height / image.height)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)
    colour = preprocess.fill if preprocess.channels == 1 else (preprocess.fill,) * 3
    padded = Image.new(image.mode, (width, height), colour)
    share = 0.5 if preprocess.fit == "pad" else 0.0
    padded.paste(inner, (round(share * (width - inner.width)), round(share * (height - inner.height))))
    return padded
