"""Preprocessing of pixels to model input: the order of channels, a fused multiply-add, and its record as JSON.

The converter and the runtime share this module and `pictures`, so that a deployed network sees the pixels that it was
converted with. This one needs numpy only.

Letters: B batch, H height, W width, C channels. Pixels are uint8 NHWC; the model input is NCHW or NHWC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from s2d_runtime.dispatcher import DispatcherError, Manifest

Layout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "uint8"]
Order = Literal["RGB", "BGR", "GRAY"]
Fit = Literal["crop", "stretch", "pad", "pad-right"]
P = TypeVar("P", bound="Preprocess")

LARGEST = 1e300  # limit for numbers in a file; also excludes NaN, infinities and integers that no float can hold
WIDE_BITS = 16  # assumed for grey pictures with more than 8 bits
# Fields that manifests of older versions lack.
OPTIONAL = frozenset({"known", "fit", "crop_ratio", "fill", "bits"})
# Pillow's weights for mode L, in 1/65536 (ITU-R 601-2 luma).
LUMA = np.array([19595, 38470, 7471], np.uint32)


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of pixels: `(pixel * scale - mean) / std` per channel, then the layout.

    `size` is (H, W). `mean` and `std` have one value per channel, in the model's channel order, which `order` names. Only a
    3-channel model can have the order "BGR", or "GRAY" (the luma in all three). With `dtype` "uint8" the model takes the
    pixels themselves, so mean, std and scale must be 0, 1 and 1. If the preprocessing is not `known`, the model was
    converted with float32 model input, and pixels are rejected.

    The other fields concern image files, see `pictures`: `fit` is the way of resizing, `crop_ratio` the share of each side
    that is kept, `fill` the pixel value of padding, `bits` the depth of grey pictures with more than 8 bits.
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
    fit: Fit = "crop"
    crop_ratio: float = 1.0
    fill: int = 0
    bits: int = WIDE_BITS
    # What is raised for a faulty value, and for images or a record that cannot be used; the converter has classes of its own.
    value_error: ClassVar[type[Exception]] = DispatcherError
    image_error: ClassVar[type[Exception]] = DispatcherError

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise self.value_error(f"preprocessing: {problem}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one image of model input, without the batch axis."""
        height, width = self.size
        return (self.channels, height, width) if self.layout == "NCHW" else (height, width, self.channels)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the model input for uint8 images [B, H, W, C]: `dtype`, contiguous, [B, C, H, W] or [B, H, W, C].

        Raises `image_error` when type or shape do not fit, or when the preprocessing is not known.
        """
        self.check_known("images")
        expected = (*self.size, self.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise self.image_error(
                f"images: got {images.dtype} of shape {images.shape}, "
                f"expected uint8 (B, H, W, C) with (H, W, C) = {expected}"
            )
        view = images[..., ::-1] if self.order == "BGR" else images
        if self.order == "GRAY":
            luma = ((images @ LUMA + 0x8000) >> 16).astype(np.uint8)
            view = np.broadcast_to(luma[..., None], images.shape)
        if self.layout == "NCHW":
            view = view.transpose(0, 3, 1, 2)
        if self.dtype == "uint8":
            return np.ascontiguousarray(view)
        out = np.empty(view.shape, np.float32)
        out[...] = view  # cast and reorder in one pass, then two passes in place: faster than a strided multiply
        factor, offset = self._fused()
        out *= factor
        out += offset
        return out

    def check_known(self, source: object) -> None:
        """Raise `image_error` if the preprocessing is not known. source: where the pixels come from, for the message."""
        if not self.known:
            raise self.image_error(
                f"{source}: pixels, but the model was converted with float32 arrays that it takes as they are; give such an "
                "array (.npy for one image, .npz for many), or convert again and say with --preprocess what pixels become"
            )

    def _fused(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return factor and offset per channel, in the shape that broadcasts over the layout. Computed in float64."""
        std = np.asarray(self.std, np.float64)
        factor = (self.scale / std).astype(np.float32)
        offset = (-np.asarray(self.mean, np.float64) / std).astype(np.float32)
        if self.layout == "NHWC":
            return factor, offset
        return factor[:, None, None], offset[:, None, None]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dict, with a sentence that explains it. `from_json` reads it."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        formula = "none" if self.dtype == "uint8" else "(pixel * scale - mean) / std, pixel in 0..255, per channel"
        formula = formula if self.known else "not known: arrays were taken as they are"
        return plain | {"formula": formula, "resize": self._resizing()}

    def _resizing(self) -> str:
        """Return the way of resizing in words."""
        if self.fit == "crop" and self.crop_ratio == 1:
            return "shorter side to size (bicubic, antialiased), then centre crop"
        larger = "size" if self.crop_ratio == 1 else f"size / {self.crop_ratio:g}"
        then = "" if self.crop_ratio == 1 else ", then centre crop"
        return {
            "crop": f"shorter side to {larger} (bicubic, antialiased){then}",
            "stretch": f"both sides to {larger} (bicubic, antialiased){then}",
            "pad": f"whole picture into size (bicubic, antialiased), the rest {self.fill} on both sides",
            "pad-right": f"whole picture into size (bicubic, antialiased), the rest {self.fill} on the right or below",
        }[self.fit]

    @classmethod
    def from_json(cls: type[P], plain: Mapping[str, Any]) -> P:
        """Read the dict that `to_json` wrote. Unknown keys are ignored. Raises `image_error` for anything else."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in plain and name not in OPTIONAL]
        if missing:
            raise cls.image_error(f"preprocess: keys {missing} are missing; expected {names}")
        values: dict[str, Any] = {name: plain[name] for name in names if name in plain}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            return cls(**values)
        except cls.value_error as error:
            raise cls.image_error(str(error)) from error

    @classmethod
    def recorded(cls: type[P], manifest: Manifest) -> P:
        """Return the preprocessing that a manifest records.

        Raises `image_error` when it has none, or one whose result the stages do not take.
        """
        if manifest.preprocess is None:
            raise cls.image_error(
                "the manifest records no preprocessing (the model was only split); convert it, or use the dispatcher directly"
            )
        made = cls.from_json(manifest.preprocess)
        produced = (made.dtype, *made.input_shape)
        expected = (manifest.input.dtype, *manifest.input.shape[1:])
        if produced != expected:
            raise cls.image_error(
                f"preprocess: makes {produced[0]} {list(produced[1:])} of an image, but the stages take {expected[0]} "
                f"{list(expected[1:])}; the manifest was changed, convert again"
            )
        return made


def _problems(p: Preprocess) -> Sequence[str]:
    """Return the problems with the values of a Preprocess. Types are checked too, because values may come from a file."""
    problems = []
    for name, value, allowed in (
        ("layout", p.layout, get_args(Layout)),
        ("dtype", p.dtype, get_args(InputType)),
        ("order", p.order, get_args(Order)),
        ("known", p.known, (True, False)),
        ("fit", p.fit, get_args(Fit)),
    ):
        if value not in allowed:
            problems.append(f"{name} {value!r} is unknown; allowed: {', '.join(map(str, allowed))}")
    if not (_are(p.size, 2, whole=True) and min(p.size) >= 1):
        problems.append(f"size {p.size!r}; expected two whole numbers (height, width), each at least 1")
    if not (_are((p.channels,), 1, whole=True) and p.channels >= 1):
        return [*problems, f"channels {p.channels!r}; expected a whole number of at least 1"]
    for name, values in (("mean", p.mean), ("std", p.std)):
        if not _are(values, p.channels):
            problems.append(f"{name} {values!r}; expected {p.channels} finite numbers, one per channel")
        elif name == "std" and min(values) <= 0:
            problems.append(f"std {values!r}; expected values above 0")
    if not (_are((p.scale,), 1) and p.scale > 0):
        problems.append(f"scale {p.scale!r}; expected a number above 0")
    return [*problems, *_file_problems(p)] or _misfits(p)


def _file_problems(p: Preprocess) -> Iterator[str]:
    """Yield the problems with the values that concern image files."""
    if not (_are((p.crop_ratio,), 1) and 0.1 <= p.crop_ratio <= 1):
        yield f"crop_ratio {p.crop_ratio!r}; expected a number from 0.1 to 1"
    for name, value, low, high in (("fill", p.fill, 0, 255), ("bits", p.bits, 8, WIDE_BITS)):
        if not (_are((value,), 1, whole=True) and low <= value <= high):
            yield f"{name} {value!r}; expected a whole number from {low} to {high}"


def _misfits(p: Preprocess) -> Sequence[str]:
    """Return the contradictions between values that are valid by themselves."""
    problems = []
    if p.order != "RGB" and p.channels != 3:
        problems.append(f"order {p.order} needs 3 channels, the model has {p.channels}")
    if p.crop_ratio != 1 and p.fit.startswith("pad"):
        problems.append(
            f"crop_ratio {p.crop_ratio:g} means nothing with fit {p.fit}, which cuts nothing away; expected 1"
        )
    if p.dtype == "uint8" and (p.scale, *p.mean, *p.std) != (1, *[0] * p.channels, *[1] * p.channels):
        problems.append("the model takes uint8, so mean, std and scale must be 0, 1 and 1; use the preset raw")
    return problems


def _are(values: object, count: int, *, whole: bool = False) -> bool:
    """Return whether `values` is a tuple of `count` finite numbers (integers if `whole`), none of them bool."""
    kinds = (int,) if whole else (int, float)
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(v, kinds) and not isinstance(v, bool) and abs(v) < LARGEST for v in values)
    )
