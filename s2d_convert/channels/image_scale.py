"""At which sizes a model can read its image, and the model at such a size: the same channels, so that plans fit both."""

from __future__ import annotations

from fractions import Fraction
from weakref import WeakKeyDictionary

import numpy as np

from s2d_convert.channels.analysis import AnalysedModel, Layout
from s2d_convert.channels.image_size import FixedSizeError, image_sides, resized, total_strides
from s2d_convert.errors import UsageError

SCALES = (0.75, 0.625, 0.5)  # of each side; 1 is the image as it is

_known: WeakKeyDictionary[AnalysedModel, dict[float, AnalysedModel | str]] = WeakKeyDictionary()


def offered_scales(model: AnalysedModel) -> tuple[float, ...]:
    """Return the scales below 1 at which a model can read its image, the largest first."""
    return tuple(scale for scale in SCALES if isinstance(_at(model, scale), AnalysedModel))


def fixed_by(model: AnalysedModel) -> str:
    """Return why a model can read its image at no smaller size; '' if it can."""
    reasons = [reason for reason in (_at(model, scale) for scale in SCALES) if isinstance(reason, str)]
    return reasons[-1] if len(reasons) == len(SCALES) else ""  # half of each side fits most strides


def at_scale(model: AnalysedModel, scale: float) -> AnalysedModel:
    """Return a model as a chain of this scale reads it: full-size images come in, and are resized first.

    Units, classes, node names and weights are those of `model`. Raises UsageError for a scale that it cannot have.
    """
    if scale == model.graph.scale:
        return model
    small = _at(model, scale) if scale in SCALES else ""
    if isinstance(small, str):
        raise UsageError(f"plan: {refusal(model, scale)}")
    return small


def refusal(model: AnalysedModel, scale: float) -> str:
    """Return what is wrong with a scale, '' where the model can have it."""
    offered = offered_scales(model)
    if scale in (model.graph.scale, *offered):
        return ""
    reason = _at(model, scale) if scale in SCALES else fixed_by(model)
    allowed = f"{', '.join(f'{s:g}' for s in offered)} and 1 are" if offered else "only 1 is"
    return f"the model cannot read its image at scale {scale:g}{f' ({reason})' if reason else ''}; {allowed} possible"


def scaled_sides(model: AnalysedModel, scale: float) -> tuple[int, int]:
    """Return the height and width of the image at a scale, rounded down to multiples of the total stride."""
    height, width = (
        max(stride, int(side * Fraction(scale)) // stride * stride)
        for side, stride in zip(image_sides(model.graph), total_strides(model.graph), strict=True)
    )
    return height, width


def _at(model: AnalysedModel, scale: float) -> AnalysedModel | str:
    """Return the model at one of SCALES, made once, or why there is none."""
    made = _known.setdefault(model, {})
    if scale not in made:
        made[scale] = _made(model, scale)
    return made[scale]


def _made(model: AnalysedModel, scale: float) -> AnalysedModel | str:
    sides = scaled_sides(model, scale)
    alike = [s for s in (1.0, *SCALES) if scaled_sides(model, s) == sides]
    if min(alike, key=lambda s: abs(s - sides[0] * sides[1] / np.prod(image_sides(model.graph)) / s)) != scale:
        strides = "x".join(map(str, total_strides(model.graph)))
        return f"of each side it would be no multiple of the total stride, {strides}, or the same as another size"
    try:
        small = AnalysedModel.of(resized(model.graph, sides, scale=scale))
    except FixedSizeError as error:
        return str(error)
    return small if _same_channels(model, small) else "a map is flattened, and another size would be other channels"


def _same_channels(model: AnalysedModel, other: AnalysedModel) -> bool:
    """Return whether every node does the same to the same units, so that plans and weights of one model fit the other."""
    before, after = model.channels, other.channels
    return (
        before.classes == after.classes
        and before.units == after.units
        and all(after.roles[name].kind is role.kind for name, role in before.roles.items())
        and all(_same_units(layout, after.layouts.get(name)) for name, layout in before.layouts.items())
    )


def _same_units(layout: Layout, other: Layout | None) -> bool:
    if other is None:
        return False
    if layout.uniform and other.uniform:  # which axis its channels lie on is anyone's choice
        return bool(layout.units[0] == other.units[0])
    return layout.axis == other.axis and np.array_equal(layout.units, other.units)
