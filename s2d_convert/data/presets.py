"""Presets of the preprocessing, and the options that override them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from s2d_runtime.preprocess import Fit, Order

from s2d_convert.errors import UsageError

MAX_STD = 10.0  # a larger value was surely meant in 0..255 units


@dataclass(frozen=True)
class Preset:
    """Mean and std of R, G, B, in the units of pixels times `scale`."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    order: Order = "RGB"


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "imagenet": Preset((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar10": Preset((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "unit": Preset(),
        "signed": Preset((1.0, 1.0, 1.0), scale=1 / 127.5),
        "raw": Preset(scale=1.0),
        # These numbers belong to R, G, B, as in the other presets; they are reordered for the model.
        "bgr-caffe": Preset((123.68, 116.779, 103.939), scale=1.0, order="BGR"),
    }
)
DEFAULT_PRESET = "imagenet"
ORDERS: Mapping[str, Order] = MappingProxyType({"rgb": "RGB", "bgr": "BGR", "grey": "GRAY", "gray": "GRAY"})
# --resize: how a picture of another size and aspect ratio is fitted to the model's, and the share of each side that is
# kept, such as the central 224 of 256 pixels.
RESIZES: Mapping[str, tuple[Fit, float]] = MappingProxyType(
    {
        "crop": ("crop", 1.0),
        "crop-256-224": ("crop", 224 / 256),
        "stretch": ("stretch", 1.0),
        "stretch-256-224": ("stretch", 224 / 256),
        "pad": ("pad", 1.0),
        "pad-right": ("pad-right", 1.0),
    }
)


@dataclass(frozen=True)
class PixelOptions:
    """Overrides of a preset; None keeps the preset's value.

    `mean` and `std` are in 0..1 units, one value, or one per channel in the model's order. `scale` replaces the preset's;
    `mean` and `std` are then in the units of the scaled pixels. `order` is a key of ORDERS,
    `resize` one of RESIZES, `crop_ratio` the share of each side that is kept, `fill` the pixel value of padding, `bits` the
    depth of grey pictures with more than 8 bits.
    """

    scale: float | None = None
    order: str | None = None
    resize: str | None = None
    crop_ratio: float | None = None
    fill: int | None = None
    bits: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def preset_named(name: str) -> Preset:
    """Return the preset of a name. Raises UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"preprocess {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    return PRESETS[name]


def order_of(name: str | None, preset: Preset, channels: int) -> Order:
    """Return the order of the model's channels. name: the option, None for the preset's order. Raises UsageError."""
    if name is None or channels != 3:
        if name is not None and name.lower() == "bgr":
            raise UsageError(f"order bgr: the model has {channels} channels, expected 3; leave it out")
        return preset.order if channels == 3 else "RGB"
    if name.lower() not in ORDERS:
        raise UsageError(f"order {name!r} is unknown; allowed: {', '.join(ORDERS)}")
    return ORDERS[name.lower()]


def resize_of(name: str | None, crop_ratio: float | None) -> tuple[Fit, float]:
    """Return the way of resizing and the share of each side that is kept. Raises UsageError."""
    name = name or "crop"
    if name not in RESIZES:
        raise UsageError(f"resize {name!r} is unknown; allowed: {', '.join(RESIZES)}")
    fit, ratio = RESIZES[name]
    if crop_ratio is None:
        return fit, ratio
    if fit.startswith("pad"):
        raise UsageError(f"crop-ratio: means nothing with --resize {name}, which cuts nothing away; leave it out")
    if not 0.1 <= crop_ratio <= 1:
        raise UsageError(f"crop-ratio {crop_ratio:g}: 0.1 to 1 is allowed, such as 0.875 for 224 of 256 pixels")
    return fit, crop_ratio


def per_channel(rgb: tuple[float, float, float], channels: int, order: Order) -> tuple[float, ...]:
    """Return a preset's numbers in the model's channel order. A model without 3 channels gets their mean."""
    if channels != 3:
        return (sum(rgb) / 3,) * channels
    return rgb[::-1] if order == "BGR" else rgb


def own_numbers(name: str, values: Sequence[float], channels: int, *, unit: float, scaled: bool) -> tuple[float, ...]:
    """Return the user's mean or std in units after the scale, one value per channel. Raises UsageError.

    values: in 0..1 units, each of which is `unit` after the scale; in units after the scale if `scaled`.
    """
    factor = 1.0 if scaled else unit
    high = (1.0 if name == "mean" else MAX_STD) * unit / factor
    low = "0 <=" if name == "mean" else "0 <"
    if len(values) not in {1, channels}:
        allowed = "1 value" if channels == 1 else f"1 or {channels} values"
        raise UsageError(f"{name}: got {len(values)} values, expected {allowed} (one per channel of the model)")
    for value in values:
        inside = math.isfinite(value) and (0 <= value <= high * (1 + 1e-9)) and (name == "mean" or value > 0)
        if not inside:
            hint = (
                "it is in units of pixel * scale"
                if scaled
                else "it is in units of pixel / 255, so divide values meant for 0..255 by 255, or give --scale 1"
            )
            raise UsageError(f"{name}: {value:g} is out of range, expected {low} {name} <= {high:g}; {hint}")
    return tuple(float(v) * factor for v in (tuple(values) * channels if len(values) == 1 else values))


def own_scale(scale: float) -> float:
    """Return the user's scale. Raises UsageError when it is out of range."""
    if not (math.isfinite(scale) and 0 < scale <= 1):
        raise UsageError(
            f"scale {scale:g}: pixels from 0 to 255 are multiplied by it, above 0 and at most 1 is allowed; "
            "to divide by 127.5 write 1/127.5"
        )
    return scale
