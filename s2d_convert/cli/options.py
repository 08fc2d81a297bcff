"""Options that several commands share, and the parsing of their values. Defaults come from `ConvertOptions`."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from s2d_convert.base.clock import parse_duration
from s2d_convert.conversion.options import ARITHMETIC, FLOATS, NAMED_PLANS, ConvertOptions
from s2d_convert.conversion.options import LABELS as FIXED_LABELS
from s2d_convert.data.class_names import read_names
from s2d_convert.data.presets import ORDERS, PRESETS, RESIZES
from s2d_convert.errors import UsageError

DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(ConvertOptions)}
F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[tuple[int, int]]):
    """A spatial size, HxW or one number for a square."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if len(parts) not in (1, 2) or not all(p.isascii() and p.isdecimal() and 0 < int(p) <= 65536 for p in parts):
            self.fail(f"{value!r} is not a size; give HxW such as 224x224, or one number", param, ctx)
        return int(parts[0]), int(parts[-1])


class Duration(click.ParamType[float]):
    """A time such as 90s, 10m or 1h30m, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(value) if isinstance(value, int | float) else parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no time; give one such as 90s, 10m or 1h30m", param, ctx)
        return seconds


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers separated by commas, such as 0.485,0.456,0.406", param, ctx)


class Fraction(click.ParamType[float]):
    """A number, or one divided by another."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            above, _, below = str(value).partition("/")
            return float(above) / float(below or 1)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r}: expected a number such as 0.017 or 1/255", param, ctx)


class ClassNames(click.ParamType[tuple[str, ...]]):
    """Names of classes, in a file or separated by commas."""

    name = "NAMES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else read_names(str(value))


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that applies several options."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


