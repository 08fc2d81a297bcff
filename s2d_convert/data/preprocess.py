"""How pixels become what the model takes: presets, the fused multiply-add, and the reading of one image file.

Letters: B batch, H height, W width, C channels. Pixels are uint8 NHWC; the model input is NCHW or NHWC.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from s2d_convert.errors import DataError, UsageError

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "uint8"]
Order = Literal["RGB", "BGR"]

LARGEST = 1e300  # of a number in a file; also keeps out NaN, infinities, and whole numbers that no float can hold
MAX_STD = 10.0  # a larger one was surely meant in 0..255 units

# Pillow is told which decoders it may use: among the others is one that starts an external program (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"}
)
# What Pillow's decoders raise on broken files.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class _Preset:
    """Mean and std of R, G, B after the pixels were multiplied by `scale`."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    order: Order = "RGB"


PRESETS: Mapping[str, _Preset] = MappingProxyType(
    {
        "imagenet": _Preset((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar10": _Preset((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "unit": _Preset(),
        "signed": _Preset((1.0, 1.0, 1.0), scale=1 / 127.5),
        "raw": _Preset(scale=1.0),
        "bgr-caffe": _Preset((103.939, 116.779, 123.68), scale=1.0, order="BGR"),
    }
)
DEFAULT_PRESET = "imagenet"


@dataclass(frozen=True)
class Preprocess:
    """The way from pixels to model input: `(pixel * scale - mean) / std` per channel, then the layout.

    `size` is (H, W). `mean` and `std` have one value per channel, in the model's channel order; `order` says
    which order that is (only a 3-channel model can be "BGR"). With `dtype` "uint8" the model takes the pixels
    themselves, so mean, std and scale must be 0, 1 and 1. Where it is not `known`, nobody has said how: the model was
    converted with arrays that it takes as they are, and pixels are refused.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    size: tuple[int, int]
    channels: int
    layout: Layout = "NCHW"
    dtype: InputType = "float32"
    order: Order = "RGB"
    known: bool = True

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise UsageError(f"preprocessing: {problem}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one image as the model takes it, without the batch axis."""
        height, width = self.size
        return (self.channels, height, width) if self.layout == "NCHW" else (height, width, self.channels)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """The model input for uint8 images [B, H, W, C]: `dtype`, contiguous, [B, C, H, W] or [B, H, W, C].

        Raises DataError when type or shape do not fit, or when the way is not known.
        """
        self.check_known("images")
        expected = (*self.size, self.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise DataError(
                f"images: got {images.dtype} of shape {images.shape}, "
                f"expected uint8 (B, H, W, C) with (H, W, C) = {expected}"
            )
        view = images[..., ::-1] if self.order == "BGR" else images
        if self.layout == "NCHW":
            view = view.transpose(0, 3, 1, 2)
        if self.dtype == "uint8":
            return np.ascontiguousarray(view)
        out = np.empty(view.shape, np.float32)
        out[...] = view  # casting and reordering in one pass, then two passes in place: faster than a strided multiply
        factor, offset = self._fused()
        out *= factor
        out += offset
        return out

    def check_known(self, place: object) -> None:
        """Raise DataError unless it is known what becomes of pixels, such as those in `place`."""
        if not self.known:
            raise DataError(
                f"{place}: pixels, but the model was converted with float32 arrays that it takes as they are; give such an "
                "array (.npy for one image, .npz for many), or convert again and say with --preprocess what pixels become"
            )

    def _fused(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Factor and offset per channel, shaped to broadcast over the layout; computed in double precision."""
        std = np.asarray(self.std, np.float64)
        factor = (self.scale / std).astype(np.float32)
        offset = (-np.asarray(self.mean, np.float64) / std).astype(np.float32)
        if self.layout == "NHWC":
            return factor, offset
        return factor[:, None, None], offset[:, None, None]

    def to_json(self) -> dict[str, Any]:
        """A plain dict of lists, numbers and strings, with a line on how to read it; `from_json` takes it back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        formula = "none" if self.dtype == "uint8" else "(pixel * scale - mean) / std, pixel in 0..255, per channel"
        formula = formula if self.known else "not known: arrays were taken as they are"
        return plain | {"formula": formula, "resize": "shorter side to size (bicubic, antialiased), then centre crop"}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Preprocess:
        """The Preprocess that `to_json` wrote; unknown keys are ignored. Raises DataError for anything else."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in plain and name != "known"]
        if missing:
            raise DataError(f"preprocess: keys {missing} are missing; expected {names}")
        values: dict[str, Any] = {name: plain[name] for name in names if name in plain}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            return cls(**values)
        except UsageError as error:
            raise DataError(str(error)) from error


def _problems(p: Preprocess) -> Sequence[str]:
    """What is wrong with the values of a Preprocess; they may come from a file, so types are checked too."""
    found = []
    for name, value, allowed in (
        ("layout", p.layout, get_args(Layout)),
        ("dtype", p.dtype, get_args(InputType)),
        ("order", p.order, get_args(Order)),
        ("known", p.known, (True, False)),
    ):
        if value not in allowed:
            found.append(f"{name} {value!r} is unknown; allowed: {', '.join(map(str, allowed))}")
    if not (_are(p.size, 2, whole=True) and min(p.size) >= 1):
        found.append(f"size {p.size!r}; expected two whole numbers (height, width), each at least 1")
    if not (_are((p.channels,), 1, whole=True) and p.channels >= 1):
        return [*found, f"channels {p.channels!r}; expected a whole number of at least 1"]
    for name, values in (("mean", p.mean), ("std", p.std)):
        if not _are(values, p.channels):
            found.append(f"{name} {values!r}; expected {p.channels} finite numbers, one per channel")
        elif name == "std" and min(values) <= 0:
            found.append(f"std {values!r}; expected values above 0")
    if not (_are((p.scale,), 1) and p.scale > 0):
        found.append(f"scale {p.scale!r}; expected a number above 0")
    if found:
        return found
    if p.order == "BGR" and p.channels != 3:
        found.append(f"order BGR needs 3 channels, the model has {p.channels}")
    if p.dtype == "uint8" and (p.scale, *p.mean, *p.std) != (1, *[0] * p.channels, *[1] * p.channels):
        found.append("the model takes uint8, so mean, std and scale must be 0, 1 and 1; use the preset raw")
    return found


def _are(values: object, count: int, *, whole: bool = False) -> bool:
    """Whether `values` is a tuple of `count` finite (whole) numbers; bool is no number here."""
    kinds = (int,) if whole else (int, float)
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(v, kinds) and not isinstance(v, bool) and abs(v) < LARGEST for v in values)
    )


def make_preprocess(
    name: str | None = None,
    *,
    size: tuple[int, int],
    channels: int,
    layout: Layout = "NCHW",
    dtype: InputType = "float32",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocess:
    """The Preprocess of a preset, with `mean` and `std` (in 0..1 units, one value or one per channel) put over it.

    Without a name: `imagenet`, or `raw` for a model that takes uint8. A model that has not 3 channels gets
    the mean of the preset's three numbers. Raises UsageError for unknown names and values out of range.
    """
    name = name or ("raw" if dtype == "uint8" else DEFAULT_PRESET)
    if name not in PRESETS:
        raise UsageError(f"preprocess {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    unit = 255 * preset.scale  # the override is in 0..1 units, the preset in those after its scale
    return Preprocess(
        mean=_per_channel(preset.mean, channels) if mean is None else _override("mean", mean, channels, unit),
        std=_per_channel(preset.std, channels) if std is None else _override("std", std, channels, unit),
        scale=preset.scale,
        size=size,
        channels=channels,
        layout=layout,
        dtype=dtype,
        order=preset.order if channels == 3 else "RGB",
    )


def _per_channel(rgb: tuple[float, float, float], channels: int) -> tuple[float, ...]:
    return rgb if channels == 3 else (sum(rgb) / 3,) * channels


def _override(name: str, values: Sequence[float], channels: int, unit: float) -> tuple[float, ...]:
    """The given values after the preset's scale, one per channel."""
    low, high = ("0 <=", 1.0) if name == "mean" else ("0 <", MAX_STD)
    if len(values) not in {1, channels}:
        allowed = "1 value" if channels == 1 else f"1 or {channels} values"
        raise UsageError(f"{name}: got {len(values)} values, expected {allowed} (one per channel of the model)")
    for value in values:
        inside = math.isfinite(value) and (0 <= value <= high) and (name == "mean" or value > 0)
        if not inside:
            hint = "it is in units of pixel / 255, so divide values meant for 0..255 by 255"
            raise UsageError(f"{name}: {value:g} is out of range, expected {low} {name} <= {high:g}; {hint}")
    return tuple(float(v) * unit for v in (tuple(values) * channels if len(values) == 1 else values))


def read_picture(path: str | os.PathLike[str], preprocess: Preprocess, side: int) -> NDArray[np.uint8]:
    """The pixels of one picture as it is, uint8 [H, W, C], made smaller where it is longer than `side`.

    Raises as `read_image` does.
    """
    _check_channels(path, preprocess)
    with Image.open(path, formats=IMAGE_FORMATS) as file:
        file.draft(None, (side, side))
        image = _to_mode(ImageOps.exif_transpose(file), "L" if preprocess.channels == 1 else "RGB")
    image.thumbnail((side, side))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, preprocess.channels)


def _check_channels(path: str | os.PathLike[str], preprocess: Preprocess) -> None:
    if preprocess.channels not in {1, 3}:
        raise DataError(
            f"{path}: image files have 1 or 3 channels, the model takes {preprocess.channels}; give the images as .npz"
        )


def read_image(path: str | os.PathLike[str], preprocess: Preprocess) -> NDArray[np.uint8]:
    """The pixels of one image file, uint8 [H, W, C] of the model's size and channels (always in RGB order).

    EXIF rotation is applied; gray, palette, alpha, 16-bit and CMYK images are converted; the shorter side is
    resized (bicubic, antialiased) and the centre cut out; an image of the right size keeps its pixels. Raises
    one of UNREADABLE for a broken file, and DataError when the model takes neither 1 nor 3 channels.
    """
    _check_channels(path, preprocess)
    height, width = preprocess.size
    with Image.open(path, formats=IMAGE_FORMATS) as file:
        side = 2 * max(height, width)
        file.draft(None, (side, side))  # lets the JPEG decoder skip detail far below the final resolution
        upright = ImageOps.exif_transpose(file)
        image = _to_mode(upright, "L" if preprocess.channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(height, width, preprocess.channels)


def check_header(path: str | os.PathLike[str]) -> None:
    """Nothing, if the file begins like an image; raises one of UNREADABLE if not. Does not decode the pixels."""
    with Image.open(path, formats=IMAGE_FORMATS):
        pass


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode L or RGB; Pillow alone would clip 16-bit pixels instead of scaling them."""
    if image.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("pixels beyond 16 bits are not supported")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about the transparency
    return image if image.mode == mode else image.convert(mode)
