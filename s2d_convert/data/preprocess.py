"""Preprocessing of pixels to model input, as presets and options ask for it; `s2d_runtime.preprocess` does it."""

from __future__ import annotations

from s2d_runtime import preprocess
from s2d_runtime.preprocess import WIDE_BITS, InputType, Layout

from s2d_convert.data.presets import (
    DEFAULT_PRESET,
    PixelOptions,
    order_of,
    own_numbers,
    own_scale,
    per_channel,
    preset_named,
    resize_of,
)
from s2d_convert.errors import DataError, UsageError


class Preprocess(preprocess.Preprocess):
    """The runtime's preprocessing, with the errors of the converter."""

    value_error = UsageError
    image_error = DataError


def make_preprocess(
    name: str | None = None,
    *,
    size: tuple[int, int],
    channels: int,
    layout: Layout = "NCHW",
    dtype: InputType = "float32",
    pixels: PixelOptions = PixelOptions(),  # noqa: B008 (frozen)
) -> Preprocess:
    """Return the Preprocess of a preset, overridden by `pixels`.

    The default preset is `imagenet`, or `raw` for a model that takes uint8 or if a scale is given. A model without 3
    channels gets the mean of the preset's three numbers. Raises UsageError for unknown names and values out of range.
    """
    name = name or ("raw" if dtype == "uint8" or pixels.scale is not None else DEFAULT_PRESET)
    preset = preset_named(name)
    order = order_of(pixels.order, preset, channels)
    scaled = pixels.scale is not None
    scale = preset.scale if pixels.scale is None else own_scale(pixels.scale)
    unit = 255 * scale  # overrides are in 0..1 units, presets in units after their scale
    fit, ratio = resize_of(pixels.resize, pixels.crop_ratio)
    numbers = {
        key: per_channel(preset_values, channels, order)
        if values is None
        else own_numbers(key, values, channels, unit=unit, scaled=scaled)
        for key, preset_values, values in (("mean", preset.mean, pixels.mean), ("std", preset.std, pixels.std))
    }
    return Preprocess(
        mean=numbers["mean"],
        std=numbers["std"],
        scale=scale,
        size=size,
        channels=channels,
        layout=layout,
        dtype=dtype,
        order=order,
        fit=fit,
        crop_ratio=ratio,
        fill=0 if pixels.fill is None else pixels.fill,
        bits=WIDE_BITS if pixels.bits is None else pixels.bits,
    )