PATH = click.Path(path_type=Path)
MODEL = click.argument("model", type=PATH)
FOLDER = click.argument("folder", metavar="OUT", type=PATH)
OUTPUT = click.option("--output", metavar="NAME", help="Which output, or which tensor inside, holds the logits.")
LABELS = click.option(
    "--labels",
    type=click.Choice(FIXED_LABELS),
    help="What the model says of an image: one of the classes, or several labels. [default: labels where it ends in a Sigmoid "
    "or in one number, else classes]",
)
CLASSES = click.option(
    "--classes",
    type=ClassNames(),
    metavar="FILE|NAME,NAME,...",
    help="Names of the classes: a file with one per line, JSON, or the names themselves. [default: those of class folders, "
    "else of the model's metadata]",
)
SIZE = click.option("--size", type=Size(), help="Height and width, for a model whose input size is dynamic.")
SEED = click.option(
    "--seed",
    default=DEFAULTS["seed"],
    show_default=True,
    help="Of division, plans and training; measured latencies vary.",
)
STAGES = click.option("--stages", default=DEFAULTS["stages"], show_default=True, help="Most stages to use, 2 to 4.")
WEIGHTS = click.option(
    "--weights",
    type=click.Choice(FLOATS),
    default=DEFAULTS["weights"],
    show_default=True,
    help="How weights are stored in the stage files; float16 takes half the space, and is cast back at load.",
)
QUANTIZE = click.option(
    "--quantize",
    type=click.Choice(ARITHMETIC),
    help="Compute in int8, in int8 but for the last stage, or in float16 (for GPUs).",
)
IMAGES = "folder of class folders, folder of images, or .npz"
FORCE = click.option(
    "--force", is_flag=True, help="Replace the folder where it is an export, and nothing was added to it."
)
WORDS = options(
    click.option("-v", "--verbose", is_flag=True, help="Show what only those who know the method can read, too."),
    click.option("-q", "--quiet", is_flag=True, help="Show only the verdict."),
)
OUT = click.option("--out", type=PATH, help="The folder to write. [default: NAME.s2d here, for a model NAME.onnx]")
RUNNING = options(
    click.option("--threads", default=DEFAULTS["threads"], show_default=True, help="Threads of onnxruntime."),
    click.option(
        "--batch", default=DEFAULTS["batch"], show_default=True, help="Images per call when latency is measured."
    ),
    click.option(
        "--provider", default=DEFAULTS["provider"], show_default=True, help="Execution provider of onnxruntime."
    ),
)
PREPROCESSING = options(
    click.option(
        "--preprocess", type=click.Choice(list(PRESETS)), help="How pixels become model input. [default: imagenet]"
    ),
    click.option("--mean", type=Numbers(), help="Mean per channel, in 0..1 units; overrides the preset's."),
    click.option(
        "--std", type=Numbers(), help="Standard deviation per channel, in 0..1 units; overrides the preset's."
    ),
    click.option(
        "--scale",
        type=Fraction(),
        help="What pixels 0..255 are multiplied by, such as 1/127.5 or 1; mean and std then have the scaled pixels' units.",
    ),
    click.option(
        "--order",
        type=click.Choice(list(ORDERS), case_sensitive=False),
        help="Order of the model's channels; grey: three times the luma. [default: the preset's]",
    ),
    click.option(
        "--resize",
        type=click.Choice(list(RESIZES)),
        help="How pictures get the model's size: shorter side, then centre crop; stretched; or whole with padding. "
        "[default: crop]",
    ),
    click.option(
        "--crop-ratio", type=float, help="Share of each side that crop and stretch keep, such as 0.875. [default: 1]"
    ),
    click.option("--fill", type=int, help="Pixel value of padding, 0 to 255. [default: 0]"),
    click.option(
        "--bits", type=int, help="Bits that grey pictures of more than 8 bits hold, such as 12. [default: 16]"
    ),
)
FIRST = options(
    click.option(
        "--first",
        type=PATH,
        metavar="SMALL.onnx",
        help="A small network of your own, with the same classes in the same order, that may answer before the model.",
    ),
    click.option("--first-size", type=Size(), help="With --first: its height and width, where they are dynamic."),
    click.option(
        "--first-preprocess",
        type=click.Choice(list(PRESETS)),
        help="With --first: how pixels become its input. [default: as with the model]",
    ),
    click.option("--first-mean", type=Numbers(), help="With --first: its mean per channel, as --mean."),
    click.option("--first-std", type=Numbers(), help="With --first: its standard deviation per channel, as --std."),
    click.option("--first-scale", type=Fraction(), help="With --first: what it multiplies pixels by, as --scale."),
    click.option(
        "--first-order",
        type=click.Choice(list(ORDERS), case_sensitive=False),
        help="With --first: the order of its channels, as --order.",
    ),
)
STRICT = click.option(
    "--strict", is_flag=True, help="Refuse data with pictures that cannot be read; else they are left out."
)
PROMISE = options(
    click.option(
        "--max-drop",
        type=float,
        metavar="SHARE",
        help="Promise: accuracy (without labels: agreement with the static model) drops by at most this share, such as 0.01.",
    ),
    click.option(
        "--confidence",
        default=DEFAULTS["confidence"],
        show_default=True,
        help="How sure the promise of --max-drop is, over the draw of the calibration images.",
    ),
    click.option("--per-class", is_flag=True, help="Let the promise of --max-drop hold for every class."),
)
STATIC = click.option("--model", "static", type=PATH, help="The static model. [default: where the conversion found it]")


def named_options() -> set[str]:
    """Return the parameters of the running command that were given on the command line."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}


def refuse_beside(what: str, allowed: Set[str]) -> None:
    """Raise UsageError for a given option that is not `allowed` together with `what`."""
    spare = named_options() - allowed
    if spare:
        raise UsageError(f"{flag(min(spare))}: means nothing beside {what}; leave it out")


def flag(name: str) -> str:
    """Return the option of a parameter as it is written on the command line."""
    return "--" + {"static": "model"}.get(name, name).replace("_", "-")


def refuse_confidence_alone(max_drop: float | None, named: Set[str]) -> None:
    """Raise UsageError for --confidence without --max-drop. named: the options that were given."""
    if max_drop is None and "confidence" in named:
        raise UsageError("--confidence: means nothing without --max-drop; give both, or leave it out")


def refuse_pointless(asked: ConvertOptions, named: Set[str]) -> None:
    """Raise UsageError for a given option that means nothing beside the others. named: the options that were given."""
    refuse_confidence_alone(asked.max_drop, named)
    if "max_loss" in named and asked.budget is not None and not asked.exact:
        raise UsageError("--max-loss: means nothing beside --budget; leave one of the two out")
    if "stages" in named and asked.plan not in NAMED_PLANS:
        raise UsageError("--stages: a written plan has stages of its own; leave it out")


def default_out(model: Path) -> Path:
    """Return the default of --out: a folder in the working directory, named after the model."""
    return Path(f"{model.stem}.s2d")
